"""Compare runs: ``python -m mtray.report runs/a runs/b`` prints totals and each task's returns, side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from mtray.errors import UsageError
from mtray.program import run_program


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare runs."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""


def read_last(run_dir: Path) -> dict[str, Any]:
    """A run's summary, or the last whole line of its metrics while it goes on.

    Raises:
        UsageError: it is no run directory or has no figures yet.
    """
    summary, lines = run_dir / "summary.json", run_dir / "metrics.jsonl"
    try:
        if summary.is_file():
            return dict(json.loads(summary.read_text()))
        whole = [line for line in lines.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return dict(json.loads(whole[-1]), exit_reason="running or killed")
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"{run_dir}: no figures to report ({type(error).__name__}: {error})") from error


def table(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows of text: a header, totals, then mean recent return and episodes of each task."""
    rows = [["", *runs]]
    for name in ("frames", "updates", "restarts"):
        rows.append([name, *(f"{run.get(name, 0):,}" for run in runs.values())])
    seconds = [run.get("wall_seconds", run.get("time", 0.0)) for run in runs.values()]
    rows.append(["seconds", *(f"{value:,.0f}" for value in seconds)])
    rows.append(["ended", *(str(run["exit_reason"]) for run in runs.values())])
    tasks = dict.fromkeys(task for run in runs.values() for task in run["tasks"])
    for task in tasks:
        cells = []
        for run in runs.values():
            figures = run["tasks"].get(task)
            mean = figures and figures["return_mean"]
            cells.append("-" if mean is None else f"{mean:.1f} ({figures['episodes']} episodes)")
        rows.append([task, *cells])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit code."""

    def program() -> None:
        options = tyro.cli(Options, args=list(sys.argv[1:] if arguments is None else arguments))
        if not options.run_dirs:
            raise UsageError("name at least one run directory, for example runs/a")
        rows = table({str(path): read_last(path) for path in options.run_dirs})
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    return run_program(program)


if __name__ == "__main__":
    sys.exit(main())
