"""One network's parameters, their gradients and their AdamW, with as few kernels as may be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtray.config import LearnerConfig
from mtray.networks import GroupedHead


@torch.no_grad()
def flatten(parameters: Sequence[Tensor]) -> Tensor:
    """Move parameters into one vector, of which each becomes a view; gives the vector."""
    values = torch.cat([parameter.reshape(-1) for parameter in parameters])
    parts = values.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    return values


def _own(heads: GroupedHead) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return [(layer.weight, layer.bias) for layer in heads.layers]


def tensors_of(shared: Sequence[nn.Parameter], heads: GroupedHead) -> list[Tensor]:
    """What `Part.tensors` is, of a network alike whose parameters nobody differentiates."""
    return [flatten(shared), *(part.detach() for layer in _own(heads) for part in layer)]


class Part:
    """One network's parameters and their AdamW: those shared by all tasks as one vector, the heads' as they are.

    A vector takes one kernel where its parts take one each; the heads grow with the tasks and are large enough alone.
    """

    def __init__(self, shared: Sequence[nn.Parameter], heads: GroupedHead, config: LearnerConfig) -> None:
        """Of a network's shared parameters, which become views of one vector, and its heads."""
        self.heads = _own(heads)
        self.parameters = [*shared, *itertools.chain.from_iterable(self.heads)]
        self.values = nn.Parameter(flatten(shared))
        self.values.grad = torch.zeros_like(self.values)
        own = self.parameters[len(shared) :]
        rate, decay = config.learning_rate, config.weight_decay
        on_gpu = self.values.is_cuda
        self.optimiser = torch.optim.AdamW(
            [self.values, *own], lr=rate, weight_decay=decay, fused=True, capturable=on_gpu
        )
        self.tensors = [self.values.detach(), *(parameter.detach() for parameter in own)]

    def differentiate(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """Fill the parameters' gradients, given the loss's by each of the outputs; nothing else is differentiated.

        Returns:
            [] norm of the shared parameters' gradient, through which every task's passes.
        """
        parts = torch.autograd.grad(outputs, self.parameters, gradients, materialize_grads=True)
        own = len(self.tensors) - 1
        for parameter, part in zip(self.parameters[-own:], parts[-own:], strict=True):
            parameter.grad = part
        assert self.values.grad is not None
        torch.cat([part.reshape(-1) for part in parts[:-own]], out=self.values.grad)
        norm: Tensor = torch.linalg.vector_norm(self.values.grad)
        return norm

    def norms(self, tasks: int) -> Tensor:
        """[T] norm of the last gradient of each task's heads."""
        gradients = [part.grad.flatten(1) for layer in self.heads for part in layer if part.grad is not None]
        norms: Tensor = torch.linalg.vector_norm(torch.cat(gradients, 1), dim=1)
        # Heads lie critic after critic.
        norms = torch.linalg.vector_norm(norms.view(-1, tasks), dim=0)
        return norms
