"""Exploration: noise and random actions, each held for several steps.

Enters: which copies start an episode. Leaves: noise for `mtray.policy.acting`, random actions, and which copies take
them. Noise that changes at every step averages out before a body has moved; noise held for a few steps does not. The
number of steps is random, so that no time scale is preferred.

In most episodes the policy acts, with noise. A share of the episodes has random actions, held for longer, until the
policy returns more than they do. With sparse rewards (a swing-up) the policy may stop moving, and noise around it then
never reaches a reward.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mtray.data.specs import FloatArray
from mtray.engines.base import BoolArray
from mtray.engines.states import State, generator_state, load_generator

Lengths: TypeAlias = npt.NDArray[np.float64]

# Agent steps after which an episode chooses again between policy and random actions: some episodes never end.
_CHOICE_STEPS = 1000
# Newest episodes of each kind (policy, random) that are compared.
_COMPARED_EPISODES = 20
# After _SAME_RETURNS policy episodes with equal returns, the random share is multiplied by _SHARE_FACTOR.
_SAME_RETURNS, _SHARE_FACTOR = 5, 4


def zeta(longest: int, exponent: float) -> Lengths:
    """Return the probabilities [longest] of the lengths 1, 2, ...: proportional to 1 / length ** exponent.

    With exponent 2 most are short (Dabney, Ostrovski, Barreto 2021, "Temporally-extended epsilon-greedy exploration";
    FlashSAC uses it for a Gaussian policy's noise); with 1 the logarithms of the lengths are about uniform.
    """
    weights = np.arange(1.0, longest + 1) ** -exponent
    probabilities: Lengths = weights / weights.sum()
    return probabilities


class HeldNoise:
    """Random values [T, K, width]; each copy holds its value for a random number of steps."""

    def __init__(
        self,
        size: tuple[int, int, int],
        lengths: Lengths,
        sample: Callable[[tuple[int, ...]], FloatArray],
        generator: np.random.Generator,
    ) -> None:
        """Start; the first `draw` samples every copy's value.

        Args:
            size: (T, K, width).
            lengths: [n] probabilities of holding a value for 1, 2, ..., n steps.
            sample: returns random values of a given shape.
            generator: draws the lengths.
        """
        self._values = np.zeros(size, np.float32)
        self._steps_left = np.zeros(size[:2], np.int64)
        # Without the last, which is 1 up to rounding.
        self._thresholds = np.cumsum(lengths)[:-1]
        self._sample = sample
        self._generator = generator

    def draw(self) -> FloatArray:
        """Return the values [T, K, width] of the next step; the next call overwrites them."""
        is_over = self._steps_left == 0
        self._steps_left -= 1
        if is_over.any():
            np.copyto(self._values, self._sample(self._values.shape), where=is_over[..., None])
            uniform = self._generator.random(self._steps_left.size)
            # Steps after this one, so 0 for length 1.
            steps = self._thresholds.searchsorted(uniform, "right").reshape(is_over.shape)
            np.copyto(self._steps_left, steps, where=is_over)
        return self._values

    def restart(self, ended: BoolArray) -> None:
        """Draw new values at the next step for the copies of ``ended`` [T, K]."""
        np.copyto(self._steps_left, 0, where=ended)

    def state(self) -> State:
        """Return what the next draws depend on."""
        generator = generator_state(self._generator)
        return {"values": self._values, "steps_left": self._steps_left, "generator": generator}

    def load_state(self, state: State) -> None:
        """Load what `state` returned."""
        self._values[:], self._steps_left[:] = state["values"], state["steps_left"]
        load_generator(self._generator, state["generator"])


def normal_noise(size: tuple[int, int, int], longest: int, generator: np.random.Generator) -> HeldNoise:
    """Return standard normal noise [T, K, act], held for up to ``longest`` steps."""
    return HeldNoise(size, zeta(longest, 2), lambda size: generator.standard_normal(size, np.float32), generator)


def random_actions(size: tuple[int, int, int], longest: int, generator: np.random.Generator) -> HeldNoise:
    """Return uniform actions [T, K, act] in [-1, 1], held for up to ``longest`` steps."""
    return HeldNoise(size, zeta(longest, 1), lambda size: 2 * generator.random(size, np.float32) - 1, generator)


class NoiseFactors:
    """Factors [T, K, 1] of noise: each copy has one for an episode, between two limits, uniform in its logarithm.

    Much noise finds rewards, little noise shows what the policy is worth: a range replaces the choice of one (Li, Chen,
    Hong, Ajay, Agrawal 2023, "Parallel Q-learning": a scale per environment; FastTD3 draws it for each episode). Once
    the policy returns more than random actions do, its own noise is enough.
    """

    def __init__(self, tasks: int, copies: int, least: float, most: float, generator: np.random.Generator) -> None:
        """Start; the first `draw` chooses for every copy.

        Args:
            tasks: T.
            copies: K, the copies of each task.
            least: the lower limit, above zero.
            most: the upper limit.
            generator: draws the factors.
        """
        self._factors = np.ones((tasks, copies, 1), np.float32)
        self._is_over = np.ones((tasks, copies), np.bool_)
        self._limits = math.log(least), math.log(most)
        self._generator = generator

    def draw(self, is_beaten: BoolArray) -> FloatArray:
        """Return the factors [T, K, 1] of the next step; later calls overwrite them.

        Args:
            is_beaten: [T], as of `RandomEpisodes`; new factors are 1 there.
        """
        if self._is_over.any():
            drawn = np.exp(self._generator.uniform(*self._limits, self._factors.shape))
            drawn[is_beaten] = 1.0
            np.copyto(self._factors, drawn, where=self._is_over[..., None], casting="same_kind")
            self._is_over[:] = False
        return self._factors

    def restart(self, ended: BoolArray) -> None:
        """Choose again at the next step for the copies of ``ended`` [T, K]."""
        self._is_over |= ended

    def state(self) -> State:
        """Return what the next factors depend on."""
        generator = generator_state(self._generator)
        return {"factors": self._factors, "is_over": self._is_over, "generator": generator}

    def load_state(self, state: State) -> None:
        """Load what `state` returned."""
        self._factors[:], self._is_over[:] = state["factors"], state["is_over"]
        load_generator(self._generator, state["generator"])


class RandomEpisodes:
    """Chooses the copies whose episode has random actions.

    Each task runs a share of its episodes with random actions until the policy's mean return exceeds the best random
    return, both over the newest 20 episodes. While the policy's episodes all return the same (with a sparse reward,
    nothing), the share is four times as large, at most half.

    Attributes:
        is_beaten: [T], whether the policy returns more than random actions do.
    """

    def __init__(self, tasks: int, copies: int, share: float, generator: np.random.Generator) -> None:
        """Start; the first `draw` chooses for every copy.

        Args:
            tasks: T.
            copies: K, the copies of each task.
            share: share of episodes with random actions.
            generator: draws the choices.
        """
        self._is_random = np.zeros((tasks, copies), np.bool_)
        self._steps_left = np.zeros((tasks, copies), np.int64)
        self._shares = np.full(tasks, share)
        self.is_beaten = np.zeros(tasks, np.bool_)
        self._share = share
        self._generator = generator
        self._random_returns, self._policy_returns = (
            [collections.deque[float](maxlen=_COMPARED_EPISODES) for _ in range(tasks)] for _ in range(2)
        )

    def draw(self) -> BoolArray:
        """Return which copies [T, K] take random actions at the next step; the next call overwrites the array."""
        is_over = self._steps_left == 0
        if is_over.any():
            uniform = self._generator.random(is_over.shape)
            np.copyto(self._is_random, uniform < self._shares[:, None], where=is_over)
            self._steps_left[is_over] = _CHOICE_STEPS
        self._steps_left -= 1
        return self._is_random

    def restart(self, ended: BoolArray) -> None:
        """Choose again at the next step for the copies of ``ended`` [T, K]."""
        np.copyto(self._steps_left, 0, where=ended)

    def add(self, task: int, episode_return: float, of_policy: bool) -> None:
        """Update a task's share with an episode; all its actions were the policy's, or all were random."""
        random, policy = self._random_returns[task], self._policy_returns[task]
        (policy if of_policy else random).append(episode_return)
        self._compare(task)
        if self.is_beaten[task]:
            self._shares[task] = 0.0
        elif len(policy) >= _SAME_RETURNS and min(policy) == max(policy):
            # At most half, so that the policy has episodes to improve in.
            self._shares[task] = max(self._share, min(0.5, _SHARE_FACTOR * self._share))
        else:
            self._shares[task] = self._share

    def state(self) -> State:
        """Return what the next choices depend on."""
        returns = {
            f"returns{index}": np.array(values)
            for index, values in enumerate([*self._random_returns, *self._policy_returns])
        }
        return {
            "is_random": self._is_random,
            "steps_left": self._steps_left,
            "shares": self._shares,
            "generator": generator_state(self._generator),
            **returns,
        }

    def load_state(self, state: State) -> None:
        """Load what `state` returned."""
        self._is_random[:], self._steps_left[:] = state["is_random"], state["steps_left"]
        self._shares[:] = state["shares"]
        load_generator(self._generator, state["generator"])
        for index, values in enumerate([*self._random_returns, *self._policy_returns]):
            values.clear()
            values.extend(state[f"returns{index}"].tolist())
        for task in range(len(self.is_beaten)):
            self._compare(task)

    def _compare(self, task: int) -> None:
        random, policy = self._random_returns[task], self._policy_returns[task]
        self.is_beaten[task] = bool(random and policy) and statistics.fmean(policy) > max(random)
