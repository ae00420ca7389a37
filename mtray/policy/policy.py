"""The policy: a backbone shared by all tasks, and an adapter and a head per task.

One call of the backbone handles the rows of all tasks. It reads a task's observation, the task's embedding, and a few
linear features of the observation that are learned per task (the adapter), since the same column can be an angle in one
task and a height in another. Adapters and heads are grouped: each layer has a [T, in, out] weight and runs as one
batched matrix product over the tasks of the batch. A task is recognised by its exclusive key ``observation_<task>``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import LazyStackedTensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.nn.probabilistic import InteractionType, interaction_type
from torch import Tensor, nn

from mtray.config.learner import NetworkConfig
from mtray.data.schema import task_of
from mtray.data.specs import ACTION, OBSERVATION, TaskSpec, observation_width, task_key
from mtray.errors import SchemaError
from mtray.policy.layers import Backbone, GroupedHead, GroupedLinear, select_for_rows
from mtray.policy.layout import INPUT_LIMIT, LOG_STD_HIGH, LOG_STD_LOW, PolicyLayout, action_bounds


class MultiTaskPolicy(TensorDictModuleBase):
    """A tanh-Gaussian policy over many tasks, or a deterministic one with Gaussian noise added to its actions.

    Called with one task's TensorDict, a lazy stack of any subset of tasks in any order, or a batch of these, it
    writes ``action`` (in the task's bounds and width) and returns its argument. Under torchrl's
    ``set_exploration_type``, RANDOM draws an action, and DETERMINISTIC, MODE and MEAN take the tanh of the mean;
    without a type, ``deterministic`` decides.
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
        """Create the policy.

        Args:
            specs: the tasks, in the order of the heads.
            config: network settings.
            action_noise: standard deviation of the noise added to actions, in units of half the action range; None for
                a tanh-Gaussian policy, whose heads learn the deviation.
            deterministic: whether actions are deterministic when no exploration type is set.
        """
        super().__init__()
        self.specs = tuple(specs)
        self.names = tuple(spec.name for spec in specs)
        self.config = config
        self.action_noise = action_noise
        self.deterministic = deterministic
        tasks, obs = len(specs), observation_width(specs)
        width, blocks = config.sizes.actor_width, config.sizes.actor_blocks
        self.mean = nn.Buffer(torch.zeros(tasks, obs))
        self.scale = nn.Buffer(torch.ones(tasks, obs))
        self.embedding = nn.Buffer(torch.zeros(tasks, config.embedding_size))
        self.action_middle, self.action_reach, self.action_mask = (
            nn.Buffer(torch.from_numpy(bounds)) for bounds in action_bounds(specs)
        )
        inputs = obs + config.adapter_size + config.embedding_size
        self.backbone = Backbone(inputs, width, blocks, output_norm=config.actor_output_norm)
        self.adapters = GroupedLinear(tasks, obs, config.adapter_size)
        head_inputs = width + (obs if config.head_reads_observation else 0)
        self.heads = GroupedHead(tasks, head_inputs, width, self.layout.head_outputs, config.head_layers)

    @property
    def layout(self) -> PolicyLayout:
        """What its state holds."""
        return PolicyLayout(self.specs, self.config, self.action_noise)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of adapters and backbone, which are all but those of the heads."""
        return [*self.adapters.parameters(), *self.backbone.parameters()]

    def normalise(self, observation: Tensor, ids: Tensor | None = None) -> Tensor:
        """Normalise observations [n, B, obs] by their task's statistics and clip them; padding stays zero."""
        mean, scale = select_for_rows(self.mean, ids), select_for_rows(self.scale, ids)
        return ((observation - mean) * scale).clamp(-INPUT_LIMIT, INPUT_LIMIT)

    def outputs(self, observation: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map normalised observations [n, B, obs] to means before the tanh [n, B, act].

        Heads that learn the deviation append its raw values: [n, B, 2 act].
        """
        embedding = select_for_rows(self.embedding, ids).expand(-1, observation.shape[1], -1)
        hidden = self.backbone(torch.cat([observation, self.adapters(observation, ids), embedding], -1))
        if self.config.head_reads_observation:
            hidden = torch.cat([observation, hidden], -1)
        outputs: Tensor = self.heads(hidden, ids)
        return outputs

    def distribution(self, observation: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map normalised observations [n, B, obs] to mean and log deviation before the tanh, each [n, B, act]."""
        mean, log_std = self.outputs(observation, ids).chunk(2, -1)
        # Bounded by a tanh: a hard clamp has no gradient outside its bounds.
        log_std = LOG_STD_LOW + 0.5 * (LOG_STD_HIGH - LOG_STD_LOW) * (torch.tanh(log_std) + 1)
        return mean, log_std

    def act(
        self,
        observation: Tensor,
        ids: Tensor | None = None,
        *,
        deterministic: bool = False,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return actions [n, B, act] in the tasks' bounds, for raw observations [n, B, obs] of tasks ``ids``.

        ``noise`` [n, B, act] is standard normal, by default drawn here; deterministic actions use none.
        """
        observation = self.normalise(observation, ids)
        if self.action_noise is None:
            mean, log_std = self.distribution(observation, ids)
        else:
            mean = self.outputs(observation, ids)
        if deterministic:
            return self.to_bounds(torch.tanh(mean), ids)
        if noise is None:
            noise = torch.randn_like(mean)
        if self.action_noise is None:
            action = torch.tanh(mean + noise * log_std.exp())
        else:
            action = (torch.tanh(mean) + self.action_noise * noise).clamp(-1, 1)
        return self.to_bounds(action, ids)

    def to_bounds(self, action: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scale actions [n, B, act] from [-1, 1] to the tasks' bounds."""
        return torch.addcmul(select_for_rows(self.action_middle, ids), action, select_for_rows(self.action_reach, ids))

    def from_bounds(self, action: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scale actions from the tasks' bounds to [-1, 1]; padding and entries with equal bounds become zero."""
        middle, half_range, mask = (
            select_for_rows(table, ids) for table in (self.action_middle, self.action_reach, self.action_mask)
        )
        return (action - middle) / torch.where(mask > 0, half_range, 1.0) * mask

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``action`` into a TensorDict of one task or a lazy stack over tasks.

        Raises:
            SchemaError: an element has the key of no task of this policy, the keys of several tasks, or an observation
                of another shape.
        """
        groups: dict[str, list[TensorDictBase]] = {}
        for leaf in _leaves(tensordict):
            groups.setdefault(self._task_of(leaf), []).append(leaf)
        # The exclusive key is padded here, since environments pad the common key to different widths.
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
                f"{error}; if another environment of a task made this data, copy its observation to that key: "
                f"TransformedEnv(env, RenameTransform(['{OBSERVATION}'], ['{key}'], create_copy=True))"
            ) from error

    def _rows(self, leaf: TensorDictBase, name: str) -> Tensor:
        """Return a task's observations in a TensorDict of any batch size as [rows, obs]."""
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
