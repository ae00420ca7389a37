"""Immutable, versioned snapshots of a policy's parameters and buffers.

The learner makes a snapshot as one contiguous float32 array, which Ray shares among the processes of a node without a
copy; collectors and the evaluator copy it into arrays of their own (`mtray.policy.layout`), as they have no torch. All
values are finite. A digest of the layout keeps a snapshot from being taken for that of a policy of other shapes.
"""

from __future__ import annotations

import torch
from torch import nn

from mtray.errors import RunError
from mtray.policy.layout import Weights, digest


def layout_of(module: nn.Module) -> str:
    """Return a digest of a module's tasks (its ``names``) and its parameters' and buffers' names and shapes."""
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    return digest(getattr(module, "names", ()), shapes)


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
