"""The console script ``mtray``: its commands are the programs of this folder."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from mtray.errors import UsageError
from mtray.program import run_program

# Command to module and summary.
_COMMANDS = {
    "launch": ("launch", "train one policy on many tasks"),
    "evaluate": ("evaluate", "evaluate a run's newest policy, or its best"),
    "report": ("report", "compare runs"),
    "watch": ("watch", "show a run that goes on"),
    "tasks": ("listing", "list the tasks there are, or try some, your own too"),
}


def main() -> int:
    """Run a command; return its exit code."""
    arguments = sys.argv[1:]
    # As `python -m` does; for a console script Python puts the script's folder there instead.
    with contextlib.suppress(FileNotFoundError):  # It was deleted: the command says so.
        if not sys.flags.safe_path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
    if arguments and arguments[0] in _COMMANDS:
        module, _ = _COMMANDS[arguments[0]]
        return int(importlib.import_module(f"mtray.{module}").main(arguments[1:]))
    if arguments == ["--version"]:
        return run_program(lambda: print(f"mtray {metadata.version('mtray')}"))
    return run_program(lambda: _help(arguments))


def _help(arguments: Sequence[str]) -> None:
    """Print the commands.

    Raises:
        UsageError: help was not what was asked for.
    """
    if not arguments or arguments[0] not in ("-h", "--help"):
        given = f"there is no command {arguments[0]}" if arguments else "a command is missing"
        raise UsageError(f"{given}: choose from {', '.join(_COMMANDS)} (mtray --help says what they do)")
    lines = [f"  {name:10}{summary}" for name, (_, summary) in _COMMANDS.items()]
    last = "mtray COMMAND --help shows a command's options, mtray --version the version."
    print("\n".join(["usage: mtray COMMAND ...", "", *lines, "", last]))


if __name__ == "__main__":
    sys.exit(main())
