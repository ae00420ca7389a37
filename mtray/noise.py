"""Exploration noise that is held for a while: what a collector draws its actions with.

Enters: which copies start anew. Leaves: standard normal noise for `MultiTaskPolicy.act`. Independent noise at every
step averages out before a body has moved; the same noise held for a few steps does not. How long is drawn anew each
time, mostly one step and rarely many, so that no time scale is singled out.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Exponent of the zeta distribution of the runs' lengths (Dabney, Ostrovski, Barreto 2021, "Temporally-extended
# epsilon-greedy exploration"; FlashSAC holds a Gaussian policy's noise so).
_EXPONENT = 2.0


def length_probabilities(longest: int) -> Tensor:
    """[longest] probabilities of the lengths 1, 2, ...: proportional to 1 / length squared."""
    weights = torch.arange(1, longest + 1, dtype=torch.float64) ** -_EXPONENT
    return weights / weights.sum()


class RepeatedNoise:
    """Standard normal noise [T, K, act], each copy's held for a random number of steps."""

    def __init__(self, tasks: int, copies: int, width: int, *, longest: int, generator: torch.Generator) -> None:
        """Begin with fresh noise.

        Args:
            tasks: T.
            copies: K.
            width: act.
            longest: most steps that noise is held; 1 draws it anew at every step.
            generator: what all is drawn with.
        """
        self._noise = torch.zeros(tasks, copies, width)
        self._left = torch.zeros(tasks, copies, dtype=torch.int64)
        self._probabilities = length_probabilities(longest)
        self._generator = generator

    def draw(self) -> Tensor:
        """Noise [T, K, act] of the next step; overwritten by the next draw."""
        fresh = torch.empty_like(self._noise).normal_(generator=self._generator)
        drawn = torch.multinomial(self._probabilities, self._left.numel(), True, generator=self._generator)
        over = self._left == 0
        torch.where(over.unsqueeze(-1), fresh, self._noise, out=self._noise)
        # Drawn from 0 on: the steps that follow this one.
        self._left = torch.where(over, drawn.view_as(self._left), self._left - 1)
        return self._noise

    def restart(self, ended: Tensor) -> None:
        """Draw anew at the next step in the copies of ``ended`` [T, K] bool."""
        self._left.masked_fill_(ended, 0)
