"""What a run tells about itself: per-task episodes, rates, lines of metrics.jsonl, a progress line.

Fed by the supervisor, in the driver. Knows no Ray and no simulator.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mtray.data.messages import Report

# Episodes over which return_mean is taken.
RECENT_EPISODES = 20


class TaskMetrics:
    """One task's counters."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.frames = 0
        self.episodes = self.broken_episodes = 0
        self.recent: collections.deque[float] = collections.deque(maxlen=RECENT_EPISODES)
        # Agent steps of the same episodes.
        self.lengths: collections.deque[int] = collections.deque(maxlen=RECENT_EPISODES)
        # What environments reported of them, by name.
        self.info: dict[str, collections.deque[float]] = {}
        # Of episodes in which some actions were random.
        self.random: collections.deque[float] = collections.deque(maxlen=RECENT_EPISODES)
        # Of the last evaluation: return_evaluated, and means of what the environment reported.
        self.evaluated: dict[str, float] = {}
        self.learner: Mapping[str, float] = {}

    def as_dict(self) -> dict[str, Any]:
        """Frames, episodes, mean of the policy's last 20 episodes' returns, the last one; null before one has ended.

        ``broken_episodes``: ended by a failure of their simulator, and not among the others. ``return_evaluated``: mean
        return without noise in the last evaluation. ``length_mean``: mean agent steps of the episodes of return_mean;
        ``info_<name>``: mean of what the environment reported of them, ``info_<name>_evaluated`` in the evaluation.
        """
        return {
            "frames": self.frames,
            "episodes": self.episodes,
            "broken_episodes": self.broken_episodes,
            "return_mean": _mean(self.recent),
            "return_last": self.recent[-1] if self.recent else None,
            "return_random": _mean(self.random),
            "return_evaluated": None,
            "length_mean": _mean(self.lengths),
            **{f"info_{name}": _mean(values) for name, values in self.info.items()},
            **self.evaluated,
            **self.learner,
        }


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


