"""Episodes as they end: returns, lengths, the largest discounted return."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mtray.data.messages import Episode
from mtray.data.specs import FloatArray
from mtray.engines.base import BoolArray


class EpisodeTracker:
    """The episodes of one task's copies: returns, lengths, and the largest discounted return seen from any step."""

    def __init__(self, task: str, copies: int, discount: float) -> None:
        """Track this many copies, none of which has stepped."""
        self.task = task
        self.largest_return = 0.0
        self._discount = discount
        # A discounted return no longer changes beyond some multiple of 1 / (1 - discount) steps.
        self._horizon = int(8 / (1 - discount)) + 1
        self._rewards: list[FloatArray] = [np.empty(0, np.float32) for _ in range(copies)]
        self._returns = np.zeros(copies)
        self._steps = np.zeros(copies, np.int64)
        self._random_steps = np.zeros(copies, np.int64)

    def add(self, reward: FloatArray, done: BoolArray, is_random: BoolArray) -> list[Episode]:
        """Return the episodes that ended in a rollout, copy by copy.

        Args:
            reward: [K, L] float32.
            done: [K, L], whether an episode ended with the step.
            is_random: [K, L], whether the step's action was random, not the policy's.
        """
        episodes = []
        for copy in range(len(reward)):
            start = 0
            for end in (np.flatnonzero(done[copy]) + 1).tolist():
                self._extend(copy, reward[copy, start:end], is_random[copy, start:end])
                episodes.append(self._finish(copy))
                start = end
            if start < reward.shape[1]:
                self._extend(copy, reward[copy, start:], is_random[copy, start:])
        return episodes

    def _extend(self, copy: int, reward: FloatArray, is_random: BoolArray) -> None:
        self._returns[copy] += reward.sum(dtype=np.float64)
        self._steps[copy] += len(reward)
        self._random_steps[copy] += np.count_nonzero(is_random)
        rewards = self._rewards[copy] = np.concatenate([self._rewards[copy], reward])[-self._horizon :]
        self.largest_return = max(self.largest_return, float(np.abs(discounted_returns(rewards, self._discount)).max()))

    def _finish(self, copy: int) -> Episode:
        episode = Episode(self.task, float(self._returns[copy]), int(self._steps[copy]), int(self._random_steps[copy]))
        self._rewards[copy] = np.empty(0, np.float32)
        self._returns[copy], self._steps[copy], self._random_steps[copy] = 0.0, 0, 0
        return episode


def discounted_returns(rewards: FloatArray, discount: float) -> npt.NDArray[np.float64]:
    """Return the discounted sum [n] of the rewards [n] from each step on.

    Computed with powers of the discount, which is exact while they span few orders of magnitude: n below about
    30 / (1 - discount).
    """
    powers = discount ** np.arange(len(rewards), dtype=np.float64)
    sums: npt.NDArray[np.float64] = np.cumsum((rewards * powers)[::-1])[::-1] / powers
    return sums
