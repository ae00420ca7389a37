"""What the multi-task actor-critic algorithms share: networks, the critic's update, averages and figures.

An algorithm (`mtray.learn.sac`, `mtray.learn.td3`) chooses the action whose value the critic's target takes, and the
actor's loss. An update has no branch that depends on numbers of tensors, so that it can be recorded.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mtray.config.settings import LearnerConfig, NetworkConfig
from mtray.data.batch import Batch
from mtray.data.specs import TaskSpec
from mtray.learn import losses
from mtray.learn.execution.failures import Check, NonFiniteFlag, mean_by_task
from mtray.learn.execution.recorded import precision_of, records_updates, warm_up_autograd_thread
from mtray.learn.execution.runner import UpdateRunner
from mtray.learn.networks import Networks
from mtray.learn.task_weights import loss_weights
from mtray.learn.values import Categorical, Scalar, ValueKind


def _unchanged(function: Any) -> Any:
    return function


class ActorCritic(ABC):
    """Policy and critic of many tasks, and the update that trains them.

    Attributes:
        policy, average, critic, target, critic_group, actor_group: see `Networks`.
        reward_scale: [T], divides rewards when a batch is used; set in place by `mtray.learn.scaling`.
        actor_loss_scale: [T], ratio of the value support's limit to the largest return seen. Multiplies the actor's
            loss, so that tasks with headroom keep their share of the gradient; set with the reward scale.
        last: name to [T], figures of the last update that each task was in.
    """

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
        self._precision = precision_of(config, device)
        if self.device.type == "cuda":
            warm_up_autograd_thread(self.device)
        names, tasks = [spec.name for spec in specs], len(specs)
        self._failures = NonFiniteFlag(names, self.device, is_deferred=records_updates(config, device))
        self._networks = Networks(specs, network, config, self.device, seed, self._failures.skip)
        self.policy, self.average = self._networks.policy, self._networks.average
        self.critic, self.target = self._networks.critic, self._networks.target
        self.critic_group, self.actor_group = self._networks.critic_group, self._networks.actor_group
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.discount = torch.tensor([spec.discount for spec in specs], device=self.device)
        # Entries whose bounds are equal are not the policy's to choose.
        self.target_entropy = -self.policy.action_mask.sum(-1) / 2
        self.loss_weight = torch.tensor(loss_weights(config, names), device=self.device)
        self.reward_scale = torch.ones(tasks, device=self.device)
        self.actor_loss_scale = torch.ones(tasks, device=self.device)
        self.atoms = losses.support(config.atoms, config.value_limit, self.device)
        self.value_kind: ValueKind = Scalar() if config.atoms == 1 else Categorical(self.atoms)
        self._compiled = (
            functools.partial(torch.compile, backend=config.compile, dynamic=False) if config.compile else _unchanged
        )
        self._critic_outputs, self._target_outputs = self._compiled(self.critic), self._compiled(self.target)
        self._target_of, self._loss_of, self._value_of = map(
            self._compiled, (self.value_kind.target, self.value_kind.loss, self.value_kind.value)
        )
        self.last: dict[str, Tensor] = {}
        self._runner = UpdateRunner(self, self._failures, specs, self.device, config.actor_period, self._precision)

    @property
    @abstractmethod
    def temperature(self) -> Tensor:
        """[T], weight of the policy's entropy in each task, in units of its reward; zero where entropy is not paid."""

    @abstractmethod
    def _next_action(self, observation: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return actions [n, B, act] at normalised observations [n, B, obs], and their scaled bonus [n, B]."""

    @abstractmethod
    def update_actor(self, observation: Tensor, ids: Tensor | None) -> None:
        """Move the actor, and what is learned with it, on normalised observations [n, B, obs]."""

    def update(self, batch: Batch) -> None:
        """Make one update on a batch over any subset of tasks.

        Raises:
            NotFiniteError: a task's data is not finite, and nothing was changed; or the loss or gradient of the critic
                or the actor is not, and no weights were changed with it.
        """
        self._runner.update(batch)

    def check(self) -> None:
        """Raise for a failure of earlier updates, if failures are deferred.

        From the failure on nothing has changed but the target, which moved closer to the critic.

        Raises:
            NotFiniteError: as `update` does.
        """
        self._runner.check()

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self._runner.updates

    def _column(self, table: Tensor, ids: Tensor | None) -> Tensor:
        """Return a table's [T] values of a batch's tasks as [n, 1]."""
        return (table if ids is None else table[ids]).unsqueeze(-1)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision != "bfloat16":
            return nullcontext()
        # Without the cache of casts: a CUDA graph must make its own.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def _outputs(
        self, critic: Callable[..., Tensor], observation: Tensor, action: Tensor, ids: Tensor | None
    ) -> Tensor:
        with self._autocast():
            outputs = critic(observation, action, ids)
        return outputs.float()

    def update_critic(self, batch: Batch, ids: Tensor | None) -> Tensor:
        """Move the critic, then its target; return the normalised observations [n, B, obs]."""
        parts = (batch.observation, batch.next_observation, batch.action, batch.reward)
        # The sum of finite float32 data overflows only where a value is beyond any simulator's range as well.
        sums = torch.stack([part.flatten(1).sum(-1) for part in parts]).sum(0)
        self._failures.verify(Check.DATA, sums.sum(), sums, ids)
        observation: Tensor = self.policy.normalise(batch.observation, ids)
        action = self.policy.from_bounds(batch.action, ids)
        target = self._critic_target(batch, ids)
        outputs = self._outputs(self._critic_outputs, observation, action, ids)
        loss, gradient = self._loss_of(outputs.detach(), target)
        gradient.mul_((self._column(self.loss_weight, ids) / batch.reward.numel()).unsqueeze(-1))
        loss = loss.sum(0).mean(-1)
        norm = self.critic_group.differentiate([outputs], [gradient])
        self._failures.verify(Check.CRITIC, norm + loss.sum(), loss, ids)
        self._networks.step_critic()
        self._note(ids, critic_loss=loss)
        return observation

    @torch.no_grad()
    def _critic_target(self, batch: Batch, ids: Tensor | None) -> Tensor:
        """Return what the critic is trained towards, [n, B, size]."""
        observation_tp1 = self.policy.normalise(batch.next_observation, ids)
        action_tp1, bonus_tp1 = self._next_action(observation_tp1, ids)
        discount = self._column(self.discount, ids)
        if self.config.n_step > 1:
            discount = discount**batch.steps
        target: Tensor = self._target_of(
            self._outputs(self._target_outputs, observation_tp1, action_tp1, ids),
            batch.reward / self._column(self.reward_scale, ids),
            batch.flag("terminated"),
            discount,
            bonus_tp1,
        )
        return target

    def _value(self, observation: Tensor, action: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs [C, n, B, size], the most pessimistic value [n, B], and its gradient by the outputs."""
        outputs = self._outputs(self._critic_outputs, observation, action, ids)
        values, gradient = self._value_of(outputs.detach())
        value = values[0] if len(values) == 1 else values.amin(0)
        if len(values) > 1:
            # Exact ties are negligible: each row's gradient passes through the critic of least value.
            gradient.mul_((values == value).unsqueeze(-1))
        return outputs, value, gradient

    def _actor_share(self, value: Tensor, ids: Tensor | None) -> Tensor:
        """Return the weight [n, 1] of each row of [n, B] in the actor's loss."""
        return self._column(self.loss_weight * self.actor_loss_scale, ids) / value.numel()

    def _step_actor(
        self,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor],
        loss: Tensor,
        value: Tensor,
        ids: Tensor | None,
    ) -> None:
        """Move the actor, then the average that follows it."""
        norm = self.actor_group.differentiate(outputs, gradients)
        self._failures.verify(Check.ACTOR, norm + loss.sum(), loss, ids)
        self._networks.step_actor()
        value = value.mean(-1)
        scale = self.reward_scale if ids is None else self.reward_scale[ids]
        self._note(ids, actor_loss=loss, value=value, return_estimate=value * scale)

    @torch.no_grad()
    def _note(self, ids: Tensor | None, **columns: Tensor) -> None:
        for name, values in columns.items():
            if ids is None:
                self.last[name] = values
            else:
                means, in_batch = mean_by_task(values, ids, len(self.specs))
                last = self.last.setdefault(name, torch.full_like(self.discount, math.nan))
                last.copy_(torch.where(in_batch, means, last))

    def metrics(self) -> dict[str, Tensor]:
        """Return name to [T], figures of the last update that each task was in; NaN for a task without any.

        critic_loss, actor_loss; value (scaled), return_estimate (the same, in rewards); reward_scale; critic_gradient
        and actor_gradient, the norms of its heads' gradients in the last update; update_share, the share of all updates
        that it was in.
        """
        columns = dict(self.last)
        columns["reward_scale"] = self.reward_scale
        columns["update_share"] = self._runner.task_updates / max(1, self.updates)
        for name, group in (("critic_gradient", self.critic_group), ("actor_gradient", self.actor_group)):
            if group.gradients:
                columns[name] = group.norms(len(self.specs))
        return columns

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next update depends on."""
        return {
            **self._networks.state_dict(),
            **self._runner.state_dict(),
            "reward_scale": self.reward_scale,
            "actor_loss_scale": self.actor_loss_scale,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._networks.load_state_dict(state)
        self._runner.load_state_dict(state)
        self.reward_scale.copy_(state["reward_scale"])
        self.actor_loss_scale.copy_(state["actor_loss_scale"])
        self.generator.set_state(state["generator"].cpu())
