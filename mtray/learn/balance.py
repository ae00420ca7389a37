"""Weights of the tasks' critic losses that give every task an equal say in the layers they share.

A task whose rows resemble each other, such as standing still, has a gradient that adds up over them, and AdamW divides
by the size of the sum over all tasks: the others then hardly move the shared layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Step size of the norms' moving averages, per update.
_STEP = 1e-3
# Limits of a task's weight before they are divided by their mean.
_LEAST, _MOST = 0.1, 10.0


class Balance:
    """Weights of mean 1, inversely proportional to moving averages of the norms of each head's gradient.

    Chen, Badrinarayanan, Lee, Rabinovich 2018, "GradNorm", with all tasks at one rate and the weights in closed form.
    The heads themselves are not affected, since AdamW divides by a gradient's size.

    Attributes:
        weights: [T], of the next update; set in place.
    """

    def __init__(self, tasks: int, device: torch.device) -> None:
        """Start with equal weights."""
        self.weights = torch.ones(tasks, device=device)
        # Of unweighted losses; zero before the first.
        self._norms = torch.zeros(tasks, device=device)

    @torch.no_grad()
    def add(self, norms: Tensor, skip: Tensor) -> None:
        """Take the norms [T] of an update's gradients, with these weights; 0 for a task without rows.

        ``skip`` [] is 1 if the update was not made: then nothing changes.
        """
        norms = norms / self.weights
        averages = torch.where(self._norms > 0, torch.lerp(self._norms, norms, _STEP), norms)
        self._norms.copy_(torch.where((norms > 0) & norms.isfinite() & (skip == 0), averages, self._norms))
        self._weigh()

    def _weigh(self) -> None:
        # A task that had no gradient yet counts as the mean of the others.
        mean = self._norms.sum() / (self._norms > 0).sum().clamp_min(1)
        weights = torch.where(self._norms > 0, mean / self._norms, 1.0).clamp_(_LEAST, _MOST)
        self.weights.copy_(weights / weights.mean())

    def state(self) -> Tensor:
        """Return the norms [T], which the weights follow from."""
        return self._norms

    def load_state(self, norms: Tensor) -> None:
        """Load what `state` returned."""
        self._norms.copy_(norms)
        self._weigh()
