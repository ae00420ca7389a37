"""Compare runs: ``mtray report runs/a runs/b`` prints a table of totals and each task's returns.

With ``--page report.html`` it draws them as well.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from mtray.config.checks import require
from mtray.config.command_line import parse
from mtray.errors import UsageError
from mtray.program import check_writable, run_program
from mtray.rundir.report import read_last, table


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare runs."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories; those whose settings, given and chosen (device, workers, ...), differ in their seed only are
    drawn as one curve with its range."""
    page: Path | None = None
    """Write an HTML page with learning curves over minutes and frames, speed, waiting and faults there, and the figures
    as PNG files beside it."""


def run(options: Options) -> None:
    """Print the table; draw the runs."""
    if not options.run_dirs:
        raise UsageError("name at least one run directory, for example runs/a")
    is_page = options.page is None or options.page.suffix in (".html", ".htm")
    require(is_page, f"--page {options.page}: the name must end in .html")
    if options.page is not None:
        check_writable("--page", options.page)
    rows = table({str(path): read_last(path) for path in options.run_dirs})
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if options.page is not None:
        from mtray.rundir.page import write_page

        try:
            written = write_page(options.run_dirs, rows, options.page)
        except OSError as error:
            raise UsageError(f"--page {options.page} can't be written: {error.strerror or error}") from error
        print("written: " + ", ".join(map(str, written)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_program(lambda: run(parse(Options, arguments, "mtray report")))


if __name__ == "__main__":
    sys.exit(main())
