"""Base class of the multi-task actor-critic algorithms: networks, the critic's update and metrics.

An algorithm (`mtray.learn.sac`, `mtray.learn.td3`) defines the next action in the critic's target and the actor's loss.
No branch of an update depends on the values of tensors, so that it can be recorded.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.task_weights import loss_weights
from mtray.data.batch import Batch
from mtray.data.specs import TaskSpec
from mtray.learn.balance import Balance
from mtray.learn.execution.failures import Check, Checked, NonFiniteFlag, mean_by_task
from mtray.learn.execution.parameters import norms_of, shared_norm
from mtray.learn.networks import Networks
from mtray.learn.values import Categorical, Scalar, ValueKind
from mtray.policy.layers import select_for_rows, select_tasks


@dataclass
class Gradient:
    """A network's gradient over some rows of a batch: its sum over these rows, divided by all rows of the batch.

    Attributes:
        tensors: as `ParameterGroup.gradients`.
        means: name to [n], figures of each task, summed and divided likewise.
    """

    tensors: list[Tensor]
    means: dict[str, Tensor]

    def add_(self, other: Gradient) -> None:
        """Add the gradient over other rows of the batch."""
        torch._foreach_add_([*self.tensors, *self.means.values()], [*other.tensors, *other.means.values()])


def total(gradients: Sequence[Gradient]) -> Gradient:
    """Return the first gradient, with the others added to it."""
    for other in gradients[1:]:
        gradients[0].add_(other)
    return gradients[0]


@torch.no_grad()
def write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values over tensors."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


class ActorCritic(ABC):
    """Policy and critic of many tasks, and the two halves of an update, the critic's and the actor's.

    Each half computes gradients, which rows of a batch can do side by side, books what their sum tells (failures,
    weights of losses, metrics), and makes a step with it.

    Attributes:
        policy, average, critic, target, critic_group, actor_group: see `Networks`.
        failures: non-finite numbers of updates, deferred if updates are recorded.
        balance: weights of the critic's losses; all 1 if the config does not ask for others.
        precision: of matrix products: float32, tfloat32 or bfloat16.
        reward_scale: [T], divides rewards when a batch is used; set in place by `mtray.learn.scaling`.
        actor_loss_scale: [T], ratio of the value support's limit to the largest return seen. Multiplies the actor's
            loss, so that tasks with headroom keep their share of the gradient; set with the reward scale.
    """

    # Metrics of the actor's gradients.
    _OF_ACTOR: tuple[str, ...] = ("actor_loss", "value", "return_estimate")

    def __init__(
        self, specs: Sequence[TaskSpec], network: NetworkConfig, config: LearnerConfig, device: str, seed: int
    ) -> None:
        """Create everything on the device; equal seeds give equal numbers."""
        self.specs = tuple(specs)
        self.config = config
        self.device = torch.device(device)
        self.precision = config.precision or ("tfloat32" if self.device.type == "cuda" else "float32")
        names, tasks = [spec.name for spec in specs], len(specs)
        is_recorded = config.can_record(device) if config.graphs is None else config.graphs
        self.failures = NonFiniteFlag(names, self.device, is_deferred=is_recorded)
        self._networks = Networks(specs, network, config, self.device, seed, self.failures.skip)
        self.policy, self.average = self._networks.policy, self._networks.average
        self.critic, self.target = self._networks.critic, self._networks.target
        self.critic_group, self.actor_group = self._networks.critic_group, self._networks.actor_group
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.discount = torch.tensor([spec.discount for spec in specs], device=self.device)
        # Half the number of real actions; padding and entries with equal bounds are masked.
        self.target_entropy = -self.policy.action_mask.sum(-1) / 2
        self.loss_weight = torch.tensor(loss_weights(config, names), device=self.device)
        self.balance = Balance(tasks, self.device)
        self.reward_scale = torch.ones(tasks, device=self.device)
        self.actor_loss_scale = torch.ones(tasks, device=self.device)
        self.atoms = torch.linspace(-config.value_limit, config.value_limit, config.atoms, device=self.device)
        self.value_kind: ValueKind = Scalar() if config.atoms == 1 else Categorical(self.atoms)
        self._critic_outputs, self._target_outputs = self._compile(self.critic), self._compile(self.target)
        self._target_of, self._loss_of, self._value_of = map(
            self._compile, (self.value_kind.target, self.value_kind.loss, self.value_kind.value)
        )
        # Written in place: every recording, of which there is one per number of threads, writes the same memory.
        self._metrics = {name: torch.full_like(self.discount, math.nan) for name in ("critic_loss", *self._OF_ACTOR)}

    def _compile(self, function: Any) -> Any:
        # Otherwise gradients are compiled whole: see `mtray.learn.execution.compiled`.
        backend = None if self.config.compiles_beside(self.device.type) else self.config.compiler
        return torch.compile(function, backend=backend, dynamic=False) if backend else function

    @property
    @abstractmethod
    def temperature(self) -> Tensor:
        """[T], weight of the entropy bonus in units of each task's reward; zero without a bonus."""

    @abstractmethod
    def _next_action(self, observation: Tensor, noise: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return actions [n, B, act] for normalised observations [n, B, obs], and their scaled entropy bonus [n, B]."""

    @abstractmethod
    def actor_gradient(self, observation: Tensor, noise: Tensor, ids: Tensor | None, rows: int) -> Gradient:
        """Return the actor's gradient over normalised observations; arguments as `critic_gradient`'s."""

    def draw_(self, noise: Tensor) -> Tensor:
        """Fill with standard normal numbers, and return it."""
        return noise.normal_(generator=self.generator)

    def _autocast(self) -> torch.autocast:
        # Without the cache of casts: a CUDA graph must contain its own.
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _outputs(
        self, critic: Callable[..., Tensor], observation: Tensor, action: Tensor, ids: Tensor | None
    ) -> Tensor:
        with self._autocast():
            outputs = critic(observation, action, ids)
        return outputs.float()

    def critic_gradient(self, batch: Batch, noise: Tensor, ids: Tensor | None, rows: int) -> tuple[Gradient, Tensor]:
        """Return the critic's gradient over a batch, or over some of its rows, and the normalised observations.

        Args:
            batch: of tasks ``ids``.
            noise: [n, B, act], standard normal, of the next actions.
            ids: [n]; None for all tasks in order.
            rows: of each task in the whole batch.
        """
        parts = (batch.observation, batch.next_observation, batch.action, batch.reward)
        # A sum of finite float32 data overflows only for values beyond the range of any simulator.
        data = torch.stack([part.flatten(1).sum(-1) for part in parts]).sum(0)
        observation: Tensor = self.policy.normalise(batch.observation, ids)
        action = self.policy.from_bounds(batch.action, ids)
        target = self._critic_target(batch, noise, ids)
        outputs = self._outputs(self._critic_outputs, observation, action, ids)
        loss, gradient = self._loss_of(outputs.detach(), target)
        weight = select_for_rows(self.loss_weight * self.balance.weights, ids)
        gradient.mul_((weight / (len(batch.reward) * rows)).unsqueeze(-1))
        tensors = self.critic_group.differentiate([outputs], [gradient])
        return Gradient(tensors, {"critic_loss": loss.mean(0).sum(-1) / rows, "data": data}), observation

    def step_critic(self, gradients: Sequence[Gradient], ids: Tensor | None) -> None:
        """Update the critic, then its target."""
        gradient = total(gradients)
        if not self.failures.is_deferred:
            self.failures.verify(self._critic_checks(gradient), ids)
        write(self.critic_books, self.book_critic(gradient, ids))
        self.optimise_critic(gradient)

    @torch.no_grad()
    def optimise_critic(self, gradient: Gradient) -> None:
        """Make the steps of critic and target, with a gradient that is in the books."""
        self.critic_group.gradients = gradient.tensors
        self._networks.step_critic()

    @property
    def critic_books(self) -> list[Tensor]:
        """What a gradient of the critic changes beside the weights: failures, weights of the losses and metrics."""
        balance = self.balance.tensors if self.config.balance else ()
        return [*self.failures.state, *balance, self._metrics["critic_loss"]]

    @torch.no_grad()
    def book_critic(self, gradient: Gradient, ids: Tensor | None) -> list[Tensor]:
        """Return `critic_books` after a gradient over a whole batch; nothing is changed."""
        skip, failed = self.failures.after(self._critic_checks(gradient), ids)
        balance: tuple[Tensor, ...] = ()
        if self.config.balance:
            norms = norms_of(gradient.tensors[1:], len(self.specs)) / self.loss_weight
            balance = self.balance.after(norms, skip)
        return [skip, failed, *balance, self._booked("critic_loss", gradient.means["critic_loss"], ids)]

    def _critic_checks(self, gradient: Gradient) -> list[Checked]:
        loss, data = gradient.means["critic_loss"], gradient.means["data"]
        total_loss = shared_norm(gradient.tensors) + loss.sum()
        return [Checked(Check.DATA, data.sum(), data), Checked(Check.CRITIC, total_loss, loss)]

    @torch.no_grad()
    def _critic_target(self, batch: Batch, noise: Tensor, ids: Tensor | None) -> Tensor:
        """Return the target of the critic's outputs, [n, B, size]."""
        observation_tp1 = self.policy.normalise(batch.next_observation, ids)
        action_tp1, bonus_tp1 = self._next_action(observation_tp1, noise, ids)
        discount = select_for_rows(self.discount, ids)
        if self.config.n_step != 1:
            discount = discount**batch.steps
        target: Tensor = self._target_of(
            self._outputs(self._target_outputs, observation_tp1, action_tp1, ids),
            batch.reward / select_for_rows(self.reward_scale, ids),
            batch.flag("terminated"),
            discount,
            bonus_tp1,
        )
        return target

    def _value(self, observation: Tensor, action: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs [C, n, B, size], the least value [n, B], and its gradient with respect to the outputs."""
        outputs = self._outputs(self._critic_outputs, observation, action, ids)
        values, gradient = self._value_of(outputs.detach())
        value = values[0] if len(values) == 1 else values.amin(0)
        if len(values) > 1:
            # A row's gradient passes through the critic of least value; equal values are negligibly rare.
            gradient.mul_((values == value).unsqueeze(-1))
        return outputs, value, gradient

    def _actor_share(self, rows: int, ids: Tensor | None) -> Tensor:
        """Return the weights [n, 1] of each row in the actor's loss, over batches of so many rows of each task."""
        share = select_for_rows(self.loss_weight * self.actor_loss_scale, ids)
        return share / (len(share) * rows)

    def step_actor(self, gradients: Sequence[Gradient], ids: Tensor | None) -> None:
        """Update the actor, then its average and, in SAC, the temperatures."""
        gradient = total(gradients)
        if not self.failures.is_deferred:
            self.failures.verify(self._actor_checks(gradient), ids)
        write(self.actor_books, self.book_actor(gradient, ids))
        self.optimise_actor(gradient, ids)

    @torch.no_grad()
    def optimise_actor(self, gradient: Gradient, ids: Tensor | None) -> None:
        """Make the steps of actor and average, with a gradient that is in the books."""
        self.actor_group.gradients = gradient.tensors
        self._networks.step_actor()

    @property
    def actor_books(self) -> list[Tensor]:
        """What a gradient of the actor changes beside the weights: failures and metrics."""
        return [*self.failures.state, *(self._metrics[name] for name in self._OF_ACTOR)]

    @torch.no_grad()
    def book_actor(self, gradient: Gradient, ids: Tensor | None) -> list[Tensor]:
        """Return `actor_books` after a gradient over a whole batch; nothing is changed."""
        means = gradient.means
        figures = {**means, "return_estimate": means["value"] * select_tasks(self.reward_scale, ids)}
        booked = [self._booked(name, figures[name], ids) for name in self._OF_ACTOR]
        return [*self.failures.after(self._actor_checks(gradient), ids), *booked]

    def _actor_checks(self, gradient: Gradient) -> list[Checked]:
        loss = gradient.means["actor_loss"]
        return [Checked(Check.ACTOR, shared_norm(gradient.tensors) + loss.sum(), loss)]

    def _booked(self, name: str, values: Tensor, ids: Tensor | None) -> Tensor:
        """Return a metric [T] after an update with these values [n] of the tasks of its batch."""
        if ids is None:
            return values
        means, in_batch = mean_by_task(values, ids, len(self.specs))
        return torch.where(in_batch, means, self._metrics[name])

    def metrics(self) -> dict[str, Tensor]:
        """Return name to [T], metrics of the last update with rows of each task; NaN for a task without any.

        critic_loss and actor_loss; value (scaled) and return_estimate (the same, in rewards); reward_scale; and
        critic_gradient and actor_gradient, the norms of the heads' gradients in the last update of all; NaN for a task
        that it had no rows of.
        """
        metrics = {**self._metrics, "reward_scale": self.reward_scale}
        for name, group in (("critic_gradient", self.critic_group), ("actor_gradient", self.actor_group)):
            if group.gradients:
                metrics[name] = group.norms(len(self.specs))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the state of networks, optimisers, scales and random numbers."""
        return {
            **self._networks.state_dict(),
            "reward_scale": self.reward_scale,
            "actor_loss_scale": self.actor_loss_scale,
            "balance": self.balance.state(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._networks.load_state_dict(state)
        self.reward_scale.copy_(state["reward_scale"])
        self.actor_loss_scale.copy_(state["actor_loss_scale"])
        # Earlier versions had none; and this run may not ask for any.
        if self.config.balance and "balance" in state:
            self.balance.load_state(state["balance"])
        saved = state["generator"].cpu()
        if saved.numel() == self.generator.get_state().numel():
            self.generator.set_state(saved)
        else:
            # Of another kind of device, whose numbers can't be gone on with. Nor are the first ones drawn again.
            self.generator.manual_seed(self.generator.initial_seed() + 1 + int(state["updates"]))
