"""Bookkeeping of training episodes: returns, lengths, the largest discounted return."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mtray.data.messages import Episode
from mtray.data.specs import FloatArray
from mtray.engines.base import BoolArray
from mtray.engines.states import State


class InfoTracker:
    """What environments report beside their rewards, over the episodes of one task's copies."""

    def __init__(self, names: Sequence[str], copies: int) -> None:
        """Track copies that stand at an episode's start."""
        self._names = tuple(names)
        self._is_highest = np.array(["success" in name.lower() for name in names], np.bool_)
        self._values: FloatArray = np.full((copies, len(self._names)), -np.inf, np.float32)

    def add(self, info: FloatArray, ended: BoolArray) -> dict[int, dict[str, float]]:
        """Take a step's values [K, n]; return those of the episodes that ended with it, by copy."""
        if not self._names:
            return {}
        self._values = np.where(self._is_highest, np.maximum(self._values, info), info)
        found = {
            copy: dict(zip(self._names, self._values[copy].tolist(), strict=True))
            for copy in np.flatnonzero(ended).tolist()
        }
        self._values[ended] = -np.inf
        return found


class EpisodeTracker:
    """Tracks the episodes of one task's copies.

    Attributes:
        largest_return: largest absolute discounted return of any step of the last rollout's episodes so far.
    """

    def __init__(self, task: str, copies: int, discount: float, info: Sequence[str] = ()) -> None:
        """Track copies that stand at an episode's start; ``info`` names what the environment reports beside."""
        self.task = task
        self._info = InfoTracker(info, copies)
        # Of each copy's episodes that ended in this rollout.
        self._reported: list[list[dict[str, float]]] = [[] for _ in range(copies)]
        self.largest_return = 0.0
        self._discount = discount
        # Rewards further ahead hardly change a discounted return.
        self._horizon = int(8 / (1 - discount)) + 1
        self._rewards: list[FloatArray] = [np.empty(0, np.float32) for _ in range(copies)]
        self._returns = np.zeros(copies)
        self._steps = np.zeros(copies, np.int64)
        self._random_steps = np.zeros(copies, np.int64)

    def see(self, info: FloatArray, ended: BoolArray) -> None:
        """Take what the environment reported with a step, and which copies' episodes it ended."""
        for copy, reported in self._info.add(info, ended).items():
            self._reported[copy].append(reported)

    def add(
        self, reward: FloatArray, done: BoolArray, is_random: BoolArray, is_broken: BoolArray | None = None
    ) -> list[Episode]:
        """Add a rollout; return the episodes that ended in it, copy by copy.

        Args:
            reward: [K, L] float32.
            done: [K, L] bool, whether an episode ended with the step.
            is_random: [K, L] bool, whether the step's action was random, not the policy's.
            is_broken: [K, L] bool, whether the step failed; its episode is dropped. None for nowhere.
        """
        episodes, self.largest_return = [], 0.0
        for copy in range(len(reward)):
            start = 0
            for end in (np.flatnonzero(done[copy]) + 1).tolist():
                self._extend(copy, reward[copy, start:end], is_random[copy, start:end])
                episode = self._finish(copy)
                if is_broken is None or not is_broken[copy, end - 1]:
                    episodes.append(episode)
                start = end
            if start < reward.shape[1]:
                self._extend(copy, reward[copy, start:], is_random[copy, start:])
        return episodes

    def _extend(self, copy: int, reward: FloatArray, is_random: BoolArray) -> None:
        self._returns[copy] += reward.sum(dtype=np.float64)
        self._steps[copy] += len(reward)
        self._random_steps[copy] += np.count_nonzero(is_random)
        # In pieces, so that a long rollout's early rewards count and `discounted_returns` stays exact.
        for begin in range(0, len(reward), self._horizon):
            rewards = np.concatenate([self._rewards[copy], reward[begin : begin + self._horizon]])
            largest = float(np.abs(discounted_returns(rewards, self._discount)).max())
            self.largest_return = max(self.largest_return, largest)
            self._rewards[copy] = rewards[-self._horizon :]

    def _finish(self, copy: int) -> Episode:
        info = self._reported[copy].pop(0) if self._reported[copy] else {}
        counts = int(self._steps[copy]), int(self._random_steps[copy])
        episode = Episode(self.task, float(self._returns[copy]), *counts, info)
        self._rewards[copy] = np.empty(0, np.float32)
        self._returns[copy], self._steps[copy], self._random_steps[copy] = 0.0, 0, 0
        return episode

    def state(self) -> State:
        """Return the episodes under way."""
        return {
            "returns": self._returns,
            "steps": self._steps,
            "random_steps": self._random_steps,
            **{f"rewards{copy}": rewards for copy, rewards in enumerate(self._rewards)},
        }

    def load_state(self, state: State) -> None:
        """Load what `state` returned."""
        self._returns[:], self._steps[:] = state["returns"], state["steps"]
        self._random_steps[:] = state["random_steps"]
        self._rewards = [state[f"rewards{copy}"] for copy in range(len(self._rewards))]


def discounted_returns(rewards: FloatArray, discount: float) -> npt.NDArray[np.float64]:
    """Return each step's discounted sum [n] float64 of its own and all later rewards [n].

    Divides by powers of the discount, which is exact for n below about 30 / (1 - discount).
    """
    powers = discount ** np.arange(len(rewards), dtype=np.float64)
    sums: npt.NDArray[np.float64] = np.cumsum((rewards * powers)[::-1])[::-1] / powers
    return sums
