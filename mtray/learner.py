"""The learner: multi-task soft actor-critic with a categorical critic.

Enters: batches over tasks and the statistics the replay keeps. Leaves: versioned weights. Runs in one actor of the
cluster (or in a plain test). Every task has a discount, a temperature and a reward scale of its own; rewards are
divided by the scale when a batch is used, so old rows never go stale.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from mtray import losses
from mtray import weights as weights_module
from mtray.batches import Batch
from mtray.config import LearnerConfig, NetworkConfig
from mtray.errors import RunError
from mtray.messages import TaskStatistics
from mtray.networks import GroupedHead, MultiTaskCritic, MultiTaskPolicy
from mtray.specs import TaskSpec
from mtray.weights import Weights

# A reward scale is taken over once it has moved by this much. Stretching a head's logits blurs them a little, so not at
# every step of a scale that creeps.
_SCALE_STEP = 0.02


def discount_of(spec: TaskSpec) -> float:
    """A task's discount: of an episode's n agent steps, clip((n/5 - 1) / (n/5), 0.95, 0.995); 0.99 without a limit.

    Hansen, Su, Wang 2024, "TD-MPC2", appendix.
    """
    if spec.horizon is None:
        return 0.99
    fifth = spec.horizon / spec.action_repeat / 5
    return min(0.995, max(0.95, (fifth - 1) / fifth))


def _check_finite(batch: Batch) -> None:
    parts = (batch.observation, batch.next_observation, batch.action, batch.reward)
    # The sum of finite float32 data overflows only where a value is beyond any simulator's range as well.
    sums = torch.stack([part.flatten(1).sum(-1) for part in parts])
    if not bool(sums.isfinite().all()):
        bad = [task for task, good in zip(batch.tasks, sums.isfinite().all(0).tolist(), strict=True) if not good]
        raise RunError(f"data of {', '.join(bad)} is not finite: no update is made with it")


@dataclass(frozen=True)
class _Scales:
    """What an update scales by, each [n, 1]."""

    reward: Tensor
    temperature: Tensor


@torch.no_grad()
def _flatten(parameters: Sequence[Tensor]) -> Tensor:
    """Move parameters into one vector, of which each becomes a view; gives the vector."""
    values = torch.cat([parameter.reshape(-1) for parameter in parameters])
    parts = values.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    return values


class _Part:
    """One network's parameters and their AdamW: those shared by all tasks as one vector, the heads' as they are.

    A vector takes one kernel where its parts take one each; the heads grow with the tasks and are large enough alone.
    """

    def __init__(self, shared: Sequence[nn.Parameter], heads: GroupedHead, config: LearnerConfig) -> None:
        self.heads = [(layer.weight, layer.bias) for layer in heads.layers]
        self.parameters = [*shared, *itertools.chain.from_iterable(self.heads)]
        self.values = nn.Parameter(_flatten(shared))
        self.values.grad = torch.zeros_like(self.values)
        own = self.parameters[len(shared) :]
        rate, decay = config.learning_rate, config.weight_decay
        self.optimiser = torch.optim.AdamW([self.values, *own], lr=rate, weight_decay=decay, fused=True)
        self.tensors = [self.values.detach(), *(parameter.detach() for parameter in own)]

    def step(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], loss: Tensor) -> None:
        """Descend, given the loss's gradient by each of the outputs; nothing else is differentiated.

        Raises:
            _NotFiniteError: the loss or its gradient is not finite; the parameters stay as they are.
        """
        parts = torch.autograd.grad(outputs, self.parameters, gradients, materialize_grads=True)
        own = len(self.tensors) - 1
        for parameter, part in zip(self.parameters[-own:], parts[-own:], strict=True):
            parameter.grad = part
        assert self.values.grad is not None
        torch.cat([part.reshape(-1) for part in parts[:-own]], out=self.values.grad)
        # One number and one wait for the device. Every task's gradient passes through the shared layers.
        if not math.isfinite((torch.linalg.vector_norm(self.values.grad) + loss.sum()).item()):
            raise _NotFiniteError(loss)
        self.optimiser.step()

    def norms(self, tasks: int) -> Tensor:
        """[T] norm of the last gradient of each task's heads."""
        gradients = [part.grad.flatten(1) for layer in self.heads for part in layer if part.grad is not None]
        norms: Tensor = torch.linalg.vector_norm(torch.cat(gradients, 1), dim=1)
        # Heads lie critic after critic.
        norms = torch.linalg.vector_norm(norms.view(-1, tasks), dim=0)
        return norms


