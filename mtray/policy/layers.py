"""Layers that policy and critic share: grouped per-task layers, residual backbones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def select_tasks(table: Tensor, ids: Tensor | None) -> Tensor:
    """Return the entries [n, ...] of tasks ``ids`` [n] (None: all) from a table [T, ...]."""
    return table if ids is None else table[ids]


def select_for_rows(table: Tensor, ids: Tensor | None) -> Tensor:
    """Return the same entries as [n, 1, ...], to be broadcast over the rows of a batch."""
    return select_tasks(table, ids).unsqueeze(1)


class GroupedLinear(nn.Module):
    """A linear layer per task, computed as one batched product."""

    def __init__(self, tasks: int, inputs: int, outputs: int, *, scale: float = 1.0) -> None:
        """Initialise each task's weights like torch's Linear, times ``scale``; biases are zero."""
        super().__init__()
        bound = scale * inputs**-0.5
        self.weight = nn.Parameter(torch.empty(tasks, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(tasks, outputs))

    def forward(self, inputs: Tensor, ids: Tensor | None) -> Tensor:
        """Map [n, B, in] to [n, B, out]; ``inputs[i]`` are the rows of task ``ids[i]`` (None: all tasks in order)."""
        return torch.baddbmm(select_for_rows(self.bias, ids), inputs, select_tasks(self.weight, ids))


class GroupedHead(nn.Module):
    """A head per task: ``layers`` hidden layers (Linear-ReLU) and an output layer, each one grouped product."""

    def __init__(self, tasks: int, inputs: int, width: int, outputs: int, layers: int) -> None:
        """Initialise so that outputs are near zero."""
        super().__init__()
        sizes = [inputs, *[width] * layers]
        self.hidden = nn.ModuleList(GroupedLinear(tasks, a, b) for a, b in itertools.pairwise(sizes))
        self.output = GroupedLinear(tasks, sizes[-1], outputs, scale=0.1)

    @property
    def layers(self) -> list[GroupedLinear]:
        """The hidden layers and the output layer."""
        return [*cast("Iterable[GroupedLinear]", self.hidden), self.output]

    def forward(self, inputs: Tensor, ids: Tensor | None) -> Tensor:
        """Map [n, B, in] to [n, B, out]."""
        for layer in self.hidden:
            inputs = functional.relu(layer(inputs, ids))
        outputs: Tensor = self.output(inputs, ids)
        return outputs


def _normed(linear: nn.Module, norm: nn.Module, inputs: Tensor) -> Tensor:
    """Apply a Linear and a LayerNorm, without the overhead of module calls."""
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    inputs = functional.linear(inputs, linear.weight, linear.bias)
    return functional.layer_norm(inputs, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class ResidualBlock(nn.Module):
    """Linear-LayerNorm-ReLU-Linear-LayerNorm beside a skip connection (BRO, Nauman et al. 2024)."""

    def __init__(self, width: int) -> None:
        """Create the layers of a block of this width."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        first, norm, _, second, second_norm = self.layers
        outputs = _normed(second, second_norm, _normed(first, norm, inputs).relu_())
        return outputs.add_(inputs)  # In place: a LayerNorm's gradient does not read its output.


class Backbone(nn.Sequential):
    """Linear-LayerNorm-ReLU, residual blocks and an optional normalisation of the output.

    The output normalisation is that of SimBa (Lee et al. 2025), without parameters. It bounds the features, so that
    large outputs need large weights in the head, which limits overestimation (Hussing et al. 2024, "Dissecting Deep RL
    with High Update Ratios").
    """

    def __init__(self, inputs: int, width: int, blocks: int, *, output_norm: bool) -> None:
        """Create the layers for ``inputs`` columns; the task embedding is the last of them."""
        first = nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU(inplace=True)
        super().__init__(*first, *[ResidualBlock(width) for _ in range(blocks)])
        self.output_norm = output_norm

    def forward(self, inputs: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map [n, B, in] and embedding [n, e] to [n, B, width], or [..., in + e] to [..., width].

        All rows of a task have the same embedding, so its part of the first product is computed once per task.
        """
        first, norm, _, *blocks = self
        assert isinstance(first, nn.Linear)
        if embedding is None or not embedding.shape[-1]:
            rows = first(inputs.flatten(0, -2))
        else:
            by_row, by_task = first.weight.tensor_split([inputs.shape[-1]], 1)
            offset = torch.addmm(first.bias, embedding, by_task.T)
            rows = functional.linear(inputs, by_row).add_(offset.unsqueeze(1)).flatten(0, -2)
        rows = norm(rows).relu_()
        for block in blocks:
            rows = block(rows)
        if self.output_norm:
            rows = functional.layer_norm(rows, rows.shape[-1:])
        outputs: Tensor = rows.view(*inputs.shape[:-1], rows.shape[-1])
        return outputs