class Metrics:
    """Everything counted in a run, all tasks together and each."""

    def __init__(self, tasks: Iterable[str], seconds_before: float = 0.0) -> None:
        """Start counting, and the clock at ``seconds_before``, which is how long the run has run already."""
        self.tasks = {task: TaskMetrics() for task in tasks}
        self.updates = 0
        self.weights_version = 0
        self.wait_seconds = 0.0
        self.waiting: Mapping[str, Mapping[str, float]] = {}
        self.restarts = self.frames_lost = self.updates_lost = self.updates_owed = 0
        # Those of the runs that this one continues.
        self._faults_before = 0, 0, 0
        # Of the policy that was evaluated last.
        self.evaluated_updates: int | None = None
        self._staleness: list[int] = []
        self._collector_seconds: collections.Counter[str] = collections.Counter()
        self._seconds_before = seconds_before
        self._started = time.monotonic()
        self._ended: float | None = None
        self._last = (self._started, *self._made)
        self._last_wait_seconds = 0.0

    @property
    def _made(self) -> tuple[int, int]:
        """Frames and updates made in all; those that a dead process took with it were made all the same."""
        return self.frames + self.frames_lost, self.updates + self.updates_lost

    @property
    def frames(self) -> int:
        """Frames of all tasks that the replay has acknowledged."""
        return sum(task.frames for task in self.tasks.values())

    @property
    def seconds(self) -> float:
        """Wall-clock seconds, those of the runs this one continues included."""
        return self._seconds_before + self._now() - self._started

    def _now(self) -> float:
        return time.monotonic() if self._ended is None else self._ended

    def stop_clock(self) -> None:
        """Count no more seconds: what the run does from now on is no part of its time."""
        self._ended = self._now()

    def count_faults(self, restarts: int, frames_lost: int, updates_lost: int) -> None:
        """Take what this run's processes have come to; those of the runs that it continues are added."""
        counts = zip(self._faults_before, (restarts, frames_lost, updates_lost), strict=True)
        self.restarts, self.frames_lost, self.updates_lost = (before + now for before, now in counts)

    def add_rollout(self, report: Report) -> None:
        """Count the episodes that ended, how old the policy was, and what the collector's time went into."""
        self._staleness.append(max(0, self.weights_version - report.weights_version))
        self._collector_seconds.update(report.seconds)
        for name, steps in report.broken.items():
            # A step of each copy, and with it the copy's episode.
            self.tasks[name].broken_episodes += steps
        for episode in report.episodes:
            task = self.tasks[episode.task]
            task.episodes += 1
            if episode.of_policy:
                task.recent.append(episode.episode_return)
                task.lengths.append(episode.steps)
                for name, value in episode.info.items():
                    task.info.setdefault(name, collections.deque(maxlen=RECENT_EPISODES)).append(value)
            else:
                task.random.append(episode.episode_return)

    def add_evaluation(self, updates: int, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what the evaluation of the policy after so many updates gave of each task; others have no figures."""
        self.evaluated_updates = updates
        for task in self.tasks.values():
            task.evaluated = {}
        for name, figures in found.items():
            self.tasks[name].evaluated = {"return_evaluated": figures["return_mean"]} | {
                f"{key}_evaluated": value for key, value in figures.items() if key.startswith("info_")
            }

    def replay_seconds(self) -> tuple[float, float]:
        """Return the seconds since the last line that collectors waited for receipts, and the learner for batches."""
        # A new process of the learner counts from zero.
        return self._collector_seconds["receipt"], max(0.0, self.wait_seconds - self._last_wait_seconds)

    def line(self) -> dict[str, Any]:
        """The figures since the last line, and totals."""
        now = self._now()
        then, frames, updates = self._last
        frames_made, updates_made = self._made
        elapsed = max(now - then, 1e-9)
        line = {
            "time": round(self.seconds, 3),
            "frames": self.frames,
            "updates": self.updates,
            "frames_per_second": max(0, frames_made - frames) / elapsed,
            "updates_per_second": max(0, updates_made - updates) / elapsed,
            "weights_version": self.weights_version,
            "staleness": sum(self._staleness) / len(self._staleness) if self._staleness else 0.0,
            "learner_wait_seconds": self.wait_seconds,
            "collector_seconds": {part: round(spent, 3) for part, spent in self._collector_seconds.items()},
            "waiting": self.waiting,
            "restarts": self.restarts,
            "frames_lost": self.frames_lost,
            "updates_lost": self.updates_lost,
            "updates_owed": self.updates_owed,
            "evaluated_updates": self.evaluated_updates,
            "tasks": {name: task.as_dict() for name, task in self.tasks.items()},
        }
        self._last = (now, frames_made, updates_made)
        self._last_wait_seconds = self.wait_seconds
        self._staleness.clear()
        self._collector_seconds.clear()
        return line

    def state(self) -> dict[str, Any]:
        """Plain values to continue from."""
        return {
            "seconds": self.seconds,
            "updates": self.updates,
            "tasks": {
                name: {
                    "frames": task.frames,
                    "episodes": task.episodes,
                    "broken_episodes": task.broken_episodes,
                    "recent": list(task.recent),
                    "random": list(task.random),
                    "lengths": list(task.lengths),
                    "info": {name: list(values) for name, values in task.info.items()},
                    "evaluation": task.evaluated,
                }
                for name, task in self.tasks.items()
            },
            "evaluated_updates": self.evaluated_updates,
            "faults": [self.restarts, self.frames_lost, self.updates_lost],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the counts of what `state` gave; its seconds may lie before what is written already."""
        self.updates, self.evaluated_updates = state["updates"], state.get("evaluated_updates")
        for name, saved in state["tasks"].items():
            task = self.tasks[name]
            task.frames, task.episodes = saved["frames"], saved["episodes"]
            task.broken_episodes = saved["broken_episodes"]
            task.recent.extend(saved["recent"])
            # Older checkpoints have none.
            task.random.extend(saved.get("random", ()))
            task.lengths.extend(saved.get("lengths", ()))
            for of_info, values in saved.get("info", {}).items():
                task.info[of_info] = collections.deque(values, maxlen=RECENT_EPISODES)
            task.evaluated = saved.get("evaluation", {})
        restarts, frames_lost, updates_lost = state.get("faults", (0, 0, 0))
        self._faults_before = restarts, frames_lost, updates_lost
        self.count_faults(0, 0, 0)
        self._last = (self._started, *self._made)


def with_last_evaluation(state: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a checkpoint's `Metrics.state` with the last evaluation of its policy, or an earlier one, in these lines.

    What a run came to is evaluated after its last checkpoint is written.
    """
    newest, updates = None, state.get("evaluated_updates")
    for line in lines:
        of = line.get("evaluated_updates")
        if of is not None and of <= state["updates"] and (updates is None or of > updates):
            newest, updates = line, of
    if newest is None:
        return {**state}
    tasks = {
        name: {**saved, "evaluation": _evaluation_of(newest.get("tasks", {}).get(name, {}))}
        for name, saved in state["tasks"].items()
    }
    return {**state, "evaluated_updates": updates, "tasks": tasks}


def _evaluation_of(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a task's figures in a line have of its evaluation."""
    return {name: value for name, value in figures.items() if name.endswith("_evaluated") and value is not None}
