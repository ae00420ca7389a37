"""What a run tells about itself: per-task episodes, rates, lines of metrics.jsonl, a progress line.

Fed by the supervisor, in the driver. Knows no Ray and no simulator.
"""

from __future__ import annotations

import collections
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mtray.messages import Report

# Episodes over which return_mean is taken.
RECENT_EPISODES = 20


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        """Start; nothing is spent yet."""
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What has passed since the last lap was spent on ``part``."""
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Part to seconds, since the last time this was asked."""
        taken, self._seconds = self._seconds, {}
        return taken


class TaskMetrics:
    """One task's counters."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.frames = 0
        self.episodes = 0
        self.recent: collections.deque[float] = collections.deque(maxlen=RECENT_EPISODES)
        self.learner: Mapping[str, float] = {}

    def as_dict(self) -> dict[str, Any]:
        """Frames, episodes, mean of the policy's last 20 episodes' returns, the last one; null before one has ended."""
        return {
            "frames": self.frames,
            "episodes": self.episodes,
            "return_mean": sum(self.recent) / len(self.recent) if self.recent else None,
            "return_last": self.recent[-1] if self.recent else None,
            **self.learner,
        }


class Metrics:
    """Everything counted in a run, all tasks together and each."""

    def __init__(self, tasks: Iterable[str]) -> None:
        """Start counting, and the clock."""
        self.tasks = {task: TaskMetrics() for task in tasks}
        self.updates = 0
        self.weights_version = 0
        self.wait_seconds = 0.0
        self.restarts = 0
        self._staleness: list[int] = []
        self._collector_seconds: collections.Counter[str] = collections.Counter()
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._last = (self._started, 0, 0)

    @property
    def frames(self) -> int:
        """Frames of all tasks that the replay has acknowledged."""
        return sum(task.frames for task in self.tasks.values())

    @property
    def seconds(self) -> float:
        """Wall-clock seconds, those of the runs this one continues included."""
        return self._seconds_before + time.monotonic() - self._started

    def add_rollout(self, report: Report) -> None:
        """Count the episodes that ended, how old the policy was, and what the collector's time went into."""
        self._staleness.append(max(0, self.weights_version - report.weights_version))
        self._collector_seconds.update(report.seconds)
        for episode in report.episodes:
            task = self.tasks[episode.task]
            task.episodes += 1
            if episode.of_policy:
                task.recent.append(episode.episode_return)

    def line(self) -> dict[str, Any]:
        """The figures since the last line, and totals."""
        now = time.monotonic()
        then, frames, updates = self._last
        elapsed = max(now - then, 1e-9)
        line = {
            "time": round(self.seconds, 3),
            "frames": self.frames,
            "updates": self.updates,
            "frames_per_second": (self.frames - frames) / elapsed,
            "updates_per_second": (self.updates - updates) / elapsed,
            "weights_version": self.weights_version,
            "staleness": sum(self._staleness) / len(self._staleness) if self._staleness else 0.0,
            "learner_wait_seconds": self.wait_seconds,
            "collector_seconds": {part: round(spent, 3) for part, spent in self._collector_seconds.items()},
            "restarts": self.restarts,
            "tasks": {name: task.as_dict() for name, task in self.tasks.items()},
        }
        self._last = (now, self.frames, self.updates)
        self._staleness.clear()
        self._collector_seconds.clear()
        return line

    def state(self) -> dict[str, Any]:
        """Plain values to continue from."""
        return {
            "seconds": self.seconds,
            "updates": self.updates,
            "tasks": {
                name: {"frames": task.frames, "episodes": task.episodes, "recent": list(task.recent)}
                for name, task in self.tasks.items()
            },
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self._seconds_before, self.updates = state["seconds"], state["updates"]
        for name, saved in state["tasks"].items():
            task = self.tasks[name]
            task.frames, task.episodes = saved["frames"], saved["episodes"]
            task.recent.extend(saved["recent"])
        self._last = (self._started, self.frames, self.updates)


class Sink(Protocol):
    """Where lines go."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take one line of figures."""

    def close(self) -> None:
        """No more lines."""


class JsonLines:
    """metrics.jsonl: a line of JSON each."""

    def __init__(self, path: Path) -> None:
        """Append to the file, after its last whole line: one that a killed run left half written is cut off."""
        if path.exists():
            text = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
        self._file = path.open("a")

    def write(self, line: Mapping[str, Any]) -> None:
        """Write and flush a line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """The same figures as event files, over frames."""

    def __init__(self, folder: Path) -> None:
        """Remember where; the file is opened, and tensorboard imported, with the first line."""
        self._folder = folder
        self._writer: Any = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Write every number of a line."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        frames = line["frames"]
        for name, value in line.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"run/{name}", value, frames)
        for task, figures in line["tasks"].items():
            for name, value in figures.items():
                if value is not None:
                    self._writer.add_scalar(f"{task}/{name}", value, frames)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Progress:
    """One line on a terminal, rewritten; a line each time elsewhere."""

    def __init__(self, total_frames: int) -> None:
        """Write to stderr."""
        self._total = total_frames
        self._live = sys.stderr.isatty()

    def write(self, line: Mapping[str, Any]) -> None:
        """Show where the run stands."""
        returns = [task["return_mean"] for task in line["tasks"].values() if task["return_mean"] is not None]
        mean = f"{sum(returns) / len(returns):.1f}" if returns else "-"
        text = (
            f"{line['frames']:,}/{self._total:,} frames ({100 * line['frames'] / self._total:.0f}%)  "
            f"{line['frames_per_second']:,.0f} frames/s  {line['updates']:,} updates  "
            f"{line['updates_per_second']:.0f}/s  return {mean}  staleness {line['staleness']:.1f}  "
            f"{line['time']:.0f} s"
        )
        sys.stderr.write(f"\r\033[K{text}" if self._live else f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live:
            sys.stderr.write("\n")
