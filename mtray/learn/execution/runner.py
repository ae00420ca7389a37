"""Runs an algorithm's updates: records them where possible, counts them, and raises their failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mtray.data.batch import Batch
from mtray.learn.actor_critic import ActorCritic
from mtray.learn.execution.recorded import RecordedUpdates
from mtray.learn.execution.threads import prepare_thread

# Threads that share out an update, at most.
_MOST_THREADS = 16

# Updates between two checks for deferred failures, unless `UpdateRunner.check` is called before.
_CHECK_EVERY = 200


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Compute float32 products on a GPU's tensor cores if the precision is tfloat32; restore the setting afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tfloat32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class UpdateRunner:
    """Runs an algorithm's updates; if its failures are deferred, updates over all tasks are recorded.

    Attributes:
        updates: number of updates.
        task_updates: [T] float64, number of updates with rows of each task.
    """

    def __init__(self, algorithm: ActorCritic) -> None:
        """Start before the first update."""
        self._algorithm, self._failures = algorithm, algorithm.failures
        self._names = tuple(spec.name for spec in algorithm.specs)
        # By number of threads.
        self._recorded: dict[int, RecordedUpdates] = {}
        self._threads = 1
        self._executor: ThreadPoolExecutor | None = None
        self.updates = 0
        self.task_updates = torch.zeros(len(self._names), device=algorithm.device, dtype=torch.float64)
        if algorithm.device.type == "cuda":
            # Create a CUDA context in autograd's thread: cuBLAS warns if there is none.
            start = torch.zeros((), device=algorithm.device, requires_grad=True)
            torch.autograd.grad(start.exp(), start)

    def update(self, batch: Batch) -> None:
        """Make one update on a batch over any subset of tasks.

        Raises:
            NotFiniteError: a task's data is not finite, and nothing was changed; or the loss or gradient of the critic
                or the actor is not, and that network was not changed.
        """
        algorithm = self._algorithm
        ids = None
        if batch.tasks != self._names:
            ids = torch.tensor([self._names.index(task) for task in batch.tasks], device=algorithm.device)
        with matmul_precision(algorithm.precision) if algorithm.device.type == "cuda" else nullcontext():
            with_actor = self.updates % algorithm.config.actor_period == 0
            self._run(batch, ids, with_actor=with_actor)
        algorithm.critic_group.ids = ids
        if with_actor:
            algorithm.actor_group.ids = ids
        in_batch = 1 if ids is None else torch.zeros_like(self.task_updates).index_fill_(0, ids, 1)
        self.task_updates += in_batch * self._failures.count_update()
        self.updates += 1
        if self.updates % _CHECK_EVERY == 0:
            self.check()

    def _run(self, batch: Batch, ids: Tensor | None, *, with_actor: bool) -> None:
        algorithm, rows = self._algorithm, batch.reward.shape[1]
        if self._failures.is_deferred and len(set(batch.tasks)) == len(self._names):
            threads = min(self._threads, rows)
            recorded = self._recorded.get(threads)
            if recorded is None or not recorded.fits(batch):
                if recorded is not None:
                    recorded.close()
                recorded = RecordedUpdates(algorithm, batch, ids, threads, self._executor)
                self._recorded[threads] = recorded
            recorded.update(batch, with_actor=with_actor)
            return
        batch = batch.to(algorithm.device)
        noise = torch.empty_like(batch.action)
        gradient, observation = algorithm.critic_gradient(batch, algorithm.draw_(noise), ids, rows)
        algorithm.step_critic([gradient], ids)
        if with_actor:
            gradient = algorithm.actor_gradient(observation, algorithm.draw_(noise), ids, rows)
            algorithm.step_actor([gradient], ids)

    def set_threads(self, count: int) -> None:
        """Compute updates on the CPU with so many threads: recorded ones share out rows, others split each kernel."""
        is_recorded = self._failures.is_deferred and self._algorithm.device.type == "cpu"
        torch.set_num_threads(1 if is_recorded else count)
        self._threads = count if is_recorded else 1
        if self._threads > 1 and self._executor is None:
            # It starts as many as there is work for.
            self._executor = ThreadPoolExecutor(_MOST_THREADS, "update", prepare_thread)

    def check(self) -> None:
        """Raise the first deferred failure, if any; no update since has changed anything but the target.

        Raises:
            NotFiniteError: as `update` does.
        """
        error = self._failures.take() if self._failures.is_deferred else None
        if error is not None:
            self.updates = error.update
            raise error

    def finish_compiling(self) -> bool:
        """Compile what was recorded now if that was asked for, and wait; return whether gradients are compiled."""
        return any([recorded.finish_compiling() for recorded in self._recorded.values()])

    def close(self) -> None:
        """Forget what was recorded, and end what compiles."""
        for recorded in self._recorded.values():
            recorded.close()
        self._recorded.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of updates."""
        return {"updates": self.updates, "task_updates": self.task_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        # A recording uses the optimisers' old state.
        self.close()
        # A failure of the state that is replaced would stop the next updates, and be raised as theirs.
        self._failures.clear()
        self.updates = state["updates"]
        self._failures.updates.fill_(self.updates)
        self.task_updates.copy_(state["task_updates"])
