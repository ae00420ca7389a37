"""What a collector explores with: noise and random actions that are held for a while.

Enters: which copies start anew. Leaves: noise for `mtray.policy.acting`, random actions, and which copies take those.
What is drawn anew at every step averages out before a body has moved; what is held for a few steps does not. How long
is drawn anew each time, so that no time scale is singled out.

Most episodes are the policy's, with noise. A share of them is stepped with random actions that are held for longer, as
long as the policy is no better: where nothing is paid until a swing has been built up, a policy soon sees no reason to
move, and noise around it does not get there.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mtray.data.specs import FloatArray
from mtray.engines.base import BoolArray

Lengths: TypeAlias = npt.NDArray[np.float64]


# Agent steps of one episode after which it is decided anew who steps it: some episodes never end.
_DECIDED_FOR = 1000


# Episodes of each kind by which random ones and the policy's are compared.
_COMPARED = 20


# Episodes of the policy's, all of the same return, after which random ones become so many times as many.
_SAME, _MORE = 5, 4


def zeta(longest: int, exponent: float) -> Lengths:
    """[longest] probabilities of the lengths 1, 2, ...: proportional to 1 / length ** exponent.

    With exponent 2 most are short (Dabney, Ostrovski, Barreto 2021, "Temporally-extended epsilon-greedy exploration";
    FlashSAC holds a Gaussian policy's noise so); with 1 the lengths' logarithms are about uniform.
    """
    weights = np.arange(1.0, longest + 1) ** -exponent
    probabilities: Lengths = weights / weights.sum()
    return probabilities


class Held:
    """Values [T, K, width], each copy's held for a random number of steps."""

    def __init__(
        self,
        size: tuple[int, int, int],
        lengths: Lengths,
        fresh: Callable[[tuple[int, ...]], FloatArray],
        generator: np.random.Generator,
    ) -> None:
        """Begin with fresh values.

        Args:
            size: T, K and width.
            lengths: [n] probability that values are held for 1, 2, ..., n steps.
            fresh: gives values of a size.
            generator: what the lengths are drawn with.
        """
        self._values = np.zeros(size, np.float32)
        self._left = np.zeros(size[:2], np.int64)
        # Without the last, which is 1 but for rounding.
        self._thresholds = np.cumsum(lengths)[:-1]
        self._fresh = fresh
        self._generator = generator

    def draw(self) -> FloatArray:
        """Values [T, K, width] of the next step; overwritten by the next draw."""
        over = self._left == 0
        self._left -= 1
        if over.any():
            np.copyto(self._values, self._fresh(self._values.shape), where=over[..., None])
            uniform = self._generator.random(self._left.size)
            # Drawn from 0 on: the steps that follow this one.
            np.copyto(self._left, self._thresholds.searchsorted(uniform, "right").reshape(over.shape), where=over)
        return self._values

    def restart(self, ended: BoolArray) -> None:
        """Draw anew at the next step in the copies of ``ended`` [T, K]."""
        np.copyto(self._left, 0, where=ended)


def normal_noise(size: tuple[int, int, int], longest: int, generator: np.random.Generator) -> Held:
    """Standard normal noise [T, K, act], held for up to ``longest`` steps; 1 draws it anew at every step."""
    return Held(size, zeta(longest, 2), lambda size: generator.standard_normal(size, np.float32), generator)


def random_actions(size: tuple[int, int, int], longest: int, generator: np.random.Generator) -> Held:
    """Uniform actions [T, K, act] in [-1, 1], held for up to ``longest`` steps."""
    return Held(size, zeta(longest, 1), lambda size: 2 * generator.random(size, np.float32) - 1, generator)


class RandomEpisodes:
    """Which copies are in an episode with random actions: a share of each task's, while the policy is no better.

    A policy is better if on average its last episodes returned more than the best of the last random ones: where random
    actions find now and then what the policy never does, they go on. Where its last episodes all returned the same (of
    a sparse reward, nothing), they teach nothing, and random ones become four times as many, up to half.
    """

    def __init__(self, tasks: int, copies: int, share: float, generator: np.random.Generator) -> None:
        """Begin every copy's episode; ``share`` of those of T tasks with K copies each are random."""
        self._chosen = np.zeros((tasks, copies), np.bool_)
        self._left = np.zeros((tasks, copies), np.int64)
        self._shares = np.full(tasks, share)
        self._share = share
        self._generator = generator
        # Task to returns of random episodes, and of the policy's.
        self._returns = [
            {kind: collections.deque[float](maxlen=_COMPARED) for kind in (False, True)} for _ in range(tasks)
        ]

    def draw(self) -> BoolArray:
        """[T, K] for the next step; overwritten by the next draw."""
        over = self._left == 0
        if over.any():
            uniform = self._generator.random(over.shape)
            np.copyto(self._chosen, uniform < self._shares[:, None], where=over)
            self._left[over] = _DECIDED_FOR
        self._left -= 1
        return self._chosen

    def restart(self, ended: BoolArray) -> None:
        """Decide anew at the next step in the copies of ``ended`` [T, K]."""
        np.copyto(self._left, 0, where=ended)

    def add(self, task: int, episode_return: float, of_policy: bool) -> None:
        """Take what an episode returned."""
        returns = self._returns[task]
        returns[of_policy].append(episode_return)
        random, own = returns[False], returns[True]
        if random and own and statistics.fmean(own) > max(random):
            self._shares[task] = 0.0
        elif len(own) >= _SAME and min(own) == max(own):
            # No more than half, or the policy could not show that it has become better.
            self._shares[task] = max(self._share, min(0.5, _MORE * self._share))
        else:
            self._shares[task] = self._share
