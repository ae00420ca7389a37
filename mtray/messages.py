"""What travels between processes: pushes and their receipts, samples, and what a collector reports.

Plain frozen values over numpy arrays, which Ray hands over within a node without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mtray.specs import FloatArray


@dataclass(frozen=True, kw_only=True)
class Push:
    """What a collector sends.

    Attributes:
        source: who pushes; every collector process has a name of its own.
        number: 0, 1, 2, ... of this source: with ``source`` the push's id.
        rows: task to [rows, row_size] float32 as `batches.pack` makes them.
        largest_returns: task to the largest absolute discounted return its copies have seen.
        weights_version: of the policy that acted.
    """

    source: str
    number: int
    rows: Mapping[str, FloatArray]
    largest_returns: Mapping[str, float] = field(default_factory=dict)
    weights_version: int = 0


@dataclass(frozen=True)
class Receipt:
    """The replay's acknowledgement of a push: task to frames stored for it, the same however often it is sent."""

    source: str
    number: int
    frames: Mapping[str, int]


@dataclass
class TaskStatistics:
    """What has been inserted for a task, whether or not it is still in the ring.

    Attributes:
        count: transitions.
        mean: [obs_t] float64, of observations acted on.
        square: [obs_t] float64, their summed squared deviations.
        largest_return: largest absolute discounted return.
    """

    count: int
    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    largest_return: float = 0.0

    def add(self, observations: FloatArray) -> None:
        """Merge observations [n, obs_t] (Chan, Golub, LeVeque 1983)."""
        count = len(observations)
        if not count:
            return
        mean = observations.mean(0, dtype=np.float64)
        deviation = observations - mean
        total, delta = self.count + count, mean - self.mean
        self.square += np.einsum("no,no->o", deviation, deviation) + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


@dataclass(frozen=True)
class Sampled:
    """Batches as they travel: task to [N, B, row_size + obs_t] float32, and what the learner scales by."""

    rows: Mapping[str, FloatArray]
    statistics: Mapping[str, TaskStatistics]


@dataclass(frozen=True)
class Episode:
    """An episode that ended in a collector: its undiscounted return and its length in agent steps."""

    task: str
    episode_return: float
    steps: int


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
