"""Makers: what travels to the process that shall step a task, and builds it there.

Building a TorchRL environment imports torch and TorchRL; a maker itself needs neither, so that a collector which
steps its tasks itself starts without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtray.data.specs import check_together, observation_width
from mtray.tasks.plan import Task

if TYPE_CHECKING:
    from mtray.tasks.env import TaskEnv


@dataclass(frozen=True)
class TaskMaker:
    """A picklable maker: called in whatever process shall step the task, it builds its `TaskEnv`.

    Attributes:
        task: the task.
        num_envs: K copies, or None for one unbatched environment.
        seed: of the first copy; the others' follow from it.
        observation_width: width of the common ``observation``.
    """

    task: Task
    num_envs: int | None
    seed: int
    observation_width: int

    def __call__(self) -> TaskEnv:
        """Build the environment; its simulators are built at its first reset."""
        from mtray.tasks.env import TaskEnv

        return TaskEnv(self.task, num_envs=self.num_envs, seed=self.seed, observation_width=self.observation_width)


def make_makers(
    tasks: Sequence[Task], num_envs: int | Sequence[int] | None, seeds: Sequence[int], width: int | None = None
) -> list[TaskMaker]:
    """A maker per task.

    Args:
        tasks: what to make.
        num_envs: copies of each task, one number for all or one for each; None for unbatched environments.
        seeds: one per task.
        width: of the common observation; by default that of the widest of these tasks.

    Raises:
        UsageError: the tasks can't live together.
    """
    specs = [task.spec for task in tasks]
    check_together(specs)
    common = width or observation_width(specs)
    counts = num_envs if isinstance(num_envs, Sequence) else [num_envs] * len(tasks)
    rows = zip(tasks, counts, seeds, strict=True)
    return [TaskMaker(task, count, seed, common) for task, count, seed in rows]
