"""Runs side by side: totals and each task's returns, as rows of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtray.errors import UsageError
from mtray.rundir.files import whole_lines
from mtray.rundir.metrics import RECENT_EPISODES
from mtray.rundir.screen import counted, evaluated_text


def read_last(run_dir: Path) -> dict[str, Any]:
    """Return a run's summary, or the last whole line of its metrics while it goes on.

    Raises:
        UsageError: it is no run directory, has no figures yet, or they are damaged.
    """
    summary, lines = run_dir / "summary.json", run_dir / "metrics.jsonl"
    place = lines
    try:
        place = summary if summary.is_file() else lines
        data = place.read_bytes()
        if place == summary:
            figures = {**json.loads(data)}
        else:
            whole = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
            if not whole:
                raise UsageError(f"{run_dir} has no figures to report yet: wait for the first line of {lines}")
            figures = {**json.loads(whole[-1]), "exit_reason": "running or killed"}
        for task in figures["tasks"].values():
            _ = task["return_mean"], task["episodes"]
        _ = figures["exit_reason"]
    except OSError as error:
        raise UsageError(_unread(run_dir, place, error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"remove it to report the last line of {lines}" if place == summary else "restore it from a backup"
        raise UsageError(f"{place} is damaged ({type(error).__name__}: {error}): {remedy}") from error
    return figures


def _unread(run_dir: Path, place: Path, error: OSError) -> str:
    if not (run_dir / "config.json").is_file():
        reason = "it has no config.json" if run_dir.is_dir() else "there is no such folder"
        return f"{run_dir} is no run directory ({reason}): give the folder of a run, as its --run-dir named it"
    if isinstance(error, FileNotFoundError):
        return f"{run_dir} has no figures to report yet: wait for the first line of {place}"
    return f"{place} can't be read: {error.strerror or error}"


def _set_aside(run_dir: Path) -> list[str]:
    """Return the tasks that a run was left without; each start and resume tries every task again."""
    aside: dict[str, None] = {}
    for event in whole_lines(run_dir / "events.jsonl"):
        if event["event"] in ("start", "resume"):
            aside.clear()
        elif event["event"] == "set_aside":
            aside[event["part"]] = None
    return list(aside)


def _averaged(episodes: int) -> str:
    """Return which episodes a mean return is of."""
    # "Up to": episodes with random actions count here, but are not averaged.
    newest = f"up to {RECENT_EPISODES} newest of " if episodes > RECENT_EPISODES else ""
    return newest + counted(episodes, "episode")


def table(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return rows of text: a header, totals, then of each task mean recent return, episodes and evaluated return."""
    rows = [["", *runs]]
    for name in ("frames", "updates", "restarts"):
        rows.append([name, *(f"{run.get(name, 0):,}" for run in runs.values())])
    seconds = [run.get("wall_seconds", run.get("time", 0.0)) for run in runs.values()]
    rows.append(["seconds", *(f"{value:,.0f}" for value in seconds)])
    rows.append(["ended", *(str(run["exit_reason"]) for run in runs.values())])
    aside = [_set_aside(Path(name)) for name in runs]
    if any(aside):
        rows.append(["set aside", *(", ".join(tasks) or "-" for tasks in aside)])
    tasks = dict.fromkeys(task for run in runs.values() for task in run["tasks"])
    for task in tasks:
        cells = []
        for run in runs.values():
            figures = run["tasks"].get(task)
            mean = figures and figures["return_mean"]
            text = "-" if mean is None else f"{mean:.1f} ({_averaged(figures['episodes'])})"
            evaluated = figures and evaluated_text(run, figures)
            cells.append(text + (f", evaluated {evaluated}" if evaluated else ""))
        rows.append([task, *cells])
    return rows
