"""Immutable, versioned snapshots of a policy's parameters and buffers.

The learner makes a snapshot as one contiguous float32 array, which Ray shares among the processes of a node without a
copy; collectors copy it into their policy in place. All values are finite. A digest of the layout keeps a snapshot from
being loaded into a policy of other shapes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mtray.data.specs import FloatArray
from mtray.errors import RunError, SchemaError


@dataclass(frozen=True)
class Weights:
    """A policy's parameters and buffers.

    Attributes:
        version: 0 before the first update, then incremented with every snapshot of the learner.
        layout: digest of the tasks and of the tensors' names and shapes, in order.
        values: [N] float32, all tensors flattened and concatenated.
    """

    version: int
    layout: str
    values: FloatArray


def layout_of(module: nn.Module) -> str:
    """Return a digest of a module's tasks (its ``names``) and its parameters' and buffers' names and shapes."""
    shapes = [f"{name}{tuple(tensor.shape)}" for name, tensor in module.state_dict().items()]
    text = ";".join([*getattr(module, "names", ()), *shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def snapshot(module: nn.Module, version: int) -> Weights:
    """Copy a module's parameters and buffers into a snapshot.

    Raises:
        RunError: a value is not finite; the message names the tensor.
    """
    parts = []
    for name, tensor in module.state_dict().items():
        part = tensor.to("cpu", torch.float32).reshape(-1)
        if not bool(torch.isfinite(part).all()):
            raise RunError(f"weights of {name!r} are not finite at version {version}: no snapshot is made of them")
        parts.append(part)
    return Weights(version, layout_of(module), torch.cat(parts).numpy())


@torch.no_grad()
def load(module: nn.Module, weights: Weights) -> None:
    """Copy a snapshot into a module of the same layout.

    Raises:
        SchemaError: the snapshot's layout differs from the module's.
    """
    if weights.layout != layout_of(module):
        raise SchemaError(
            f"weights of layout {weights.layout} do not fit a policy of layout {layout_of(module)}: "
            "tasks, their order and the network's settings must be those of the run that made them"
        )
    start = 0
    for tensor in module.state_dict().values():
        part = weights.values[start : start + tensor.numel()]
        tensor.copy_(torch.from_numpy(np.array(part)).view(tensor.shape))
        start += tensor.numel()
