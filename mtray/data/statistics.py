"""Per-task statistics of inserted rows: observation mean and deviation, largest reward and return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtray.data.rows import holds_transition, rewards
from mtray.data.specs import FloatArray

# Rows per chunk, few enough that a chunk in float64 fits a core's cache for every task.
_CHUNK = 256


@dataclass
class TaskStatistics:
    """Statistics of all transitions ever inserted for a task, including those overwritten in the ring.

    Attributes:
        count: transitions.
        mean: [obs_t] float64, of the root observations.
        square: [obs_t] float64, sum of squared deviations from the mean.
        largest_reward: largest absolute reward; the replay's forgets (see `mtray.replay.peaks`).
        largest_return: largest absolute discounted return, as well.
    """

    count: int
    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    largest_reward: float = 0.0
    largest_return: float = 0.0

    @classmethod
    def of(cls, rows: FloatArray, observation_size: int) -> TaskStatistics:
        """Return the statistics of the transitions among rows [n, row_size]."""
        total = cls(0, np.zeros(observation_size), np.zeros(observation_size))
        # One array for all chunks: allocating takes longer than summing.
        scratch = np.empty((_CHUNK, observation_size))
        for begin in range(0, len(rows), _CHUNK):
            chunk = rows[begin : begin + _CHUNK]
            weights = holds_transition(chunk).astype(np.float64)
            count = int(weights.sum())
            if count:
                largest = float((np.abs(rewards(chunk)) * weights).max())
                values = scratch[: len(chunk)]
                values[:] = chunk[:, :observation_size]
                mean = weights @ values / count
                values -= mean
                values *= values
                total.merge(cls(count, mean, weights @ values, largest))
        return total

    def merge(self, other: TaskStatistics) -> None:
        """Add the transitions of ``other`` (Chan, Golub, LeVeque 1983)."""
        self.largest_reward = max(self.largest_reward, other.largest_reward)
        self.largest_return = max(self.largest_return, other.largest_return)
        if not other.count:
            return
        total, delta = self.count + other.count, other.mean - self.mean
        self.square = self.square + other.square + delta**2 * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total
