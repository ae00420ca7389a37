"""Several tasks as one TorchRL environment: torchrl's `ParallelEnv`, mended where it goes silently wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from tensordict import LazyStackedTensorDict, TensorDictBase
from torchrl.envs import ParallelEnv

from mtray.data.specs import NEXT, REWARD
from mtray.engines.base import copy_seed
from mtray.errors import RunError, TaskError
from mtray.tasks.env import Learned, tasks_like
from mtray.tasks.makers import TaskMaker, make_makers
from mtray.tasks.processes import engine_modules, hidden_main, start_fork_server


class MultiTaskEnv(ParallelEnv):
    """torchrl's ParallelEnv over tasks of any widths, a process per task.

    Beside the original: `rollout` advances the exclusive observations (theirs feeds the policy the reset
    observation at every step), the parent sleeps while the workers step (theirs spins on a core), and workers come
    from a fork server that has nothing of the parent's threads and imports the simulators once.
    """

    def __init__(self, makers: Sequence[TaskMaker], **kwargs: Any) -> None:
        """Build it; the workers start at the first reset.

        Args:
            makers: one per task.
            kwargs: passed to torchrl's ParallelEnv.
        """
        self.makers = list(makers)
        self._step_seconds = 0.0
        kwargs = {"mp_start_method": "forkserver", "use_buffers": True, "daemon": True, **kwargs}
        super().__init__(len(makers), self.makers, **kwargs)
        # One task is a multi-task run of one: the same layout, a lazy stack over its tasks.
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
        flags, pending = self._shm_done_flags, list(workers_range)
        begin = time.monotonic()
        # Every look costs the workers some of their core where there are no more cores than workers, so the parent
        # sleeps through most of a step, as long as the steps before took, and only then looks often.
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
        # Nothing to wait for after the sleep means that it was too long. One slow step must not make the next ones
        # slow, so the guess grows by half at most.
        took = time.monotonic() - begin
        self._step_seconds = min(took, 1.5 * self._step_seconds + 1e-4) if polls else 0.8 * self._step_seconds

    def _check_alive(self, pending: Sequence[int], deadline: float) -> None:
        for index in pending:
            if not self._workers[index].is_alive() and not self._shm_done_flags[index]:
                self.fail(index)
        if time.monotonic() > deadline:
            names = ", ".join(self.makers[index].task.name for index in pending)
            raise RunError(f"the processes of {names} did not answer within {self.BATCHED_PIPE_TIMEOUT:g} seconds")

    def fail(self, index: int) -> NoReturn:
        """End every process, because that of one task died.

        Raises:
            TaskError: always; it names the task.
        """
        dead = self._workers[index]
        dead.join(timeout=1.0)
        code = dead.exitcode
        self._terminate_and_join_workers(self._workers, timeout=2.0)
        for channel in self.parent_channels:
            channel.close()
        self.is_closed = True
        task = self.makers[index].task.name
        raise TaskError(
            f"the process that steps task {task!r} died with exit code {code}; its error is printed above", task
        )


def _advance(data: TensorDictBase) -> TensorDictBase:
    """The state a step reached as the next step's start, each task with its own keys."""
    if isinstance(data, LazyStackedTensorDict):
        return LazyStackedTensorDict.lazy_stack([_advance(part) for part in data.tensordicts], data.stack_dim)
    return data.get(NEXT).exclude(REWARD)


def make_multi_task_env(
    names: Sequence[str],
    *,
    num_envs: int | None = None,
    seed: int = 0,
    engine: str | None = None,
    action_repeat: int | None = None,
    like: Learned | None = None,
) -> MultiTaskEnv:
    """Several tasks side by side as one TorchRL environment, a process per task.

    ::

        env = mtray.make_multi_task_env(["cheetah-run", "walker-walk"], num_envs=4, like=policy)
        rollout = env.rollout(100, policy, return_contiguous=False)  # rollout[1] is walker-walk's, [4, 100]
        env.close()

    Args:
        names: tasks and task sets, as after ``--tasks``.
        num_envs: copies of each task; None for unbatched environments.
        seed: of the first task; the others' follow from it.
        engine: as in `make_task_env`.
        action_repeat: as in `make_task_env`.
        like: as in `make_task_env`.

    Raises:
        UsageError: an unknown name, tasks that can't live together, or a spec that is not the policy's.
    """
    tasks = tasks_like(names, engine, action_repeat, like)
    seeds = [copy_seed(seed, index) for index in range(len(tasks))]
    return MultiTaskEnv(make_makers(tasks, num_envs, seeds))
