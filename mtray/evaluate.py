"""Evaluate a run's newest policy: ``python -m mtray.evaluate runs/a --episodes 10 --json eval.json``.

Each task's episodes are stepped side by side in one process, in plain single-task environments; no Ray.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from mtray.errors import UsageError
from mtray.program import run_program
from mtray.rundir import checkpoint
from mtray.tasks.registry import resolve_like


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a run's newest policy on its tasks."""

    run_dir: tyro.conf.Positional[Path]
    """Run directory (or one checkpoint's folder)."""
    episodes: int = 10
    """Episodes of each task."""
    tasks: tuple[str, ...] = ()
    """Tasks to evaluate; by default all of the run."""
    seed: int = 12345
    """Seed of the episodes."""
    json: Path | None = None
    """File to write the returns to."""


def run(options: Options) -> dict[str, Any]:
    """Evaluate, print a line per task, write the file if asked; gives what the file holds.

    Raises:
        UsageError: no checkpoint, a task the run did not learn, or a file that can't be written.
    """
    if options.episodes < 1:
        raise UsageError(f"--episodes {options.episodes}: at least 1 is needed")
    if options.json is not None and not os.access(options.json.resolve().parent, os.W_OK):
        raise UsageError(
            f"--json {options.json} can't be written: {options.json.resolve().parent} is no writable folder"
        )
    from mtray.collect.evaluation import evaluate, summarise
    from mtray.rundir.policies import load_policy

    policy = load_policy(options.run_dir)
    config = checkpoint.read_config(_root(options.run_dir))
    # Tasks of makers are named after the last part of the path that the run was given.
    paths = {name.rpartition(":")[2]: name for name in config.tasks}
    tasks = resolve_like([paths.get(name, name) for name in options.tasks or config.tasks], policy.specs)
    results = {}
    width = max(len(task.name) for task in tasks)
    for task in tasks:
        results[task.name] = figures = summarise(evaluate(policy, task, options.episodes, seed=options.seed))
        mean, deviation = figures["return_mean"], figures["return_std"]
        print(f"{task.name:{width}}  {mean:8.1f} ± {deviation:.1f}  ({options.episodes} episodes)")
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(results, indent=1))
        except OSError as error:
            raise UsageError(f"--json {options.json} can't be written: {error.strerror}") from error
    return results


def _root(path: Path) -> Path:
    return path if (path / "config.json").is_file() else path.resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit code."""
    os.environ.setdefault("MUJOCO_GL", "disabled")

    def program() -> None:
        import torch

        torch.set_num_threads(1)
        run(tyro.cli(Options, args=list(sys.argv[1:] if arguments is None else arguments)))

    return run_program(program)


if __name__ == "__main__":
    sys.exit(main())
