"""Shared backbones and per-task heads: the policy and the critic.

The backbone runs once over all tasks' rows. It reads a task's inputs, the task's embedding, and a few linear features
of the inputs that the task has learned for itself (its adapter): columns that mean an angle in one task and a height in
another are of little use to weights that all tasks share. Adapters and heads are each one grouped product: a [T, in,
out] weight per layer and one batched matrix product over the tasks present, so a row meets its own task's weights only
and the cost does not depend on a loop over tasks. A task is known by its exclusive key ``observation_<task>``.

The policy runs in collectors and in a user's hands, the critic in the learner only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import LazyStackedTensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.nn.probabilistic import InteractionType, interaction_type
from torch import Tensor, nn

from mtray.config.settings import NetworkConfig
from mtray.data.schema import task_of
from mtray.data.specs import ACTION, OBSERVATION, UNBOUNDED, TaskSpec, action_width, observation_width, task_key
from mtray.errors import SchemaError
from mtray.policy.layers import Backbone, GroupedHead, GroupedLinear

# Of the log standard deviation (BRO, Nauman et al. 2024).
LOG_STD_LOW = -10.0
LOG_STD_HIGH = 2.0


# Of normalised observations.
INPUT_LIMIT = 10.0


class MultiTaskPolicy(TensorDictModuleBase):
    """A policy over many tasks: one backbone, a head per task; a tanh-Gaussian one, or one mean with noise around it.

    Called with one task's TensorDict, a lazy stack of any subset of tasks in any order, or a batch of such, it
    writes ``action`` (in the task's own bounds and width) and returns what it was given. Under torchrl's
    ``set_exploration_type`` RANDOM draws an action and DETERMINISTIC, MODE or MEAN take the distribution's middle;
    without one, ``deterministic`` decides.
    """

    in_keys = [OBSERVATION]  # noqa: RUF012  (tensordict's modules declare them so)
    out_keys = [ACTION]  # noqa: RUF012

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        config: NetworkConfig,
        *,
        action_noise: float | None = None,
        deterministic: bool = False,
    ) -> None:
        """Build the policy of these tasks; their order is that of the heads.

        Args:
            specs: the tasks.
            config: the networks'.
            action_noise: deviation of the noise around its actions, in half their range; None: heads learn it.
            deterministic: see above.
        """
        super().__init__()
        self.specs = tuple(specs)
        self.names = tuple(spec.name for spec in specs)
        self.config = config
        self.action_noise = action_noise
        self.deterministic = deterministic
        tasks, obs, act = len(specs), observation_width(specs), action_width(specs)
        self.register_buffer("mean", torch.zeros(tasks, obs))
        self.register_buffer("scale", torch.ones(tasks, obs))
        self.register_buffer("embedding", torch.zeros(tasks, config.embedding_size))
        middle, reach, mask = _action_bounds(specs, act)
        self.register_buffer("action_middle", middle)
        self.register_buffer("action_reach", reach)
        self.register_buffer("action_mask", mask)
        inputs = obs + config.adapter_size + config.embedding_size
        self.backbone = Backbone(inputs, config.actor_width, config.actor_blocks, output_norm=config.actor_output_norm)
        self.adapters = GroupedLinear(tasks, obs, config.adapter_size)
        head_inputs = config.actor_width + (obs if config.head_reads_observation else 0)
        outputs = act if action_noise is not None else 2 * act
        self.heads = GroupedHead(tasks, head_inputs, config.actor_width, outputs, config.head_layers)

    mean: Tensor
    scale: Tensor
    embedding: Tensor
    action_middle: Tensor
    action_reach: Tensor
    action_mask: Tensor

    def shared_parameters(self) -> list[nn.Parameter]:
        """All parameters but those of the heads: the tasks' adapters and the backbone."""
        return [*self.adapters.parameters(), *self.backbone.parameters()]

    def normalise(self, observation: Tensor, ids: Tensor | None = None) -> Tensor:
        """[n, B, obs] raw to [n, B, obs] normalised per task and clipped; padding stays zero."""
        mean, scale = self.pick(self.mean, ids), self.pick(self.scale, ids)
        return ((observation - mean) * scale).clamp(-INPUT_LIMIT, INPUT_LIMIT)

    @staticmethod
    def pick(table: Tensor, ids: Tensor | None) -> Tensor:
        """Rows of a per-task table [T, ...] as [n, 1, ...]."""
        return (table if ids is None else table[ids]).unsqueeze(1)

    def outputs(self, observation: Tensor, ids: Tensor | None = None) -> Tensor:
        """The heads' outputs [n, B, act or 2 act] for normalised [n, B, obs]; the first are means before the tanh."""
        embedding = self.pick(self.embedding, ids).expand(-1, observation.shape[1], -1)
        hidden = self.backbone(torch.cat([observation, self.adapters(observation, ids), embedding], -1))
        if self.config.head_reads_observation:
            hidden = torch.cat([observation, hidden], -1)
        outputs: Tensor = self.heads(hidden, ids)
        return outputs

    def distribution(self, observation: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, each [n, B, act], of normalised [n, B, obs]."""
        mean, log_std = self.outputs(observation, ids).chunk(2, -1)
        # Bounded smoothly, as in SpinningUp's successors: a hard clamp has no gradient outside.
        log_std = LOG_STD_LOW + 0.5 * (LOG_STD_HIGH - LOG_STD_LOW) * (torch.tanh(log_std) + 1)
        return mean, log_std

    def act(
        self,
        observation: Tensor,
        ids: Tensor | None = None,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Actions [n, B, act] in the tasks' own bounds, for raw observations [n, B, obs] of tasks ``ids``.

        Unless deterministic they are drawn with standard normal ``noise`` [n, B, act], or with fresh noise.
        """
        observation = self.normalise(observation, ids)
        if self.action_noise is None:
            mean, log_std = self.distribution(observation, ids)
        else:
            mean = self.outputs(observation, ids)
        if deterministic:
            return self.to_bounds(torch.tanh(mean), ids)
        if noise is None:
            noise = torch.empty_like(mean).normal_(generator=generator)
        if self.action_noise is None:
            action = torch.tanh(mean + noise * log_std.exp())
        else:
            action = (torch.tanh(mean) + self.action_noise * noise).clamp(-1, 1)
        return self.to_bounds(action, ids)

    def to_bounds(self, action: Tensor, ids: Tensor | None = None) -> Tensor:
        """From [-1, 1] to the tasks' bounds."""
        middle, reach = self.pick(self.action_middle, ids), self.pick(self.action_reach, ids)
        return torch.addcmul(middle, action, reach)

    def from_bounds(self, action: Tensor, ids: Tensor | None = None) -> Tensor:
        """From the tasks' bounds to [-1, 1]; padding and entries that have one value only become zero."""
        middle, reach = self.pick(self.action_middle, ids), self.pick(self.action_reach, ids)
        mask = self.pick(self.action_mask, ids)
        return (action - middle) / torch.where(mask > 0, reach, 1.0) * mask

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``action`` into a TensorDict of one task or a lazy stack over tasks.

        Raises:
            SchemaError: an element carries none or several of this policy's tasks' keys.
        """
        groups: dict[str, list[TensorDictBase]] = {}
        for leaf in _leaves(tensordict):
            groups.setdefault(self._task_of(leaf), []).append(leaf)
        # The common key is the exclusive one padded to some width; padding that here fits any environment's.
        rows = [torch.cat([self._rows(leaf, name) for leaf in leaves]) for name, leaves in groups.items()]
        observation = self.mean.new_zeros(len(rows), max(map(len, rows)), self.mean.shape[-1])
        for index, part in enumerate(rows):
            observation[index, : len(part), : part.shape[-1]] = part
        ids = torch.tensor([self.names.index(name) for name in groups], device=self.mean.device)
        mode = interaction_type()
        deterministic = self.deterministic if mode is None else mode is not InteractionType.RANDOM
        action = self.act(observation, ids, deterministic=deterministic)
        for index, (name, leaves) in enumerate(groups.items()):
            size = self.specs[self.names.index(name)].action_size
            counts = [math.prod(leaf.batch_size) for leaf in leaves]
            for leaf, part in zip(leaves, action[index, : sum(counts), :size].split(counts), strict=True):
                leaf.set(ACTION, part.reshape(*leaf.batch_size, size))
        return tensordict

    def _task_of(self, leaf: TensorDictBase) -> str:
        try:
            return task_of(leaf, self.names)
        except SchemaError as error:
            if leaf.get(OBSERVATION, None) is None:
                raise
            key = task_key(self.names[0] if len(self.names) == 1 else "<task>")
            raise SchemaError(
                f"{error}; of another environment of a task, copy its observation there first: "
                f"TransformedEnv(env, RenameTransform(['{OBSERVATION}'], ['{key}'], create_copy=True))"
            ) from error

    def _rows(self, leaf: TensorDictBase, name: str) -> Tensor:
        """A task's observations in a TensorDict [...] as [rows, obs_t]."""
        key, size = task_key(name), self.specs[self.names.index(name)].observation_size
        observation: Tensor = leaf.get(key)
        if observation.shape != (*leaf.batch_size, size):
            raise SchemaError(
                f"task {name!r}: {key!r} has shape {tuple(observation.shape)}, expected {(*leaf.batch_size, size)}: "
                f"{size} entries in each row of a TensorDict of batch size {tuple(leaf.batch_size)}"
            )
        return observation.reshape(-1, size)


def _leaves(data: Any) -> Iterator[TensorDictBase]:
    if not isinstance(data, TensorDictBase):
        raise SchemaError(f"a policy takes a TensorDict or a lazy stack of them, not a {type(data).__name__}")
    if isinstance(data, LazyStackedTensorDict):
        for part in data.tensordicts:
            yield from _leaves(part)
    else:
        yield data


def _action_bounds(specs: Sequence[TaskSpec], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Middle, half range and mask [T, act] of actions; masked are padding and entries whose bounds are equal."""
    middle, reach, mask = np.zeros((3, len(specs), width), np.float32)
    reach += 1
    for row, spec in enumerate(specs):
        for column, (low, high) in enumerate(zip(spec.action_low, spec.action_high, strict=True)):
            if low <= -UNBOUNDED and high >= UNBOUNDED:
                low, high = -1.0, 1.0
            centre, half = np.float32((low + high) / 2), np.float32((high - low) / 2)
            # Rounded to float32 the ends may lie a little outside.
            while half > 0 and (float(centre + half) > high or float(centre - half) < low):
                half = max(half - np.spacing(np.float32(max(abs(low), abs(high)))), np.float32(0))
            middle[row, column], reach[row, column], mask[row, column] = centre, half, half > 0
    return torch.from_numpy(middle), torch.from_numpy(reach), torch.from_numpy(mask)