class _NotFiniteError(Exception):
    """A loss [n], one per task, or its gradient is not finite."""

    def __init__(self, loss: Tensor) -> None:
        super().__init__()
        self.loss = loss


class Learner:
    """Backbones, heads, optimisers, and the update that moves them."""

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        network: NetworkConfig,
        config: LearnerConfig,
        *,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        """Build everything on the device; the same seed gives the same numbers."""
        self.specs = tuple(specs)
        self.config = config
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = MultiTaskPolicy(specs, network).to(self.device)
            self.critic = MultiTaskCritic(specs, network, config.atoms).to(self.device)
        self.policy.requires_grad_(True)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self._generator = torch.Generator(self.device).manual_seed(seed)
        tasks = len(specs)
        self.log_temperature = nn.Parameter(
            torch.full((tasks,), float(config.initial_temperature), device=self.device).log()
        )
        self.discount = torch.tensor([discount_of(spec) for spec in specs], device=self.device)
        self.target_entropy = torch.tensor([-spec.action_size / 2 for spec in specs], device=self.device)
        self.loss_weight = torch.tensor(config.weight_of_losses([spec.name for spec in specs]), device=self.device)
        self.largest_return = torch.zeros(tasks, device=self.device)
        self.reward_scale = self._wanted_scale()
        self.atoms = losses.support(config.atoms, config.value_limit, self.device)
        self._critic_part = _Part(self.critic.shared_parameters(), self.critic.heads, config)
        self._actor_part = _Part(self.policy.shared_parameters(), self.policy.heads, config)
        heads = [part for layer in self.target.heads.layers for part in (layer.weight, layer.bias)]
        self._target_tensors = [_flatten(self.target.shared_parameters()), *(part.detach() for part in heads)]
        self._temperature_optimiser = torch.optim.Adam(
            [self.log_temperature], lr=config.temperature_learning_rate, betas=(0.5, 0.999), fused=True
        )
        self.updates = 0
        self.version = 0
        self._task_updates = torch.zeros(tasks, device=self.device, dtype=torch.float64)
        self._last: dict[str, Tensor] = {}
        self._share_embedding()

    def set_statistics(self, statistics: Mapping[str, TaskStatistics]) -> None:
        """Take over what the replay knows of each task: the inputs' mean and deviation, the largest return.

        Where the reward scale follows, the critic's heads keep their values in rewards (van Hasselt et al. 2016,
        "Learning values across many orders of magnitude", PopArt, here for a categorical head).
        """
        for index, spec in enumerate(self.specs):
            known = statistics.get(spec.name)
            if known is None or known.count < 2:
                continue
            width = spec.observation_size
            deviation = torch.from_numpy((known.square / (known.count - 1) + 1e-6) ** 0.5)
            self.policy.mean[index, :width] = torch.from_numpy(known.mean).to(self.policy.mean)
            self.policy.scale[index, :width] = (1 / deviation).to(self.policy.scale)
            self.largest_return[index] = known.largest_return
        wanted = self._wanted_scale()
        if not self.updates:
            self.reward_scale = wanted
            return
        ratio = wanted / self.reward_scale
        moved = (ratio.log().abs() > _SCALE_STEP).nonzero().squeeze(1)
        if len(moved):
            for critic in (self.critic, self.target):
                critic.rescale(moved, ratio[moved], self.atoms)
            self.reward_scale[moved] = wanted[moved]

    def _wanted_scale(self) -> Tensor:
        temperature = self.log_temperature.detach().exp()
        limit = self.config.value_limit
        return losses.reward_scale(self.largest_return, temperature, self.target_entropy, self.discount, limit)

    def update(self, batch: Batch | TensorDictBase) -> None:
        """One update on a batch over any subset of tasks, dense or as a lazy stack.

        Raises:
            SchemaError: the batch does not fit its tasks.
            RunError: a task's data is not finite, and nothing was changed; or the loss or gradient of the critic or the
            actor is not, and no weights were changed with it.
        """
        if not isinstance(batch, Batch):
            batch = Batch.from_stack(batch, self.specs)
        batch = batch.to(self.device)
        _check_finite(batch)
        ids = self._ids(batch.tasks)
        observation = self.policy.normalise(batch.observation, ids)
        scales = _Scales(self._rows(self.reward_scale, ids), self._rows(self.log_temperature.detach().exp(), ids))
        name, part = "critic", self._critic_part
        try:
            self._update_critic(batch, observation, ids, scales)
            if self.updates % self.config.actor_period == 0:
                name, part = "actor", self._actor_part
                self._update_actor(observation, ids, scales)
        except _NotFiniteError as error:
            good = part.norms(len(self.specs)).isfinite()
            good = (good if ids is None else good[ids]) & error.loss.isfinite()
            bad = [task for task, fine in zip(batch.tasks, good.tolist(), strict=True) if not fine] or batch.tasks
            raise RunError(
                f"the {name}'s loss of {', '.join(bad)} or its gradient is not finite at update {self.updates}: "
                f"the {name}'s weights stay as they were"
            ) from None
        torch._foreach_lerp_(self._target_tensors, self._critic_part.tensors, self.config.polyak)
        self._task_updates += 1 if ids is None else self._task_updates.new_zeros(len(self.specs)).index_fill(0, ids, 1)
        self.updates += 1

    def _ids(self, tasks: tuple[str, ...]) -> Tensor | None:
        names = tuple(spec.name for spec in self.specs)
        return None if tasks == names else torch.tensor([names.index(task) for task in tasks], device=self.device)

    def _rows(self, table: Tensor, ids: Tensor | None) -> Tensor:
        return (table if ids is None else table[ids]).unsqueeze(-1)

    def _sample(self, observation: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy.distribution(observation, ids)
        noise = torch.empty_like(mean).normal_(generator=self._generator)
        mask = self.policy.pick(self.policy.action_mask, ids)
        return losses.tanh_gaussian_sample(mean, log_std, noise, mask)

    def _update_critic(self, batch: Batch, observation: Tensor, ids: Tensor | None, scales: _Scales) -> None:
        with torch.no_grad():
            reached = self.policy.normalise(batch.next_observation, ids)
            action_tp1, log_density_tp1 = self._sample(reached, ids)
            probabilities = self.target(reached, action_tp1, ids).softmax(-1)
            _, probabilities_tp1 = losses.most_pessimistic(probabilities @ self.atoms, probabilities)
            target = losses.soft_target(
                probabilities_tp1,
                batch.reward / scales.reward,
                batch.flag("terminated"),
                self._rows(self.discount, ids),
                -scales.temperature / scales.reward * log_density_tp1,
                self.atoms,
            )
            action = self.policy.from_bounds(batch.action, ids)
        logits = self.critic(observation, action, ids)
        loss, gradient = losses.cross_entropy_gradient(logits.detach(), target)
        gradient.mul_((self._rows(self.loss_weight, ids) / target[..., 0].numel()).unsqueeze(-1))
        loss = loss.sum(0).mean(-1)
        self._critic_part.step([logits], [gradient], loss)
        self._share_embedding()
        self._note(ids, critic_loss=loss)

    def _update_actor(self, observation: Tensor, ids: Tensor | None, scales: _Scales) -> None:
        action, log_density = self._sample(observation, ids)
        logits = self.critic(observation, action, ids)
        values, gradient = losses.expected_value_gradient(logits.detach(), self.atoms)
        value = values[0] if len(values) == 1 else values.amin(0)
        if len(values) > 1:
            # Ties are as good as never: each row's gradient goes through the critic that counts.
            gradient.mul_((values == value).unsqueeze(-1))
        entropy_weight = (scales.temperature / scales.reward).expand_as(log_density)
        loss = (entropy_weight * log_density.detach() - value).mean(-1)
        share = self._rows(self.loss_weight, ids) / value.numel()
        gradients = [gradient.mul_(-share.unsqueeze(-1)), entropy_weight * share]
        self._actor_part.step([logits, log_density], gradients, loss)
        with torch.no_grad():
            entropy = -log_density.mean(-1)
            target = self.target_entropy if ids is None else self.target_entropy[ids]
            log_temperature = self.log_temperature if ids is None else self.log_temperature[ids]
            gradient = losses.temperature_gradient(log_temperature, entropy, target)
            self.log_temperature.grad = (
                gradient if ids is None else torch.zeros_like(self.log_temperature).index_copy_(0, ids, gradient)
            )
        self._temperature_optimiser.step()
        value = value.mean(-1)
        self._note(ids, actor_loss=loss, value=value, return_estimate=value * scales.reward[:, 0], entropy=entropy)

    @torch.no_grad()
    def _share_embedding(self) -> None:
        # The critic learns the task embedding; the policy carries a copy, so its gradient never reaches it.
        self.policy.embedding.copy_(self.critic.embedding)

    def _note(self, ids: Tensor | None, **columns: Tensor) -> None:
        for name, values in columns.items():
            if ids is None:
                self._last[name] = values
            else:
                known = self._last.get(name, torch.full_like(self.discount, math.nan))
                self._last[name] = known.index_copy(0, ids, values)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Task to what the last update that it was in saw of it; what was never seen is left out.

        critic_loss, actor_loss; value (scaled), return_estimate (the same, in rewards); entropy, temperature,
        reward_scale; critic_gradient and actor_gradient, the norms of its heads' gradients in the last update;
        update_share, of all updates those that it was in.
        """
        columns = dict(self._last)
        columns["temperature"] = self.log_temperature.detach().exp()
        columns["reward_scale"] = self.reward_scale
        columns["update_share"] = self._task_updates / max(1, self.updates)
        for name, part in (("critic_gradient", self._critic_part), ("actor_gradient", self._actor_part)):
            if part.heads[0][0].grad is not None:
                columns[name] = part.norms(len(self.specs))
        rows = torch.stack(list(columns.values()), 1).tolist()
        return {
            spec.name: {name: value for name, value in zip(columns, row, strict=True) if math.isfinite(value)}
            for spec, row in zip(self.specs, rows, strict=True)
        }

    def weights(self) -> Weights:
        """A snapshot of the policy under a new version (0 before the first update).

        Raises:
            RunError: a number is not finite; no such weights are given out.
        """
        version = self.version + 1 if self.updates else 0
        snapshot = weights_module.snapshot(self.policy, version)
        self.version = version
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "target": self.target.state_dict(),
            "log_temperature": self.log_temperature.detach(),
            "largest_return": self.largest_return,
            "reward_scale": self.reward_scale,
            "critic_optimiser": self._critic_part.optimiser.state_dict(),
            "actor_optimiser": self._actor_part.optimiser.state_dict(),
            "temperature_optimiser": self._temperature_optimiser.state_dict(),
            "generator": self._generator.get_state(),
            "updates": self.updates,
            "task_updates": self._task_updates,
            "version": self.version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        for name in ("policy", "critic", "target"):
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self.largest_return = state["largest_return"].to(self.device)
        self.reward_scale = state["reward_scale"].to(self.device)
        self._critic_part.optimiser.load_state_dict(state["critic_optimiser"])
        self._actor_part.optimiser.load_state_dict(state["actor_optimiser"])
        self._temperature_optimiser.load_state_dict(state["temperature_optimiser"])
        self._generator.set_state(state["generator"].cpu())
        self.updates, self.version = state["updates"], state["version"]
        self._task_updates = state["task_updates"].to(self.device)
