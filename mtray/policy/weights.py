"""Immutable, versioned snapshots of a policy's parameters and buffers.

The learner makes a snapshot as one contiguous float32 array, which Ray shares among the processes of a node without a
copy; collectors copy it into arrays of their own (`mtray.policy.layout`), as they have no torch. All values are finite.
A digest of the layout keeps a snapshot from being loaded into a policy of other shapes.
"""

from __future__ import annotations

import torch
from torch import nn

from mtray.errors import RunError
from mtray.policy.layout import Weights, check_layout, cut, digest


def layout_of(module: nn.Module) -> str:
    """Return a digest of a module's tasks (its ``names``) and its parameters' and buffers' names and shapes."""
    return digest(getattr(module, "names", ()), _shapes(module))


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
    check_layout(weights, layout_of(module))
    parts = cut(weights, _shapes(module))
    for name, tensor in module.state_dict().items():
        tensor.copy_(torch.from_numpy(parts[name].copy()))


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
