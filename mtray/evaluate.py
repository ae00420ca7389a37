"""Evaluate a run's policy: ``python -m mtray.evaluate runs/a --episodes 10 --json eval.json``.

Runs in one process without Ray; each task's episodes are stepped together in a single-task environment.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mtray.config.checks import require_count, require_seed
from mtray.config.command_line import parse
from mtray.errors import UsageError
from mtray.program import check_writable, run_program
from mtray.rundir.files import to_json
from mtray.rundir.sinks import say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a run's policy on its tasks."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN-DIR")]
    """Run directory, or the folder of one checkpoint."""
    checkpoint: Literal["newest", "best"] = "newest"
    """The newest policy that was saved, or the one with the best evaluation during the run; its updates are told,
    since after a short run few were evaluated."""
    episodes: int = 10
    """Episodes of each task."""
    tasks: tuple[str, ...] = ()
    """Tasks to evaluate; by default all of the run's."""
    seed: int = 12345
    """Seed of the episodes."""
    json: Path | None = None
    """File to write the returns to."""
    film: Path | None = None
    """File to write ten seconds of each task of dm_control's suite to, as an animated picture (.webp, .gif)."""


def run(options: Options) -> None:
    """Evaluate, print a line per task, and write the files that are given."""
    require_count("--episodes", options.episodes)
    require_seed("--seed", options.seed)
    for option, path in (("--json", options.json), ("--film", options.film)):
        if path is not None:
            check_writable(option, path)
    if options.film is not None:
        from mtray.collect.film import check_film, drawable, write_film

        # Where MuJoCo can't draw as it was told to, nothing that imports it works.
        check_film(options.film)
    from mtray.rundir.checkpoints.checkpoint import read_config
    from mtray.rundir.directory import run_dir_of

    # Before torch and TorchRL, which take seconds to import. A maker's task is named after the last part of its path.
    paths = {name.rpartition(":")[2]: name for name in read_config(run_dir_of(options.run_dir)).tasks if ":" in name}
    import torch

    from mtray.collect.evaluation import play, summarise
    from mtray.policy.weights import snapshot
    from mtray.rundir.checkpoints.policies import load_policy
    from mtray.rundir.screen import counted
    from mtray.tasks.guarded import process_restored
    from mtray.tasks.registry import resolve_like

    torch.set_num_threads(1)
    policy = load_policy(options.run_dir, options.checkpoint)
    weights = snapshot(policy, 0)
    if options.checkpoint == "best":
        _tell_age(options.run_dir)
    results = {}
    # A maker may change the folder, and files are written after the episodes.
    with process_restored():
        tasks = resolve_like([paths.get(name, name) for name in options.tasks or policy.names], policy.specs)
        if options.film is not None:
            # Before the episodes, not after.
            drawn = drawable([task.name for task in tasks])
        for task in tasks:
            results[task.name] = figures = summarise(
                *play(policy.layout, weights, task, options.episodes, seed=options.seed)
            )
            mean, deviation = figures["return_mean"], figures["return_std"]
            infos = "".join(f"  {name[5:]} {value:.3g}" for name, value in figures.items() if name.startswith("info_"))
            print(f"{task.name:20}  {mean:8.1f} ± {deviation:.1f}  ({counted(figures['episodes'], 'episode')}){infos}")
    if options.json is not None:
        try:
            options.json.write_text(to_json(results, indent=1))
        except OSError as error:
            raise UsageError(f"--json {options.json} can't be written: {error.strerror}") from error
    if options.film is not None:
        say(f"drawing the film of {', '.join(drawn)} ...\n")
        write_film(policy, drawn, options.film)
        print(f"written: {options.film}")


def _tell_age(run_dir: Path) -> None:
    """Say after how many updates the best policy was evaluated, since all later ones may be better."""
    from mtray.rundir.checkpoints.best import best_of
    from mtray.rundir.checkpoints.checkpoint import read_meta
    from mtray.rundir.checkpoints.newest import is_checkpoint, read_chosen

    if is_checkpoint(run_dir):
        return
    text = f"the best of the evaluated policies has {read_meta(best_of(run_dir))['updates']:,} updates"
    # The run may not have saved yet.
    with contextlib.suppress(UsageError):
        text += f"; the newest checkpoint has {read_chosen(run_dir, read_meta)['metrics']['updates']:,}"
    say(f"{text}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def program() -> None:
        options = parse(Options, arguments, "mtray evaluate")
        # Without this, importing dm_control looks for a display.
        os.environ.setdefault("MUJOCO_GL", "disabled" if options.film is None else "egl")
        run(options)

    return run_program(program)


if __name__ == "__main__":
    sys.exit(main())
