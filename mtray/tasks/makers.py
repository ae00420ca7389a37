"""Makers: picklable callables that build a task's environment in the process that steps it.

Only the call imports torch and TorchRL.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtray.data.specs import check_together, observation_width
from mtray.tasks.generators import seed_generators
from mtray.tasks.plan import Task

if TYPE_CHECKING:
    from mtray.tasks.env import TaskEnv


# Hashed by its identity, as TorchRL hashes it: a user's maker need not be hashable.
@dataclass(frozen=True, eq=False)
class TaskMaker:
    """A picklable maker of a task's `TaskEnv`.

    Attributes:
        task: the task.
        num_envs: number of copies, K; None for one unbatched environment.
        seed: seed of the first copy; the other copies' seeds are derived from it.
        observation_width: width of the common ``observation``.
    """

    task: Task
    num_envs: int | None
    seed: int
    observation_width: int

    def __call__(self) -> TaskEnv:
        """Build the environment; the first reset builds the simulators."""
        from mtray.tasks.env import TaskEnv

        # In a process that `MultiTaskEnv` started; the user's own is left alone.
        if multiprocessing.parent_process() is not None:
            seed_generators(self.task, self.seed)
        return TaskEnv(self.task, num_envs=self.num_envs, seed=self.seed, observation_width=self.observation_width)


def make_makers(
    tasks: Sequence[Task], num_envs: int | Sequence[int] | None, seeds: Sequence[int], width: int | None = None
) -> list[TaskMaker]:
    """Return a maker per task.

    Args:
        tasks: the tasks.
        num_envs: copies of each task, one number for all or one per task; None for unbatched environments.
        seeds: one per task.
        width: width of the common observation; by default that of the widest task.

    Raises:
        UsageError: one run can't have all these tasks.
    """
    specs = [task.spec for task in tasks]
    check_together(specs)
    width = width or observation_width(specs)
    copies = num_envs if isinstance(num_envs, Sequence) else [num_envs] * len(tasks)
    return [TaskMaker(*each, width) for each in zip(tasks, copies, seeds, strict=True)]
