"""One network's parameters, their gradients and their AdamW, with as few kernels as may be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtray.config.settings import LearnerConfig
from mtray.policy.layers import GroupedHead


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


class AdamW:
    """AdamW (Loshchilov, Hutter 2019, "Decoupled weight decay regularization"); without decay it is Adam.

    torch's own kernel without what torch's optimiser does around it at every step (hooks, checks, a search for what
    lies on which device), which takes longer than the kernel does on networks of this size.
    """

    def __init__(
        self, tensors: Sequence[Tensor], rate: float, decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        """Of tensors on one device."""
        self.tensors = list(tensors)
        self.found_inf: Tensor | None = None
        """[] float32; while it is 1, steps leave everything as it is."""
        self._rate, self._decay, self._betas = rate, decay, betas
        self._means, self._squares = ([torch.zeros_like(tensor) for tensor in tensors] for _ in range(2))
        self._steps = torch.zeros((), device=self.tensors[0].device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Descend; each gradient is as its tensor."""
        steps = [self._steps.add_(1)] * len(self.tensors)
        torch._fused_adamw_(
            self.tensors,
            list(gradients),
            self._means,
            self._squares,
            [],
            steps,
            lr=self._rate,
            weight_decay=self._decay,
            beta1=self._betas[0],
            beta2=self._betas[1],
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            self._steps.sub_(self.found_inf)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, but the tensors."""
        return {"means": self._means, "squares": self._squares, "steps": self._steps}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        known = zip([*self._means, *self._squares], [*state["means"], *state["squares"]], strict=True)
        for mine, saved in known:
            mine.copy_(saved)
        self._steps.copy_(state["steps"])


class Part:
    """One network's parameters and their AdamW: those shared by all tasks as one vector, the heads' as they are.

    A vector takes one kernel where its parts take one each; the heads grow with the tasks and are large enough alone.

    Attributes:
        tensors: the vector, and each of the heads' parameters.
        gradients: theirs, empty before the first.
    """

    def __init__(self, shared: Sequence[nn.Parameter], heads: GroupedHead, config: LearnerConfig) -> None:
        """Of a network's shared parameters, which become views of one vector, and its heads."""
        own = list(itertools.chain.from_iterable(_own(heads)))
        self.parameters = [*shared, *own]
        self.tensors = [flatten(shared), *(parameter.detach() for parameter in own)]
        self.gradients: list[Tensor] = []
        self.optimiser = AdamW(self.tensors, config.learning_rate, config.weight_decay)
        self._shared_gradient = torch.zeros_like(self.tensors[0])

    def differentiate(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """Find the parameters' gradients, given the loss's by each of the outputs; nothing else is differentiated.

        Args:
            outputs: [C, n, B, size] of n tasks, and what else the loss has a gradient by, [n, B] each.
            gradients: as the outputs.

        Returns:
            [] norm of the shared parameters' gradient, through which every task's passes.
        """
        own = len(self.tensors) - 1
        parts = torch.autograd.grad(outputs, self.parameters, gradients, materialize_grads=True)
        torch.cat([part.reshape(-1) for part in parts[:-own]], out=self._shared_gradient)
        self.gradients = [self._shared_gradient, *parts[-own:]]
        norm: Tensor = torch.linalg.vector_norm(self._shared_gradient)
        return norm

    def step(self) -> None:
        """Descend along the last gradients."""
        self.optimiser.step(self.gradients)

    def norms(self, tasks: int) -> Tensor:
        """[T] norm of the last gradient of each task's heads."""
        norms: Tensor = torch.linalg.vector_norm(torch.cat([part.flatten(1) for part in self.gradients[1:]], 1), dim=1)
        # Heads lie critic after critic.
        norms = torch.linalg.vector_norm(norms.view(-1, tasks), dim=0)
        return norms
