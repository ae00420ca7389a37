"""Train one policy on many tasks: ``python -m mtray.launch --workers 8``."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mtray.cluster.train import train
from mtray.config.command_line import whole_numbers
from mtray.config.settings import Config
from mtray.program import run_program
from mtray.rundir.checkpoints.checkpoint import read_config
from mtray.rundir.sinks import say


def parse(arguments: Sequence[str]) -> Config:
    """Return the config of a command line; with ``--resume``, the defaults are the saved run's settings.

    Raises:
        UsageError: an invalid setting, or no run to resume.
    """
    import tyro

    default = Config()
    folder = _resume_folder(arguments)
    if folder is not None:
        default = dataclasses.replace(read_config(folder), resume=folder, run_dir=None)
    return tyro.cli(
        Config, args=list(arguments), prog="python -m mtray.launch", default=default, registry=whole_numbers()
    )


def _resume_folder(arguments: Sequence[str]) -> Path | None:
    for index, argument in enumerate(arguments):
        if argument.startswith("--resume="):
            return Path(argument.partition("=")[2])
        if argument == "--resume" and index + 1 < len(arguments):
            return Path(arguments[index + 1])
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Nothing is rendered; without this, importing dm_control looks for a display.
    os.environ.setdefault("MUJOCO_GL", "disabled")
    # MuJoCo warns at every load of dm_control's models, which use deprecated attributes.
    logging.getLogger("absl").setLevel(logging.ERROR)

    def program() -> None:
        summary = train(parse(sys.argv[1:] if arguments is None else arguments))
        say(
            f"{summary['exit_reason']}: {summary['frames']:,} frames, {summary['updates']:,} updates "
            f"in {summary['wall_seconds']:.0f} s\n"
        )

    return run_program(program)


if __name__ == "__main__":
    sys.exit(main())
