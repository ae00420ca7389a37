"""Train one policy on many tasks: ``python -m mtray.launch --workers 8``.

Reads the command line, checks everything that can be checked before a process is started, starts a Ray of the run's
own (or joins a cluster), runs the supervisor, and leaves a run directory behind.
"""

from __future__ import annotations

import dataclasses
import logging
import operator
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mtray.cluster.train import train
from mtray.config.settings import Config
from mtray.errors import UsageError
from mtray.program import run_program
from mtray.rundir import checkpoint

# Settings that a resumed run may not change: what was saved would not fit or not mean the same.
_FIXED = ("tasks", "engine", "collector.action_repeat", "network", "learner.algorithm", "seed")


def parse(arguments: Sequence[str]) -> Config:
    """The config of a command line; with ``--resume``, what the saved run had and the line does not say.

    Raises:
        UsageError: a setting that can't work, or one that a resumed run may not change.
    """
    import tyro

    default = Config()
    folder = _resume_folder(arguments)
    if folder is not None:
        default = dataclasses.replace(checkpoint.read_config(folder), resume=folder, run_dir=folder)
    config = tyro.cli(Config, args=list(arguments), prog="python -m mtray.launch", default=default)
    if folder is not None:
        for name in _FIXED:
            given, saved = operator.attrgetter(name)(config), operator.attrgetter(name)(default)
            if given != saved:
                raise UsageError(
                    f"--{name.replace('_', '-')} {given} differs from the {saved} that {folder} was "
                    "made with: a resumed run keeps its tasks, network, algorithm and seed; start a new one to change "
                    "them"
                )
        if config.run_dir != folder:
            raise UsageError(f"--run-dir {config.run_dir}: a resumed run goes on in its own folder, {folder}")
    return config


def _resume_folder(arguments: Sequence[str]) -> Path | None:
    for index, argument in enumerate(arguments):
        if argument.startswith("--resume="):
            return Path(argument.partition("=")[2])
        if argument == "--resume" and index + 1 < len(arguments):
            return Path(arguments[index + 1])
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Nothing is drawn; without this, importing dm_control looks for a display.
    os.environ.setdefault("MUJOCO_GL", "disabled")
    # dm_control's own models use attributes that MuJoCo calls deprecated, and says so at every load.
    logging.getLogger("absl").setLevel(logging.ERROR)

    def program() -> None:
        summary = train(parse(sys.argv[1:] if arguments is None else arguments))
        sys.stderr.write(
            f"{summary['exit_reason']}: {summary['frames']:,} frames, {summary['updates']:,} updates "
            f"in {summary['wall_seconds']:.0f} s\n"
        )

    return run_program(program)


if __name__ == "__main__":
    sys.exit(main())
