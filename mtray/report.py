"""Compare runs: ``python -m mtray.report runs/a runs/b`` prints a table of totals and each task's returns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from mtray.config.command_line import parse
from mtray.errors import UsageError
from mtray.program import run_program
from mtray.rundir.report import read_last, table


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare runs."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""


def run(options: Options) -> None:
    """Print the table."""
    if not options.run_dirs:
        raise UsageError("name at least one run directory, for example runs/a")
    rows = table({str(path): read_last(path) for path in options.run_dirs})
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_program(lambda: run(parse(Options, arguments, "python -m mtray.report")))


if __name__ == "__main__":
    sys.exit(main())
