"""Train one policy on many tasks: ``python -m mtray.launch --workers 8``."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mtray.cluster.train import train
from mtray.config import command_line
from mtray.config.settings import Config
from mtray.program import run_program
from mtray.rundir.checkpoints.checkpoint import checkpoints_of, read_config
from mtray.rundir.directory import run_dir_of
from mtray.rundir.resume import AUTO
from mtray.rundir.screen import say_line
from mtray.rundir.sinks import say


def parse(arguments: Sequence[str]) -> Config:
    """Return the config of a command line; with ``--resume``, settings that it leaves out are those of the saved run.

    Raises:
        UsageError: a setting that can't work, or no run to resume.
    """
    default, resume = Config(), _option(arguments, "--resume")
    if resume == AUTO:
        run_dir = _option(arguments, "--run-dir")
        if run_dir is not None and checkpoints_of(run_dir):
            default = read_config(run_dir)
    elif resume is not None:
        default = dataclasses.replace(read_config(run_dir_of(resume)), resume=resume, run_dir=None)
    return command_line.parse(Config, arguments, "mtray launch", default)


class _Said(logging.Handler):
    """Writes to what is stderr at that moment: above the live table, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as one line."""
        say(f"{self.format(record)}\n")


def _option(arguments: Sequence[str], name: str) -> Path | None:
    """Return an option's path, by tyro's rules: ``_`` may stand for ``-``, and the last occurrence counts."""
    text = None
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        option, has_value, value = argument.partition("=")
        if option.startswith("--") and option.replace("_", "-") == name:
            text = value if has_value else following
    # "None" is tyro's word for no value. An option without a value is refused by tyro.
    if text is None or text == "None" or text.startswith("--"):
        return None
    return Path(os.path.expanduser(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[_Said()])
    # Nothing is rendered; without this, importing dm_control looks for a display.
    os.environ.setdefault("MUJOCO_GL", "disabled")

    def program() -> None:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        summary = train(config)
        say_line(
            config.run.progress,
            f"{summary['exit_reason']}: {summary['frames']:,} frames, {summary['updates']:,} updates "
            f"in {summary['wall_seconds']:.0f} s",
        )

    return run_program(program)


if __name__ == "__main__":
    sys.exit(main())
