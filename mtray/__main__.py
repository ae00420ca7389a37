"""The console script: ``mtray launch``, ``mtray evaluate``, ``mtray report``."""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata

from mtray.program import run_program

_COMMANDS = {
    "launch": "train one policy on many tasks",
    "evaluate": "evaluate a run's newest policy",
    "report": "compare runs",
}


def main() -> int:
    """Run a command; return its exit code."""
    arguments = sys.argv[1:]
    # As `python -m` does; for a console script Python puts the script's folder there instead.
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if arguments and arguments[0] in _COMMANDS:
        return int(importlib.import_module(f"mtray.{arguments[0]}").main(arguments[1:]))
    if arguments == ["--version"]:
        return run_program(lambda: print(f"mtray {metadata.version('mtray')}"))
    text = "usage: mtray COMMAND ...\n\n" + "\n".join(f"  {name:10}{summary}" for name, summary in _COMMANDS.items())
    is_help = bool(arguments) and arguments[0] in ("-h", "--help")
    output = sys.stdout if is_help else sys.stderr
    usage = f"{text}\n\nmtray COMMAND --help shows a command's options, mtray --version the version."
    code = run_program(lambda: print(usage, file=output))
    return code if is_help else 2


if __name__ == "__main__":
    sys.exit(main())
