"""Several tasks as one TorchRL environment: torchrl's `ParallelEnv` with corrections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from tensordict import LazyStackedTensorDict, TensorDictBase
from torchrl.envs import ParallelEnv

from mtray.data.specs import DONE_KEYS, NEXT, OBSERVATION, REWARD
from mtray.engines.base import derive_seed
from mtray.errors import RunError, TaskError
from mtray.tasks.env import PolicyLike, check_copies, tasks_like
from mtray.tasks.makers import TaskMaker, make_makers
from mtray.tasks.processes import engine_modules, hidden_main, start_fork_server


class MultiTaskEnv(ParallelEnv):
    """torchrl's ParallelEnv over tasks of any widths, a process per task.

    Differences: `rollout` updates the exclusive observations (torchrl's passes the reset observation to the policy at
    every step), the parent sleeps while the workers step (torchrl's spins on a core), and the workers come from a fork
    server, which has none of the parent's threads and imports the simulators once.
    """

    def __init__(self, makers: Sequence[TaskMaker], **kwargs: Any) -> None:
        """Declare the specs; the workers start at the first reset.

        Args:
            makers: one per task.
            kwargs: passed to torchrl's ParallelEnv.
        """
        self.makers = list(makers)
        self._step_seconds = 0.0
        kwargs = {"mp_start_method": "forkserver", "use_buffers": True, "daemon": True, **kwargs}
        # One task has the same layout as several: a lazy stack over tasks.
        super().__init__(len(makers), self.makers, **{"share_individual_td": True, **kwargs})
        self._single_task = False

    def _start_workers(self) -> None:
        start_fork_server(["mtray.tasks.env", *engine_modules([maker.task for maker in self.makers])])
        threads = torch.get_num_threads()
        with hidden_main():
            super()._start_workers()
        torch.set_num_threads(threads)

    @property
    def _step_mdp(self) -> Callable[[TensorDictBase], TensorDictBase]:
        return _advance

    def _wait_for_workers(self, workers_range: Sequence[int]) -> None:
        if not self._use_buffers:
            super()._wait_for_workers(workers_range)
            return
        flags, pending = self._shm_done_flags, list(workers_range)
        begin = time.monotonic()
        # Polling takes CPU time from the workers if there are few cores, so the parent first sleeps for most of the
        # expected duration of the step.
        time.sleep(0.9 * self._step_seconds)
        pause = min(2e-4, max(2e-5, self._step_seconds / 20))
        polls = 0
        while pending := [index for index in pending if not flags[index]]:
            time.sleep(pause)
            polls += 1
            if polls % 1000 == 0:
                self._check_alive(pending, begin + self.BATCHED_PIPE_TIMEOUT)
        for index in workers_range:
            flags[index] = 0
        # Without a poll the sleep was too long. One slow step must not slow the next, so the estimate grows by half at
        # most.
        elapsed = time.monotonic() - begin
        self._step_seconds = min(elapsed, 1.5 * self._step_seconds + 1e-4) if polls else 0.8 * self._step_seconds

    def _check_alive(self, pending: Sequence[int], deadline: float) -> None:
        for index in pending:
            if not self._workers[index].is_alive() and not self._shm_done_flags[index]:
                self._raise_death(index)
        if time.monotonic() > deadline:
            names = ", ".join(self.makers[index].task.name for index in pending)
            raise RunError(f"the processes of {names} did not answer within {self.BATCHED_PIPE_TIMEOUT:g} seconds")

    def _raise_death(self, index: int) -> NoReturn:
        """End all processes and raise a TaskError that names the task whose process died."""
        dead = self._workers[index]
        dead.join(timeout=1.0)
        self._terminate_and_join_workers(self._workers, timeout=2.0)
        for channel in self.parent_channels:
            channel.close()
        self.is_closed = True
        task = self.makers[index].task.name
        cause = f"died with exit code {dead.exitcode}; its error is printed above"
        raise TaskError(f"the process that steps task {task!r} {cause}", task)


def _advance(data: TensorDictBase) -> TensorDictBase:
    """Return the next step's start from a step's result, task by task; other root entries are kept, as torchrl does."""
    if isinstance(data, LazyStackedTensorDict):
        return LazyStackedTensorDict.lazy_stack([_advance(part) for part in data.tensordicts], data.stack_dim)
    reached = data.get(NEXT)
    keys = set(reached.keys())
    state_keys = {key for key in keys if key in DONE_KEYS or key.startswith(OBSERVATION)}
    following: TensorDictBase = reached.exclude(*(keys - state_keys))
    for key, value in data.items():
        if key not in state_keys and key not in (NEXT, REWARD, "_reset"):
            # A policy may write into a nested entry in place.
            following.set(key, value.copy() if isinstance(value, TensorDictBase) else value)
    return following


def make_multi_task_env(
    names: str | Sequence[str],
    *,
    num_envs: int | None = None,
    seed: int = 0,
    engine: str | None = None,
    action_repeat: int | None = None,
    like: PolicyLike | None = None,
) -> MultiTaskEnv:
    """Return several tasks as one TorchRL environment, a process per task.

    ::

        env = mtray.make_multi_task_env(["cheetah-run", "walker-walk"], num_envs=4, like=policy)
        rollout = env.rollout(100, policy, return_contiguous=False)  # rollout[1] is walker-walk's, [4, 100]
        env.close()

    Args:
        names: tasks and task sets, as after ``--tasks``; a single name needs no list.
        num_envs: copies of each task; None for unbatched environments.
        seed: seed of the first task; the other tasks' seeds are derived from it.
        engine: see `make_task_env`.
        action_repeat: see `make_task_env`.
        like: see `make_task_env`.

    Raises:
        UsageError: num_envs or seed is out of range, an unknown name, tasks that one run can't have, or a task that
            differs from what the policy learned.
    """
    check_copies(num_envs, seed)
    tasks = tasks_like(names, engine, action_repeat, like)
    seeds = [seed, *(derive_seed(seed, 0, 3, index) for index in range(1, len(tasks)))]
    return MultiTaskEnv(make_makers(tasks, num_envs, seeds))
