"""Runs side by side: totals and each task's returns, as rows of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtray.errors import UsageError


def read_last(run_dir: Path) -> dict[str, Any]:
    """Return a run's summary, or the last whole line of its metrics while it goes on.

    Raises:
        UsageError: it is no run directory or has no figures yet.
    """
    summary, lines = run_dir / "summary.json", run_dir / "metrics.jsonl"
    try:
        if summary.is_file():
            figures = {**json.loads(summary.read_bytes())}
        else:
            whole = [line for line in lines.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            figures = {**json.loads(whole[-1]), "exit_reason": "running or killed"}
        for task in figures["tasks"].values():
            _ = task["return_mean"], task["episodes"]
        _ = figures["exit_reason"]
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{run_dir}: no figures to report ({type(error).__name__}: {error})") from error
    return figures


def table(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return rows of text: a header, totals, then mean recent return and episodes of each task."""
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
