"""What the multi-task actor-critic algorithms share: networks, the critic's update, and how an update runs and fails.

An algorithm (`mtray.learn.sac`, `mtray.learn.td3`) says which action the next state's value is of, and what its actor
descends. An update has no branch that depends on numbers, so that it can be recorded.
"""

from __future__ import annotations

import copy
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
from mtray.errors import NotFiniteError
from mtray.learn import losses
from mtray.learn.optimiser import AdamW, Part, tensors_of
from mtray.learn.recorded import Recorded, Watch, products, wake_backward
from mtray.learn.values import Categorical, Scalar, ValueKind
from mtray.policy.critic import MultiTaskCritic
from mtray.policy.policy import MultiTaskPolicy

# Updates after which those whose failures are noted on the device are looked at, if nobody asked before.
_LOOK_EVERY = 200


# What may turn out not to be finite, in this order.
_DATA, _CRITIC, _ACTOR = range(3)


def _as_it_is(function: Any) -> Any:
    return function


class _Fixed:
    """Updates on batches of one shape over all tasks, each copied to where the last one was: they can be recorded."""

    def __init__(self, algorithm: ActorCritic, batch: Batch, ids: Tensor | None) -> None:
        self._algorithm, self._ids = algorithm, ids
        self.batch = Batch(batch.tasks, *(torch.empty_like(part, device=algorithm.device) for part in batch.tensors))
        self._observation = self.batch.observation
        self._critic_gradients: list[Tensor] = []
        self._actor_gradients: list[Tensor] = []
        self._critic = Recorded(self._update_critic, algorithm.generator)
        self._actor = Recorded(self._update_actor, algorithm.generator)

    def fits(self, batch: Batch) -> bool:
        return self.batch.tasks == batch.tasks and self.batch.reward.shape == batch.reward.shape

    def update(self, batch: Batch, with_actor: bool) -> None:
        self.batch.copy_(batch)
        # The critic first, always: when the actor's part is recorded, it reads what the critic's recorded part writes.
        self._critic()
        # Updates that are not recorded leave theirs elsewhere.
        self._algorithm.critic_part.gradients = self._critic_gradients
        if with_actor:
            self._actor()
            self._algorithm.actor_part.gradients = self._actor_gradients

    def _update_critic(self) -> None:
        self._observation = self._algorithm._update_critic(self.batch, self._ids)
        self._critic_gradients = self._algorithm.critic_part.gradients

    def _update_actor(self) -> None:
        self._algorithm._update_actor(self.batch.tasks, self._observation, self._ids)
        self._actor_gradients = self._algorithm.actor_part.gradients


