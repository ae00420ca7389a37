"""One network's parameters, their gradients and their AdamW, with few kernels per update."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtray.config.settings import LearnerConfig
from mtray.policy.layers import GroupedHead


@torch.no_grad()
def flatten(parameters: Sequence[Tensor]) -> Tensor:
    """Move parameters into one vector, make each a view of it, and return the vector."""
    values = torch.cat([parameter.reshape(-1) for parameter in parameters])
    parts = values.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    return values


def _head_parameters(heads: GroupedHead) -> list[nn.Parameter]:
    return list(itertools.chain.from_iterable((layer.weight, layer.bias) for layer in heads.layers))


def tensors_of(shared: Sequence[nn.Parameter], heads: GroupedHead) -> list[Tensor]:
    """Return a network's parameters as `ParameterGroup.tensors` has them: one vector, then the heads'."""
    return [flatten(shared), *(parameter.detach() for parameter in _head_parameters(heads))]


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
        skip: [] float32; while it is 1, steps leave tensors and state as they are. None: no step is skipped.
    """
    on_gpu = tensors[0].is_cuda
    optimiser = torch.optim.AdamW(
        tensors, learning_rate, betas, weight_decay=weight_decay, fused=True, capturable=on_gpu
    )
    # The first step allocates the state, which a recording must find in place: a step that is skipped does so too.
    # On a GPU torch warns of a step outside a CUDA graph, once.
    _skip_with(optimiser, torch.ones_like(tensors[0].view(-1)[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(optimiser, tensors, [torch.zeros_like(tensor) for tensor in tensors])
    _skip_with(optimiser, skip)
    return optimiser


def _skip_with(optimiser: torch.optim.Optimizer, flag: Tensor | None) -> None:
    # The name under which torch's GradScaler hands it to fused optimisers.
    optimiser.found_inf = flag  # type: ignore[attr-defined]


def step(optimiser: torch.optim.Optimizer, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Descend; each gradient has its tensor's shape."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = gradient
    optimiser.step()


def load_moments(optimiser: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Continue from the moments of a saved ``state_dict``, with the learning rate and decay of this run."""
    optimiser.load_state_dict({**optimiser.state_dict(), "state": saved["state"]})


class ParameterGroup:
    """One network's parameters and their AdamW: the shared ones as one vector, the heads' as they are.

    A vector takes one kernel where its parts take one each; the heads grow with the tasks and are large enough alone.

    Attributes:
        tensors: the vector, and each of the heads' parameters.
        gradients: theirs, empty before the first.
        optimiser: of the tensors.
    """

    def __init__(
        self, shared: Sequence[nn.Parameter], heads: GroupedHead, config: LearnerConfig, skip: Tensor | None
    ) -> None:
        """Make a network's shared parameters views of one vector; ``skip`` as in `make_adamw`."""
        self.parameters = [*shared, *_head_parameters(heads)]
        self.tensors = tensors_of(shared, heads)
        self.gradients: list[Tensor] = []
        self.optimiser = make_adamw(self.tensors, config.learning_rate, weight_decay=config.weight_decay, skip=skip)
        self._shared_gradient = torch.zeros_like(self.tensors[0])

    def differentiate(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """Compute the parameters' gradients from the loss's gradients by the outputs.

        Args:
            outputs: [C, n, B, size] of n tasks, and other tensors [n, B] that the loss has a gradient by.
            gradients: as the outputs.

        Returns:
            [] norm of the shared parameters' gradient, through which every task's passes.
        """
        heads = len(self.tensors) - 1
        parts = torch.autograd.grad(outputs, self.parameters, gradients, materialize_grads=True)
        torch.cat([part.reshape(-1) for part in parts[:-heads]], out=self._shared_gradient)
        self.gradients = [self._shared_gradient, *parts[-heads:]]
        norm: Tensor = torch.linalg.vector_norm(self._shared_gradient)
        return norm

    def step(self) -> None:
        """Descend along the last gradients."""
        step(self.optimiser, self.tensors, self.gradients)

    def norms(self, tasks: int) -> Tensor:
        """Return the norm [T] of the last gradient of each task's heads."""
        norms: Tensor = torch.linalg.vector_norm(torch.cat([part.flatten(1) for part in self.gradients[1:]], 1), dim=1)
        # Heads lie critic after critic.
        norms = torch.linalg.vector_norm(norms.view(-1, tasks), dim=0)
        return norms
