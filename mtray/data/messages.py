"""What travels between processes: pushes and their receipts, samples, and what a collector reports.

Plain frozen values over numpy arrays, which Ray hands over within a node without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mtray.data.specs import FloatArray
from mtray.data.statistics import TaskStatistics


@dataclass(frozen=True, kw_only=True)
class Push:
    """What a collector sends.

    Attributes:
        source: who pushes; every collector process has a name of its own.
        number: 0, 1, 2, ... of this source: with ``source`` the push's id.
        rows: task to [rows, row_size] float32 as `mtray.data.pack` makes them.
        statistics: task to those of its rows, which collectors take so that the one replay need not; the replay takes
            those that are not here.
        largest_returns: task to the largest absolute discounted return its copies have seen.
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
    """Batches as they travel.

    Attributes:
        rows: task to [N, B, row_size + obs_t] float32.
        statistics: what the learner scales by.
        ages: task to the mean number of its rows that have been written after those drawn.
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
    """What a collector tells the supervisor after a rollout.

    Attributes:
        episodes: those that ended in it.
        weights_version: of the policy that acted.
        seconds: what the collector's time since its last report went into: ``policy``, ``simulate`` and ``copy`` while
            it stepped, ``push`` to pack and hand over, ``receipt`` to wait for the replay, ``idle`` to wait for a call.
    """

    episodes: tuple[Episode, ...]
    weights_version: int
    seconds: Mapping[str, float] = field(default_factory=dict)
