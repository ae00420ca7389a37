"""Messages between processes: pushes and their receipts, samples, collectors' reports.

Plain frozen values over numpy arrays, which Ray passes within a node without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mtray.data.specs import FloatArray
from mtray.data.statistics import TaskStatistics


@dataclass(frozen=True, kw_only=True)
class Push:
    """A rollout's rows, as a collector sends them.

    Attributes:
        source: name of the collector process, unique in the run.
        number: 0, 1, 2, ... of this source: with ``source`` the push's id.
        rows: task to [rows, row_size] float32, laid out by `mtray.data.rollout.pack`.
        statistics: per-task statistics of the rows, computed by the collector to offload the replay; the replay
            computes those that are missing.
        largest_returns: task to the largest absolute discounted return its copies have ever seen.
        weights_version: of the policy that acted.
    """

    source: str
    number: int
    rows: Mapping[str, FloatArray]
    statistics: Mapping[str, TaskStatistics] = field(default_factory=dict)
    largest_returns: Mapping[str, float] = field(default_factory=dict)
    weights_version: int = 0


@dataclass(frozen=True)
class Receipt:
    """The replay's acknowledgement of a push: task to frames stored for it, the same however often it is sent."""

    source: str
    number: int
    frames: Mapping[str, int]


@dataclass(frozen=True)
class Sampled:
    """Drawn batches.

    Attributes:
        rows: task to [N, B, row_size + obs_t] float32.
        statistics: per task, of everything inserted; the learner scales by them.
        ages: task to the mean number of its rows written after those drawn.
    """

    rows: Mapping[str, FloatArray]
    statistics: Mapping[str, TaskStatistics]
    ages: Mapping[str, float]


@dataclass(frozen=True)
class Episode:
    """An episode that ended in a collector.

    Attributes:
        episode_return: undiscounted.
        steps: of the agent.
        random_steps: those with random actions: of an exploring episode, or before the first weights arrived.
    """

    task: str
    episode_return: float
    steps: int
    random_steps: int = 0

    @property
    def of_policy(self) -> bool:
        """Whether the policy chose every action."""
        return self.random_steps == 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """A collector's report to the supervisor after a rollout.

    Attributes:
        episodes: those that ended in it.
        weights_version: of the policy that acted.
        seconds: the collector's time since its last report by part: ``policy``, ``simulate`` and ``copy`` of stepping,
            ``push`` for packing and sending, ``receipt`` for waiting for the replay, ``idle`` for waiting for a call.
    """

    episodes: tuple[Episode, ...]
    weights_version: int
    seconds: Mapping[str, float] = field(default_factory=dict)
