"""The critic: backbones shared by all tasks, and a head per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtray.config.learner import NetworkConfig
from mtray.data.specs import TaskSpec, action_width, observation_width
from mtray.policy.layers import Backbone, GroupedHead, GroupedLinear, select_tasks


class MultiTaskCritic(nn.Module):
    """C action-value functions over many tasks, each with its own backbone and a head per task.

    The critics share the task embedding only. `mtray.learn.values` decodes their outputs. The heads of all critics are
    one grouped product, ordered by critic, then by task.
    """

    def __init__(self, specs: Sequence[TaskSpec], config: NetworkConfig, outputs: int) -> None:
        """Create the critics; ``outputs`` is the number of outputs of a head."""
        super().__init__()
        tasks, obs, act = len(specs), observation_width(specs), action_width(specs)
        width, blocks = config.sizes.critic_width, config.sizes.critic_blocks
        self.tasks, self.critics = tasks, config.critics
        self.raw_embedding = nn.Parameter(torch.randn(tasks, config.embedding_size))
        self.reads_observation = config.head_reads_observation
        self.adapters = nn.ModuleList(
            GroupedLinear(tasks, obs + act, config.adapter_size) for _ in range(config.critics)
        )
        inputs = obs + act + config.adapter_size + config.embedding_size
        self.backbones = nn.ModuleList(
            Backbone(inputs, width, blocks, output_norm=config.critic_output_norm) for _ in range(config.critics)
        )
        head_inputs = width + (obs if self.reads_observation else 0)
        self.heads = GroupedHead(config.critics * tasks, head_inputs, width, outputs, config.head_layers)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of embedding, adapters and backbones, which are all but those of the heads."""
        return [self.raw_embedding, *self.adapters.parameters(), *self.backbones.parameters()]

    @property
    def embedding(self) -> Tensor:
        """Task embeddings [T, embedding] of unit length."""
        return functional.normalize(self.raw_embedding, dim=-1)

    @torch.no_grad()
    def rescale(
        self, ids: Tensor, ratio: Tensor, rescale: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        """Divide the values of tasks ``ids`` [n] by ``ratio`` [n], with `rescale` of a `ValueKind`."""
        output, heads = self.heads.output, self._head_ids(ids)
        output.weight[heads], output.bias[heads] = rescale(
            output.weight[heads], output.bias[heads], ratio.repeat(self.critics)
        )

    def _head_ids(self, ids: Tensor) -> Tensor:
        return (ids + self.tasks * torch.arange(self.critics, device=ids.device).unsqueeze(-1)).view(-1)

    def forward(self, observation: Tensor, action: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map normalised observations [n, B, obs] and actions [n, B, act] in [-1, 1] to outputs [C, n, B, outputs]."""
        embedding = select_tasks(self.embedding, ids)
        inputs = torch.cat([observation, action], -1)
        features = [
            backbone(torch.cat([inputs, adapter(inputs, ids)], -1), embedding)
            for adapter, backbone in zip(self.adapters, self.backbones, strict=True)
        ]
        if self.reads_observation:
            features = [torch.cat([observation, part], -1) for part in features]
        head_ids = None if ids is None else self._head_ids(ids)
        outputs: Tensor = self.heads(features[0] if len(features) == 1 else torch.cat(features), head_ids)
        return outputs.view(self.critics, *observation.shape[:2], -1)
