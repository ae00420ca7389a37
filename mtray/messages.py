"""What travels between processes: pushes and their receipts, samples, and what a collector reports.

Plain frozen values over numpy arrays, which Ray hands over within a node without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mtray.rows import holds_transition, rewards
from mtray.specs import FloatArray

# Rows whose statistics are taken at once: so many of any task's, as float64, stay in a core's own cache.
_CHUNK = 256


@dataclass
class TaskStatistics:
    """What has been inserted for a task, whether or not it is still in the ring.

    Attributes:
        count: transitions.
        mean: [obs_t] float64, of observations acted on.
        square: [obs_t] float64, their summed squared deviations.
        largest_reward: largest absolute reward.
        largest_return: largest absolute discounted return.
    """

    count: int
    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    largest_reward: float = 0.0
    largest_return: float = 0.0

    @classmethod
    def of(cls, rows: FloatArray, observation_size: int) -> TaskStatistics:
        """Those of the transitions among rows [n, row_size]."""
        total = cls(0, np.zeros(observation_size), np.zeros(observation_size))
        # One array for all chunks: memory that is new or was given back costs more than the sums.
        scratch = np.empty((_CHUNK, observation_size))
        for begin in range(0, len(rows), _CHUNK):
            chunk = rows[begin : begin + _CHUNK]
            acted = holds_transition(chunk).astype(np.float64)
            count = int(acted.sum())
            if count:
                largest = float((np.abs(rewards(chunk)) * acted).max())
                values = scratch[: len(chunk)]
                values[:] = chunk[:, :observation_size]
                mean = acted @ values / count
                values -= mean
                values *= values
                total.merge(cls(count, mean, acted @ values, largest))
        return total

    def merge(self, other: TaskStatistics) -> None:
        """Add what another has seen (Chan, Golub, LeVeque 1983)."""
        self.largest_reward = max(self.largest_reward, other.largest_reward)
        self.largest_return = max(self.largest_return, other.largest_return)
        if not other.count:
            return
        total, delta = self.count + other.count, other.mean - self.mean
        self.square = self.square + other.square + delta**2 * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total


@dataclass(frozen=True, kw_only=True)
class Push:
    """What a collector sends.

    Attributes:
        source: who pushes; every collector process has a name of its own.
        number: 0, 1, 2, ... of this source: with ``source`` the push's id.
        rows: task to [rows, row_size] float32 as `batches.pack` makes them.
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
        of_policy: whether the policy acted, not the random actions of an exploring episode.
    """

    task: str
    episode_return: float
    steps: int
    of_policy: bool = True


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
