"""Per-task statistics of what was inserted: the inputs' mean and deviation, the largest reward and return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtray.data.rows import holds_transition, rewards
from mtray.data.specs import FloatArray

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
