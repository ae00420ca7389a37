"""The critic: backbones that all tasks share, a head per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtray.config.settings import NetworkConfig
from mtray.data.specs import TaskSpec, action_width, observation_width
from mtray.policy.layers import Backbone, GroupedHead, GroupedLinear


class Rescaling(Protocol):
    """Rescales the values that an output layer encodes."""

    def rescale(self, weight: Tensor, bias: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight [k, in, size] and bias [k, size] whose values are divided by ratio [k]."""
        ...


class MultiTaskCritic(nn.Module):
    """Action-value functions over many tasks: C backbones, a head per task on each.

    `mtray.learn.values` decodes their outputs. They share only the task embedding. All heads are one grouped product,
    critic after critic.
    """

    def __init__(self, specs: Sequence[TaskSpec], config: NetworkConfig, outputs: int) -> None:
        """Build the critics; heads are in the order of the tasks."""
        super().__init__()
        tasks, obs, act = len(specs), observation_width(specs), action_width(specs)
        self.tasks, self.critics = tasks, config.critics
        self.raw_embedding = nn.Parameter(torch.randn(tasks, config.embedding_size))
        self.reads_observation = config.head_reads_observation
        self.adapters = nn.ModuleList(
            GroupedLinear(tasks, obs + act, config.adapter_size) for _ in range(config.critics)
        )
        inputs = obs + act + config.adapter_size + config.embedding_size
        self.backbones = nn.ModuleList(
            Backbone(inputs, config.critic_width, config.critic_blocks, output_norm=config.critic_output_norm)
            for _ in range(config.critics)
        )
        head_inputs = config.critic_width + (obs if self.reads_observation else 0)
        self.heads = GroupedHead(config.critics * tasks, head_inputs, config.critic_width, outputs, config.head_layers)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but the heads': the tasks' embeddings and adapters, and the backbones."""
        return [self.raw_embedding, *self.adapters.parameters(), *self.backbones.parameters()]

    @property
    def embedding(self) -> Tensor:
        """[T, embedding], each of unit length."""
        return functional.normalize(self.raw_embedding, dim=-1)

    @torch.no_grad()
    def rescale(self, ids: Tensor, ratio: Tensor, kind: Rescaling) -> None:
        """Divide the values of tasks ``ids`` [n] by ``ratio`` [n]."""
        output, rows = self.heads.output, self._head_rows(ids)
        weight, bias = kind.rescale(output.weight[rows], output.bias[rows], ratio.repeat(self.critics))
        output.weight[rows], output.bias[rows] = weight, bias

    def _head_rows(self, ids: Tensor) -> Tensor:
        return (ids + self.tasks * torch.arange(self.critics, device=ids.device).unsqueeze(-1)).view(-1)

    def forward(self, observation: Tensor, action: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map normalised observations [n, B, obs] and actions [n, B, act] in [-1, 1] to outputs [C, n, B, outputs]."""
        embedding = self.embedding if ids is None else self.embedding[ids]
        inputs = torch.cat([observation, action], -1)
        parts = [
            backbone(torch.cat([inputs, adapter(inputs, ids)], -1), embedding)
            for adapter, backbone in zip(self.adapters, self.backbones, strict=True)
        ]
        if self.reads_observation:
            parts = [torch.cat([observation, part], -1) for part in parts]
        rows = None if ids is None else self._head_rows(ids)
        outputs: Tensor = self.heads(parts[0] if len(parts) == 1 else torch.cat(parts), rows)
        return outputs.view(self.critics, *observation.shape[:2], -1)
