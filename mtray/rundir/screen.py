"""What the screen shows of a run: a live table on a terminal, lines of text elsewhere.

Enters: lines of figures, as in metrics.jsonl, and events. Both faces are made of one `Picture`, which the files of a
run that goes on elsewhere give as well (`mtray watch`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mtray.rundir.checkpoints.checkpoint import read_config
from mtray.rundir.files import whole_lines
from mtray.rundir.sinks import say

_BARS = "▁▂▃▄▅▆▇█"
_TREND_WIDTH = 16
# Columns of a terminal below which names of tasks are cut, and to how many.
_NARROW, _NARROW_TASK = 100, 18
# Of a figure of the policy before its first update.
_UNTRAINED = " untrained"
# Returns kept of each task: every second one is dropped when there are more.
_MOST_RETURNS = 512
# A task's line is printed again after this time at the earliest, where there is no terminal.
_TASK_SECONDS = 30.0
# Frames; an episode that is longer is told.
_LONG_EPISODE = 10_000
# Waits that are told: of this share of the time, and for these reasons with a remedy.
_TOLD_SHARE = 0.3
_REMEDIES = {
    ("collectors", "learner"): "the learner is the slower side: collectors wait {share} of their time for it; a lower "
    "--learner.least-updates-per-step would let them bring more",
    ("collectors", "collectors"): "collectors wait {share} of their time for the slowest of them",
    ("collectors", "replay"): "collectors wait {share} of their time for the replay",
    ("learner", "frames"): "the learner waits {share} of its time for frames: a higher --learner.updates-per-step or "
    "more --workers would keep it busy",
    ("learner", "warm-up"): "learning begins when every task has the steps of --learner.warmup-steps",
    ("learner", "replay"): "the learner waits {share} of its time for batches",
}


@functools.cache
def published() -> Mapping[str, Mapping[str, Any]]:
    """Return the best published return of each task that has one: ``return``, ``agent`` and ``frames``.

    Sources are in benchmarks/reference/dmc_returns.csv.
    """
    text = importlib.resources.files("mtray.rundir").joinpath("published.json").read_text()
    found: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return found


class Row(NamedTuple):
    """A task's figures as text; empty where there is none.

    Attributes:
        published: the best published return.
        success: share of the episodes that succeeded, where the environment reports it.
    """

    task: str
    frames: str
    episodes: str
    return_mean: str
    trend: str
    evaluated: str
    published: str
    success: str


def say_line(progress: str, line: str) -> None:
    """Print a line of text, unless ``--run.progress`` is ``none``."""
    if progress != "none":
        say(f"{line}\n")


class Picture:
    """What is shown: the newest line, each task's returns so far, and what happened last."""

    def __init__(
        self, total_frames: int | None, total_minutes: float | None, processes: int = 0, copies: int = 0
    ) -> None:
        """Begin with nothing.

        Args:
            total_frames: after which the run is finished; None if only time ends it.
            total_minutes: likewise.
            processes: those that start; 0 if unknown.
            copies: of each task, over all collectors; 0 if unknown.
        """
        self.line: Mapping[str, Any] | None = None
        self.returns: dict[str, list[float]] = {}
        self.news = ""
        # That the run has ended and why, once it has.
        self.ended: str | None = None
        self._total_frames, self._total_minutes = total_frames, total_minutes
        self._processes, self._copies, self._up = processes, copies, set[str]()
        self._first: tuple[float, int] | None = None

    def add(self, line: Mapping[str, Any]) -> None:
        """Take a line of figures."""
        self.line = line
        if self._first is None and line["frames"]:
            self._first = line["time"], line["frames"]
        for task, figures in line["tasks"].items():
            if figures["return_mean"] is not None:
                seen = self.returns.setdefault(task, [])
                seen.append(figures["return_mean"])
                if len(seen) > _MOST_RETURNS:
                    del seen[::2]

    def tell(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take an event: what is waited for until there are figures."""
        if event in ("start", "resume"):
            self._up.clear()
            self.ended = None
        elif event == "end":
            # Earlier versions did not tell the cause.
            self.ended = "the run has ended" + (f": {fields['cause']}" if fields.get("cause") else "")
        elif event == "up":
            self._up.add(str(fields["part"]))
            self.news = self._ready()
        elif event == "warm":
            self.news = "the warm-up is over: every task has its steps"
        elif event == "save":
            self.news = f"saved at {fields['frames']:,} frames"
        elif event == "evaluated":
            of = f"the policy after {fields['updates']:,} updates" if fields["updates"] else "the untrained policy"
            self.news = f"{of} was evaluated{': the best so far, kept' if fields['is_best'] else ''}"
            # Runs of earlier versions did not write it.
            if fields.get("next_in", 0) > 0:
                self.news += f"; the next is due in {duration(fields['next_in'])}"

    def _ready(self) -> str:
        missing = self._processes - len(self._up)
        others = f", {'the other is' if missing == 1 else 'the others are'} starting" if missing > 0 else ""
        return f"{len(self._up)} of {self._processes} processes are ready{others}"

    def seconds_left(self) -> float | None:
        """Return how long the run will take, as far as can be known."""
        if self.line is None:
            return None
        left = []
        if self._total_minutes is not None:
            left.append(60 * self._total_minutes - self.line["time"])
        owed, rate = self._owed(), self.line["updates_per_second"]
        if owed and rate:
            left.append(owed / rate)
        elif self._total_frames is not None and self._first is not None:
            seconds, frames = self.line["time"] - self._first[0], self.line["frames"] - self._first[1]
            if frames > 0:
                left.append((self._total_frames - self.line["frames"]) * seconds / frames)
        return max(0.0, min(left)) if left else None

    def _owed(self) -> int:
        """Return the updates that are made after the last frame, before the run ends."""
        line, total = self.line, self._total_frames
        if line is None or total is None or line["frames"] < total:
            return 0
        # Runs of earlier versions did not write it.
        owed: int = line.get("updates_owed", 0)
        return owed

    def totals(self) -> str:
        """Return frames, rates, updates, time and time left, in one line."""
        line = self.line
        if line is None:
            return self.news or "starting"
        total = self._total_frames
        of_all = "" if total is None else f"/{total:,} ({100 * line['frames'] / total:.0f} %)"
        left = self.seconds_left()
        text = (
            f"{line['frames']:,}{of_all} frames, {line['frames_per_second']:,.0f}/s   "
            f"{line['updates']:,} updates, {line['updates_per_second']:,.0f}/s   {duration(line['time'])}"
        )
        text += f", {self._owed():,} updates are still owed" if self._owed() else ""
        if self.ended is not None:
            return f"{text}; {self.ended}"
        text += f", about {duration(left)} left" if left and left >= 0.5 else ""
        return text + (f", {self._ready()}" if 0 < len(self._up) < self._processes else "")

    def waits(self) -> list[str]:
        """Return who waits for whom, and the remedy, in words; empty if nobody waits long."""
        if self.line is None:
            return []
        found = []
        for side, reasons in self.line["waiting"].items():
            for reason, share in reasons.items():
                text = _REMEDIES.get((side, reason))
                if text is not None and share >= _TOLD_SHARE:
                    found.append(text.format(share=f"{100 * share:.0f} %"))
        return found

    def endless(self) -> dict[str, str]:
        """Return, by task, that no episode has ended for long, and the remedy."""
        return {
            task: f"no episode of {task} has ended in {figures['frames'] // self._copies:,} frames of each copy; "
            "returns are of whole episodes: let the environment truncate them"
            for task, figures in (self.line or {"tasks": {}})["tasks"].items()
            if self._copies and not figures["episodes"] and figures["frames"] >= _LONG_EPISODE * self._copies
        }

    def troubles(self) -> str:
        """Return what was replaced and lost, in one line; empty if nothing was."""
        line = self.line or {}
        counts = (
            ("restarts", "process", "processes", "replaced"),
            ("frames_lost", "frame", "frames", "lost"),
            ("updates_lost", "update", "updates", "lost"),
        )
        return ", ".join(
            f"{counted(line[name], one, many)} {what}" for name, one, many, what in counts if line.get(name)
        )

    def tasks(self) -> list[Row]:
        """Return a row for each task."""
        rows = []
        for task, figures in (self.line or {"tasks": {}})["tasks"].items():
            best = published().get(task.rpartition("/")[2])
            success = figures.get("info_success")
            rows.append(
                Row(
                    task,
                    f"{figures['frames']:,}",
                    f"{figures['episodes']:,}",
                    _return(figures),
                    trend(self.returns.get(task, [])),
                    evaluated_text(self.line or {}, figures),
                    "" if best is None else f"{best['return']:,.0f}",
                    "" if success is None else f"{success:.2f}",
                )
            )
        return rows

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Draw the table."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        rows = self.tasks()
        # On a narrow terminal these two give way, and no number breaks.
        table.add_column("task", no_wrap=True, max_width=_NARROW_TASK if options.max_width < _NARROW else None)
        for name in ("frames", "episodes", "return"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("trend")
        is_untrained = any(row.evaluated.endswith(_UNTRAINED) for row in rows)
        table.add_column(_UNTRAINED.strip() if is_untrained else "evaluated", justify="right", no_wrap=True)
        table.add_column("published", justify="right", style="dim", no_wrap=True)
        if any(row.success for row in rows):
            table.add_column("success", justify="right", no_wrap=True)
        for row in rows:
            shown = row._replace(evaluated=row.evaluated.removesuffix(_UNTRAINED))._asdict()
            shown["trend"] = _Trend(self.returns.get(row.task, []))
            table.add_row(*list(shown.values())[: len(table.columns)])
        below = [
            Text(self.totals()),
            *(Text(text, style="yellow") for text in (*self.waits(), *self.endless().values())),
        ]
        if self.troubles():
            below.append(Text(self.troubles(), style="red"))
        if self.news and self.line is not None:
            below.append(Text(self.news, style="dim"))
        above: list[Any] = [table, Text("")] if self.line else []
        yield Group(*above, *below)


class _Trend:
    """A sparkline as wide as its cell."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        from rich.measure import Measurement

        return Measurement(5, _TREND_WIDTH).clamp(max_width=options.max_width)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        yield Text(trend(self._values, min(_TREND_WIDTH, options.max_width)))


class Screen:
    """Shows a run while it goes on."""

    def __init__(self, picture: Picture, kind: Literal["auto", "plain", "table", "none"]) -> None:
        """Begin to show; ``auto``: a table on a terminal, else plain text."""
        self.picture = picture
        if kind == "auto":
            kind = "table" if sys.stderr is not None and sys.stderr.isatty() else "plain"
        if sys.stderr is None:
            kind = "none"
        self._kind = kind
        # When each task's line was printed, and its episodes then.
        self._printed: dict[str, tuple[float, int]] = {}
        self._endless: set[str] = set()
        self._table: Any = None
        if kind == "table":
            from rich.console import Console
            from rich.live import Live

            # What is written to stderr meanwhile stands above the table.
            self._table = Live(
                console=Console(stderr=True),
                get_renderable=lambda: self.picture,
                refresh_per_second=2,
                redirect_stdout=False,
            )
            self._table.start()

    def say(self, line: str) -> None:
        """Print a line of text."""
        say_line(self._kind, line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Take a line of figures."""
        self.picture.add(line)
        if self._kind == "plain":
            say(f"{self.picture.totals()}\n")
            self._say_tasks(line)
            for task, text in self.picture.endless().items():
                if task not in self._endless:
                    self._endless.add(task)
                    say(f"WARNING: {text}\n")

    def _say_tasks(self, line: Mapping[str, Any]) -> None:
        """Print the tasks of which episodes have ended since they were printed."""
        for row in self.picture.tasks():
            task, episodes = row.task, line["tasks"][row.task]["episodes"]
            when, before = self._printed.get(task, (-_TASK_SECONDS, 0))
            # Long episodes may not have ended when the policy was evaluated.
            is_new = episodes > before if row.return_mean != "-" else row.evaluated and task not in self._printed
            if is_new and line["time"] >= when + _TASK_SECONDS:
                self._printed[task] = line["time"], episodes
                named = [("evaluated", row.evaluated), ("published", row.published), ("success", row.success)]
                more = "".join(f"   {name} {text}" for name, text in named if text)
                shown = f"{row.trend:{_TREND_WIDTH}}   {counted(episodes, 'episode')}{more}"
                say(f"    {task:24} return {row.return_mean:>14} {shown}\n")

    def print_all_tasks(self) -> None:
        """Print every task with the next line, also those that were printed a moment ago."""
        self._printed.clear()

    def tell(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take an event."""
        before = self.picture.news
        self.picture.tell(event, fields)
        has_frames = self.picture.line is not None and self.picture.line["frames"]
        if self._kind == "plain" and not has_frames and self.picture.news != before:
            say(f"{self.picture.news}\n")

    def close(self) -> None:
        """Leave the last table standing."""
        if self._table is not None:
            # A terminal that was closed is no reason for a run to fail.
            with contextlib.suppress(OSError, ValueError):
                self._table.stop()
            self._table = None


def _return(figures: Mapping[str, Any]) -> str:
    """Return the policy's return, or that of random actions, which says so, until an episode of the policy's ended."""
    mean, random = figures["return_mean"], figures.get("return_random")
    if mean is None:
        return "-" if random is None else f"{random:,.1f} random"
    return f"{mean:,.1f}"


def evaluated_text(line: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Return a task's return of the last evaluation; that of a policy before its first update says so."""
    value = figures.get("return_evaluated")
    if value is None:
        return ""
    return f"{value:,.1f}" + (_UNTRAINED if line.get("evaluated_updates") == 0 else "")


def trend(values: Sequence[float], width: int = _TREND_WIDTH) -> str:
    """Return a sparkline of values: means of equal parts, from the lowest to the highest."""
    if len(values) < 2:
        return ""
    count = min(width, len(values))
    bounds = [round(index * len(values) / count) for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def counted(count: float, one: str, many: str | None = None) -> str:
    """Return a number with its word, of which there may be one or many."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def picture_of(run_dir: Path, until: float = math.inf) -> Picture:
    """Return the picture of a run from its files: what was written so far, or up to this second of its time."""
    described = json.loads((run_dir / "config.json").read_text())
    config = read_config(run_dir)
    workers = described.get("chosen", {}).get("workers", config.workers)
    copies = described.get("chosen", {}).get("envs_per_task") or 0
    picture = Picture(config.frames, config.minutes, int(workers) + 2, int(workers) * copies)
    for event in whole_lines(run_dir / "events.jsonl"):
        if event["time"] <= until:
            picture.tell(event["event"], event)
    for line in whole_lines(run_dir / "metrics.jsonl"):
        if line["time"] <= until:
            picture.add(line)
    return picture
