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

# Characters of why a run ended, in its column.
_WIDTH = 60


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
    _print(rows)
    if options.page is not None:
        from mtray.rundir.page import write_page

        try:
            written = write_page(options.run_dirs, rows, options.page)
        except OSError as error:
            raise UsageError(f"--page {options.page} can't be written: {error.strerror or error}") from error
        print("written: " + ", ".join(map(str, written)))


def _print(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text as a table; why a run ended stands whole below it if it is long."""
    shown = [[_shortened(text) for text in row] if row[0] == "ended" else row for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for row, short in zip(rows, shown, strict=True):
        for run, text, cell in zip(rows[0], row, short, strict=True):
            if cell != text:
                print(f"{run}: {text}")


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_program(lambda: run(parse(Options, arguments, "mtray report")))


if __name__ == "__main__":
    sys.exit(main())
