"""The console script: ``mtray launch``, ``mtray evaluate``, ``mtray report``."""

from __future__ import annotations

import importlib
import sys

_COMMANDS = {
    "launch": "train one policy on many tasks",
    "evaluate": "evaluate a run's newest policy",
    "report": "compare runs",
}


def main() -> int:
    """Hand over to a command; gives its exit code."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in _COMMANDS:
        return int(importlib.import_module(f"mtray.{arguments[0]}").main(arguments[1:]))
    text = "usage: mtray COMMAND ...\n\n" + "\n".join(f"  {name:10}{what}" for name, what in _COMMANDS.items())
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    (sys.stdout if asked else sys.stderr).write(f"{text}\n\nmtray COMMAND --help tells a command's options.\n")
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
