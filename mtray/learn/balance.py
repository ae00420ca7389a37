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
    def after(self, norms: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Return `tensors` after an update; nothing is changed.

        Args:
            norms: [T], of the update's gradients, with these weights; 0 for a task without rows.
            skip: [], 1 if the update is not made: then nothing changes.
        """
        norms = norms / self.weights
        averages = torch.where(self._norms > 0, torch.lerp(self._norms, norms, _STEP), norms)
        averages = torch.where((norms > 0) & norms.isfinite() & (skip == 0), averages, self._norms)
        return averages, _weights_for(averages)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Moving averages of the norms [T], and the weights; set in place."""
        return self._norms, self.weights

    def state(self) -> Tensor:
        """Return the norms [T], which the weights follow from."""
        return self._norms

    def load_state(self, norms: Tensor) -> None:
        """Load what `state` returned."""
        self._norms.copy_(norms)
        self.weights.copy_(_weights_for(self._norms))


def _weights_for(norms: Tensor) -> Tensor:
    """Return weights [T] of mean 1 for averages of norms [T]."""
    # A task that had no gradient yet counts as the mean of the others.
    mean = norms.sum() / (norms > 0).sum().clamp_min(1)
    weights = torch.where(norms > 0, mean / norms, 1.0).clamp_(_LEAST, _MOST)
    return weights / weights.mean()
