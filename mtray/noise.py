"""Exploration noise that is held for a while: what a collector draws its actions with.

Enters: which copies start anew. Leaves: standard normal noise for `mtray.acting`. Independent noise at every
step averages out before a body has moved; the same noise held for a few steps does not. How long is drawn anew each
time, mostly one step and rarely many, so that no time scale is singled out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mtray.engines import BoolArray
from mtray.specs import FloatArray

# Exponent of the zeta distribution of the runs' lengths (Dabney, Ostrovski, Barreto 2021, "Temporally-extended
# epsilon-greedy exploration"; FlashSAC holds a Gaussian policy's noise so).
_EXPONENT = 2.0


def length_probabilities(longest: int) -> npt.NDArray[np.float64]:
    """[longest] probabilities of the lengths 1, 2, ...: proportional to 1 / length squared."""
    weights = np.arange(1, longest + 1) ** -_EXPONENT
    probabilities: npt.NDArray[np.float64] = weights / weights.sum()
    return probabilities


class RepeatedNoise:
    """Standard normal noise [T, K, act], each copy's held for a random number of steps."""

    def __init__(self, tasks: int, copies: int, width: int, *, longest: int, generator: np.random.Generator) -> None:
        """Begin with fresh noise.

        Args:
            tasks: T.
            copies: K.
            width: act.
            longest: most steps that noise is held; 1 draws it anew at every step.
            generator: what all is drawn with.
        """
        self._noise = np.zeros((tasks, copies, width), np.float32)
        self._left = np.zeros((tasks, copies), np.int64)
        # Without the last, which is 1 but for rounding.
        self._thresholds = np.cumsum(length_probabilities(longest))[:-1]
        self._generator = generator

    def draw(self) -> FloatArray:
        """Noise [T, K, act] of the next step; overwritten by the next draw."""
        fresh = self._generator.standard_normal(self._noise.shape, np.float32)
        uniform = self._generator.random(self._left.size)
        over = self._left == 0
        np.copyto(self._noise, fresh, where=over[..., None])
        self._left -= 1
        # Drawn from 0 on: the steps that follow this one.
        np.copyto(self._left, self._thresholds.searchsorted(uniform, "right").reshape(over.shape), where=over)
        return self._noise

    def restart(self, ended: BoolArray) -> None:
        """Draw anew at the next step in the copies of ``ended`` [T, K]."""
        np.copyto(self._left, 0, where=ended)
