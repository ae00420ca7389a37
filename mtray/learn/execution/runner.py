"""Runs an algorithm's updates: recorded where they can be, counted, and with their failures raised."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from mtray.data.batch import Batch
from mtray.data.specs import TaskSpec
from mtray.learn.execution.failures import NonFiniteFlag
from mtray.learn.execution.parameters import ParameterGroup
from mtray.learn.execution.recorded import RecordedUpdates, matmul_precision

# Updates between two reads of the flag of deferred failures, if nobody reads it before.
_CHECK_EVERY = 200


class Algorithm(Protocol):
    """The two halves of an update, which have no branch that depends on numbers of tensors."""

    generator: torch.Generator
    critic_group: ParameterGroup
    actor_group: ParameterGroup

    def update_critic(self, batch: Batch, ids: Tensor | None) -> Tensor:
        """Move the critic on a batch of tasks ``ids`` [n]; return the normalised observations [n, B, obs]."""
        ...

    def update_actor(self, observation: Tensor, ids: Tensor | None) -> None:
        """Move the actor on normalised observations [n, B, obs] of tasks ``ids`` [n]."""
        ...


class UpdateRunner:
    """Runs updates.

    Attributes:
        updates: made so far.
        task_updates: [T] float64, of those the updates that each task was in.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        failures: NonFiniteFlag,
        specs: Sequence[TaskSpec],
        device: torch.device,
        actor_period: int,
        precision: str,
    ) -> None:
        """Run the algorithm's updates on the device.

        Args:
            algorithm: verifies its numbers with ``failures``.
            failures: if they are deferred, updates over all tasks are recorded.
            specs: of all tasks.
            device: the algorithm's.
            actor_period: updates of the critic per update of the actor.
            precision: of matrix products, see `matmul_precision`.
        """
        self._algorithm, self._failures = algorithm, failures
        self._names = tuple(spec.name for spec in specs)
        self._device, self._actor_period, self._precision = device, actor_period, precision
        self._recorded: RecordedUpdates | None = None
        self.updates = 0
        self.task_updates = torch.zeros(len(specs), device=device, dtype=torch.float64)

    def update(self, batch: Batch) -> None:
        """Make one update; see `ActorCritic.update`."""
        ids = self._ids(batch.tasks)
        with matmul_precision(self._precision) if self._device.type == "cuda" else nullcontext():
            self._run(batch, ids, with_actor=self.updates % self._actor_period == 0)
        in_batch = 1 if ids is None else torch.zeros_like(self.task_updates).index_fill_(0, ids, 1)
        self.task_updates += in_batch * self._failures.count_update()
        self.updates += 1
        if self.updates % _CHECK_EVERY == 0:
            self.check()

    def _run(self, batch: Batch, ids: Tensor | None, *, with_actor: bool) -> None:
        algorithm = self._algorithm
        if self._failures.is_deferred and len(set(batch.tasks)) == len(self._names):
            if self._recorded is None or not self._recorded.fits(batch):
                update_critic = functools.partial(algorithm.update_critic, ids=ids)
                update_actor = functools.partial(algorithm.update_actor, ids=ids)
                groups = algorithm.critic_group, algorithm.actor_group
                self._recorded = RecordedUpdates(batch, algorithm.generator, update_critic, update_actor, groups)
            self._recorded.update(batch, with_actor=with_actor)
        else:
            observation = algorithm.update_critic(batch.to(self._device), ids)
            if with_actor:
                algorithm.update_actor(observation, ids)

    def _ids(self, tasks: tuple[str, ...]) -> Tensor | None:
        if tasks == self._names:
            return None
        return torch.tensor([self._names.index(task) for task in tasks], device=self._device)

    def check(self) -> None:
        """Raise for a failure of earlier updates; see `ActorCritic.check`."""
        error = self._failures.take() if self._failures.is_deferred else None
        if error is not None:
            self.updates = error.update
            raise error

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"updates": self.updates, "task_updates": self.task_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._recorded = None  # A recording reads the optimisers' old state.
        self.updates = state["updates"]
        self._failures.updates.fill_(self.updates)
        self.task_updates.copy_(state["task_updates"])