class ActorCritic(ABC):
    """Policy and critic of many tasks, and the update that moves them.

    Attributes:
        policy: the actor.
        average: the policy that follows the actor slowly and is steadier from update to update: what is evaluated and
            used. Data are collected with the actor, so that the critic sees what the actor is wrong about.
        critic: the critics.
        target: the critics that lag behind.
        reward_scale: [T], what rewards are divided by when a batch is used; set in place by whoever knows the returns.
        reach: [T], how many times farther the support reaches than the returns seen. The actor's loss counts as much
            more, so that a task does not fade beside the others because more is possible in it; set as the scale is.
        updates: made so far.
        look_every: updates after which what was not finite is told at the latest.
        last: name to [T], what the last update that a task was in saw of it.
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
        if self.device.type == "cuda":
            wake_backward(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = MultiTaskPolicy(specs, network, action_noise=config.policy_noise).to(self.device)
            self.critic = MultiTaskCritic(specs, network, config.atoms).to(self.device)
        self.average = copy.deepcopy(self.policy).requires_grad_(False)
        for name, buffer in self.policy.named_buffers():
            setattr(self.average, name, buffer)  # One and the same: only parameters are averaged.
        self.policy.requires_grad_(True)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        tasks = len(specs)
        self.discount = torch.tensor([spec.discount for spec in specs], device=self.device)
        self.target_entropy = torch.tensor([-spec.action_size / 2 for spec in specs], device=self.device)
        self.loss_weight = torch.tensor(config.weight_of_losses([spec.name for spec in specs]), device=self.device)
        self.reward_scale = torch.ones(tasks, device=self.device)
        self.reach = torch.ones(tasks, device=self.device)
        self.atoms = losses.support(config.atoms, config.value_limit, self.device)
        self.kind: ValueKind = Scalar() if config.atoms == 1 else Categorical(self.atoms)
        self.critic_part = Part(self.critic.shared_parameters(), self.critic.heads, config)
        self.actor_part = Part(self.policy.shared_parameters(), self.policy.heads, config)
        self._target_tensors = tensors_of(self.target.shared_parameters(), self.target.heads)
        self._average_tensors = tensors_of(self.average.shared_parameters(), self.average.heads)
        self._precision = config.precision_on(device)
        graphs = config.records(device)
        self.look_every = _LOOK_EVERY if graphs else 1
        self._watch = Watch(3, tasks, self.device, late=graphs)
        for part in (self.critic_part, self.actor_part):
            self._stopped_with_others(part.optimiser)
        self._fixed: _Fixed | None = None
        self._compiled = (
            functools.partial(torch.compile, backend=config.compile, dynamic=False) if config.compile else _as_it_is
        )
        self._online, self._lagging = self._compiled(self.critic), self._compiled(self.target)
        self._target_of, self._loss_of, self._value_of = map(
            self._compiled, (self.kind.target, self.kind.loss, self.kind.value)
        )
        self.updates = 0
        self.task_updates = torch.zeros(tasks, device=self.device, dtype=torch.float64)
        self.last: dict[str, Tensor] = {}
        self._share_embedding()

    @property
    @abstractmethod
    def temperature(self) -> Tensor:
        """[T], what a policy's entropy counts in each task, in units of its reward; zero where it counts nothing."""

    @abstractmethod
    def _next_action(self, observation: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions [n, B, act] whose value counts at normalised [n, B, obs], and what is added to it, scaled [n, B]."""

    @abstractmethod
    def _update_actor(self, tasks: Sequence[str], observation: Tensor, ids: Tensor | None) -> None:
        """Move the actor, and what is learned with it, on normalised observations [n, B, obs]."""

    def update(self, batch: Batch) -> None:
        """One update on a batch over any subset of tasks.

        Raises:
            NotFiniteError: a task's data is not finite, and nothing was changed; or the loss or gradient of the critic
            or the actor is not, and no weights were changed with it.
        """
        with products(self._precision) if self.device.type == "cuda" else nullcontext():
            self._update(batch)

    def _update(self, batch: Batch) -> None:
        ids = self._ids(batch.tasks)
        with_actor = self.updates % self.config.actor_period == 0
        if self._watch.late and len(set(batch.tasks)) == len(self.specs):
            if self._fixed is None or not self._fixed.fits(batch):
                self._fixed = _Fixed(self, batch, ids)
            self._fixed.update(batch, with_actor)
        else:
            batch = batch.to(self.device)
            observation = self._update_critic(batch, ids)
            if with_actor:
                self._update_actor(batch.tasks, observation, ids)
        seen = 1 if ids is None else torch.zeros_like(self.task_updates).index_fill_(0, ids, 1)
        self.updates += 1
        if not self._watch.late:
            self.task_updates += seen
        else:
            live = 1 - self._watch.stop
            self.task_updates += seen * live
            self._watch.updates += live.long()
            if self.updates % self.look_every == 0:
                self.check()

    def check(self) -> None:
        """Raise for what was not finite in the updates made so far, if that is not done as they are made.

        From the first such update on nothing was changed, but that the target came closer to the critic.

        Raises:
            NotFiniteError: as `update` does.
        """
        found = self._watch.take() if self._watch.late else None
        if found is not None:
            kind, failed = found
            self.updates = int(self._watch.updates)
            self._fail(kind, [spec.name for spec, bad in zip(self.specs, failed, strict=True) if bad])

    def _fail(self, kind: int, tasks: Sequence[str]) -> None:
        names = ", ".join(tasks)
        if kind == _DATA:
            message = f"data of {names} is not finite: no update is made with it"
        else:
            name = "critic" if kind == _CRITIC else "actor"
            message = (
                f"the {name}'s loss of {names} or its gradient is not finite at update {self.updates}: "
                f"the {name}'s weights stay as they were"
            )
        raise NotFiniteError(message, tasks, self.updates)

    def _verify(self, kind: int, total: Tensor, values: Tensor, tasks: Sequence[str], ids: Tensor | None) -> None:
        """Note it or raise if ``total`` [] is not finite; the batch's tasks whose ``values`` [n] are not are named."""
        if self._watch.late:
            self._watch.note(kind, total, values if ids is None else self._by_task(values, ids)[0])
        elif not math.isfinite(total.item()):
            bad = [task for task, fine in zip(tasks, values.isfinite().tolist(), strict=True) if not fine]
            self._fail(kind, bad or tasks)

    def _ids(self, tasks: tuple[str, ...]) -> Tensor | None:
        names = tuple(spec.name for spec in self.specs)
        return None if tasks == names else torch.tensor([names.index(task) for task in tasks], device=self.device)

    def _rows(self, table: Tensor, ids: Tensor | None) -> Tensor:
        return (table if ids is None else table[ids]).unsqueeze(-1)

    def _stopped_with_others(self, optimiser: AdamW) -> None:
        """Let it leave everything as it is once a failure is noted."""
        if self._watch.late:
            optimiser.found_inf = self._watch.stop

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision != "bfloat16":
            return nullcontext()
        # Casts are not kept from one network to the next: a graph must make its own.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def _outputs(
        self, critic: Callable[..., Tensor], observation: Tensor, action: Tensor, ids: Tensor | None
    ) -> Tensor:
        with self._autocast():
            outputs = critic(observation, action, ids)
        return outputs.float()

    def _update_critic(self, batch: Batch, ids: Tensor | None) -> Tensor:
        """Move the critic, then its target; gives the normalised observations [n, B, obs]."""
        parts = (batch.observation, batch.next_observation, batch.action, batch.reward)
        # The sum of finite float32 data overflows only where a value is beyond any simulator's range as well.
        sums = torch.stack([part.flatten(1).sum(-1) for part in parts]).sum(0)
        self._verify(_DATA, sums.sum(), sums, batch.tasks, ids)
        observation: Tensor = self.policy.normalise(batch.observation, ids)
        with torch.no_grad():
            reached = self.policy.normalise(batch.next_observation, ids)
            action_tp1, bonus_tp1 = self._next_action(reached, ids)
            discount = self._rows(self.discount, ids)
            if self.config.n_step > 1:
                discount = discount**batch.steps
            target = self._target_of(
                self._outputs(self._lagging, reached, action_tp1, ids),
                batch.reward / self._rows(self.reward_scale, ids),
                batch.flag("terminated"),
                discount,
                bonus_tp1,
            )
            action = self.policy.from_bounds(batch.action, ids)
        outputs = self._outputs(self._online, observation, action, ids)
        loss, gradient = self._loss_of(outputs.detach(), target)
        gradient.mul_((self._rows(self.loss_weight, ids) / batch.reward.numel()).unsqueeze(-1))
        loss = loss.sum(0).mean(-1)
        self._step(_CRITIC, self.critic_part, [outputs], [gradient], loss, batch.tasks, ids)
        torch._foreach_lerp_(self._target_tensors, self.critic_part.tensors, self.config.polyak)
        self._share_embedding()
        self._note(ids, critic_loss=loss)
        return observation

    def _value(self, observation: Tensor, action: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The critics' outputs [C, n, B, size], the most pessimistic value [n, B], and its gradient by the outputs."""
        outputs = self._outputs(self._online, observation, action, ids)
        values, gradient = self._value_of(outputs.detach())
        value = values[0] if len(values) == 1 else values.amin(0)
        if len(values) > 1:
            # Ties are as good as never: each row's gradient goes through the critic that counts.
            gradient.mul_((values == value).unsqueeze(-1))
        return outputs, value, gradient

    def _actor_share(self, value: Tensor, ids: Tensor | None) -> Tensor:
        """[n, 1], how much each row of [n, B] counts in the actor's loss."""
        return self._rows(self.loss_weight * self.reach, ids) / value.numel()

    def _step_actor(
        self,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor],
        loss: Tensor,
        value: Tensor,
        tasks: Sequence[str],
        ids: Tensor | None,
    ) -> None:
        """Move the actor, then the average that follows it."""
        self._step(_ACTOR, self.actor_part, outputs, gradients, loss, tasks, ids)
        torch._foreach_lerp_(self._average_tensors, self.actor_part.tensors, self.config.actor_polyak)
        value = value.mean(-1)
        scale = self.reward_scale if ids is None else self.reward_scale[ids]
        self._note(ids, actor_loss=loss, value=value, return_estimate=value * scale)

    def _step(
        self,
        kind: int,
        part: Part,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor],
        loss: Tensor,
        tasks: Sequence[str],
        ids: Tensor | None,
    ) -> None:
        """Descend, unless the loss [n] or its gradient is not finite."""
        norm = part.differentiate(outputs, gradients)
        self._verify(kind, norm + loss.sum(), loss, tasks, ids)
        part.step()

    @torch.no_grad()
    def _share_embedding(self) -> None:
        # The critic learns the task embedding; the policy carries a copy, so its gradient never reaches it.
        self.policy.embedding.copy_(self.critic.embedding)

    @torch.no_grad()
    def _note(self, ids: Tensor | None, **columns: Tensor) -> None:
        for name, values in columns.items():
            if ids is None:
                self.last[name] = values
            else:
                means, seen = self._by_task(values, ids)
                known = self.last.setdefault(name, torch.full_like(self.discount, math.nan))
                known.copy_(torch.where(seen, means, known))

    def _by_task(self, values: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of a batch's values [n] each task's mean [T], zero for those without any; and which have one."""
        if ids is None:
            return values, torch.ones_like(values, dtype=torch.bool)
        zeros = torch.zeros_like(self.discount)
        sums, counts = zeros.index_add(0, ids, values), zeros.index_add(0, ids, torch.ones_like(values))
        return sums / counts.clamp_min(1), counts > 0

    def metrics(self) -> dict[str, Tensor]:
        """Name to [T], what the last update that each task was in saw of it, not a number where there was none.

        critic_loss, actor_loss; value (scaled), return_estimate (the same, in rewards); reward_scale; critic_gradient
        and actor_gradient, the norms of its heads' gradients in the last update; update_share, of all updates those
        that it was in.
        """
        columns = dict(self.last)
        columns["reward_scale"] = self.reward_scale
        columns["update_share"] = self.task_updates / max(1, self.updates)
        for name, part in (("critic_gradient", self.critic_part), ("actor_gradient", self.actor_part)):
            if part.gradients:
                columns[name] = part.norms(len(self.specs))
        return columns

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on."""
        return {
            "policy": self.policy.state_dict(),
            "average": self.average.state_dict(),
            "critic": self.critic.state_dict(),
            "target": self.target.state_dict(),
            "reward_scale": self.reward_scale,
            "reach": self.reach,
            "critic_optimiser": self.critic_part.optimiser.state_dict(),
            "actor_optimiser": self.actor_part.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "task_updates": self.task_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        for name in ("policy", "average", "critic", "target"):
            getattr(self, name).load_state_dict(state[name])
        self.reward_scale.copy_(state["reward_scale"])
        self.reach.copy_(state["reach"])
        self.critic_part.optimiser.load_state_dict(state["critic_optimiser"])
        self.actor_part.optimiser.load_state_dict(state["actor_optimiser"])
        self._fixed = None  # What was recorded has the old state.
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]
        self._watch.updates.fill_(self.updates)
        self.task_updates = state["task_updates"].to(self.device)
