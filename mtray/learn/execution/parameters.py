"""One network's parameters, their gradients and their AdamW, with few kernels per update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mtray.config.learner import LearnerConfig


@torch.no_grad()
def merge_shared(shared: Sequence[nn.Parameter], heads: nn.Module) -> list[Tensor]:
    """Make shared parameters views of one vector; return the vector and each of the heads' parameters, detached."""
    vector = parameters_to_vector(shared)
    vector_to_parameters(vector, shared)
    return [vector, *(parameter.detach() for parameter in heads.parameters())]


def make_adamw(
    tensors: Sequence[Tensor],
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    skip: Tensor | None = None,
) -> torch.optim.AdamW:
    """Return torch's fused AdamW with its state allocated; without weight decay it is Adam.

    Args:
        tensors: on one device.
        learning_rate: constant.
        weight_decay: decoupled from the gradient.
        betas: decay rates of the two moments.
        skip: [] float32; while it is 1, steps change neither tensors nor state. None: no step is skipped.
    """
    optimiser = torch.optim.AdamW(
        tensors, learning_rate, betas, weight_decay=weight_decay, fused=True, capturable=tensors[0].is_cuda
    )
    # A recording needs the state at fixed addresses. A skipped step allocates it and changes nothing.
    _skip_with(optimiser, torch.ones_like(tensors[0].view(-1)[0]))
    with warnings.catch_warnings():
        # On a GPU torch warns of a step outside a CUDA graph.
        warnings.simplefilter("ignore")
        step(optimiser, tensors, [torch.zeros_like(tensor) for tensor in tensors])
    _skip_with(optimiser, skip)
    return optimiser


def _skip_with(optimiser: torch.optim.Optimizer, flag: Tensor | None) -> None:
    # Fused optimisers read this attribute; torch's GradScaler sets it too.
    optimiser.found_inf = flag  # type: ignore[attr-defined]


def step(optimiser: torch.optim.Optimizer, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Make one optimiser step; each gradient has the shape of its tensor."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = gradient
    optimiser.step()


def load_moments(optimiser: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load the moments of a saved ``state_dict``; keep this run's learning rate and weight decay."""
    optimiser.load_state_dict({**optimiser.state_dict(), "state": saved["state"]})


class ParameterGroup:
    """One network's parameters and their AdamW: the shared parameters as one vector, those of the heads apart.

    Operations on a vector take one kernel, on separate tensors one each. The heads' few tensors hold all tasks.

    Attributes:
        tensors: the vector, then each of the heads' parameters.
        gradients: their last gradients; empty before the first.
        ids: tasks with rows in the last update; None for all.
        optimiser: AdamW over the tensors.
    """

    def __init__(
        self, shared: Sequence[nn.Parameter], heads: nn.Module, config: LearnerConfig, skip: Tensor | None
    ) -> None:
        """Make the shared parameters views of one vector; ``skip`` as in `make_adamw`."""
        self.parameters = [*shared, *heads.parameters()]
        self.tensors = merge_shared(shared, heads)
        self.gradients: list[Tensor] = []
        self.ids: Tensor | None = None
        self.optimiser = make_adamw(self.tensors, config.learning_rate, weight_decay=config.weight_decay, skip=skip)

    def differentiate(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Compute the parameters' gradients from the loss's gradients with respect to the outputs.

        Args:
            outputs: tensors that the loss is a function of, such as [C, n, B, size] of a critic.
            gradients: of the same shapes.

        Returns:
            A gradient for each of `tensors`.
        """
        heads = len(self.tensors) - 1
        parts = torch.autograd.grad(outputs, self.parameters, gradients, materialize_grads=True)
        return [torch.cat([part.reshape(-1) for part in parts[:-heads]]), *parts[-heads:]]

    def step(self) -> None:
        """Make one optimiser step with the last gradients."""
        step(self.optimiser, self.tensors, self.gradients)

    def norms(self, tasks: int) -> Tensor:
        """Return the norms [T] of the last gradients of each task's heads; NaN for a task without rows."""
        norms = norms_of(self.gradients[1:], tasks)
        if self.ids is not None:
            norms = torch.full_like(norms, math.nan).index_copy_(0, self.ids, norms[self.ids])
        return norms


def shared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm [] of a network's shared gradient, the first, which every task contributes to."""
    norm: Tensor = torch.linalg.vector_norm(gradients[0])
    return norm


def norms_of(heads: Sequence[Tensor], tasks: int) -> Tensor:
    """Return the norms [T] of the gradients of each task's heads; 0 for a task without rows."""
    by_head = torch.cat([part.flatten(1) for part in heads], 1)
    # Heads are ordered by critic, then by task.
    norms: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(by_head, dim=1).view(-1, tasks), dim=0)
    return norms
