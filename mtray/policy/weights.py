"""One immutable, versioned snapshot of a policy's numbers.

Leaves the learner as one contiguous float32 array (which Ray hands to every process of a node without a copy);
enters a collector's policy in place. A snapshot names the layout it was made of, so that it can't be loaded into
a policy of another shape, and it is finite: numbers that are not never leave the learner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mtray.data.specs import FloatArray
from mtray.errors import RunError, SchemaError


@dataclass(frozen=True)
class Weights:
    """A policy's parameters and buffers as one [numbers] float32 array.

    Attributes:
        version: 0 before the first update, then one more with every snapshot that the learner gives out.
        layout: digest of the tasks, and of the tensors' names and shapes, in their order.
        values: the numbers.
    """

    version: int
    layout: str
    values: FloatArray


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return iter(module.state_dict(keep_vars=True).items())


def layout_of(module: nn.Module) -> str:
    """Digest of a module's tasks in their order (its ``names``) and its parameters' and buffers' names and shapes."""
    shapes = [f"{name}{tuple(value.shape)}" for name, value in _tensors(module)]
    text = ";".join([*getattr(module, "names", ()), *shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def snapshot(module: nn.Module, version: int) -> Weights:
    """Copy a module's parameters and buffers out.

    Raises:
        RunError: a number is not finite; the message names the tensor.
    """
    parts = []
    for name, tensor in _tensors(module):
        part = tensor.detach().to("cpu", torch.float32).reshape(-1)
        if not bool(torch.isfinite(part).all()):
            raise RunError(f"weights of {name!r} are not finite at version {version}: they are not given out")
        parts.append(part)
    return Weights(version, layout_of(module), torch.cat(parts).numpy().copy())


@torch.no_grad()
def load(module: nn.Module, weights: Weights) -> None:
    """Copy a snapshot into a module of the same layout.

    Raises:
        SchemaError: the snapshot was made of a module of another layout.
    """
    if weights.layout != layout_of(module):
        raise SchemaError(
            f"weights of layout {weights.layout} do not fit a policy of layout {layout_of(module)}: "
            "tasks, their order and the network's settings must be those of the run that made them"
        )
    start = 0
    for _, tensor in _tensors(module):
        part = weights.values[start : start + tensor.numel()]
        tensor.copy_(torch.from_numpy(np.array(part)).view(tensor.shape))
        start += tensor.numel()
