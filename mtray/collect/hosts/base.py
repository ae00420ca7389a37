"""Hosts: the simulators of several tasks, stepped together without a TensorDict in the loop.

``parallel`` keeps a process per task, ``inline`` steps all tasks in the collector's process. For the same seeds both
give the same data, bit for bit; except several tasks that draw from the process's generators, which share them inline.

A task whose simulator fails in a step can be built anew, beside the others: the step is then marked as broken, and
every copy of the task stands at the start of an episode.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

from mtray.collect.hosts.slots import Slot, mark_broken
from mtray.data.specs import TaskSpec
from mtray.engines.base import derive_seed
from mtray.engines.states import State
from mtray.errors import TaskError, UsageError
from mtray.tasks.makers import TaskMaker


class Host(ABC):
    """Tasks stepped together: write ``slots[i].action``, call `step`, read the slots.

    An error of a task's own code is a `TaskError` that names the task. Where the host rebuilds, it raises none that a
    new simulator mends. After an error the host can only be closed: every step raises it again.
    """

    specs: tuple[TaskSpec, ...]
    slots: tuple[Slot, ...]

    def __init__(self, makers: Sequence[TaskMaker], *, rebuilds: bool) -> None:
        """Take the tasks; ``rebuilds``: simulators that fail in a step are built anew."""
        self.specs = tuple(maker.task.spec for maker in makers)
        self._makers = list(makers)
        self._rebuilds = rebuilds
        self._failures: list[TaskError] = []
        self._error: BaseException | None = None

    def step(self) -> None:
        """Take one agent step in every copy; copies whose episode ended start the next one."""
        if self._error is not None:
            # A call that was made before the caller knew: stepped without simulators, slots would stay as they are.
            raise self._error
        try:
            self._step()
        except BaseException as error:
            self._error = error
            raise

    def take_failures(self) -> tuple[TaskError, ...]:
        """Return the error of each simulator that was built anew since the last call."""
        failures, self._failures = tuple(self._failures), []
        return failures

    def _mend(self, index: int, error: TaskError) -> None:
        """Build a task's simulator anew, with another seed; raise the error, or the new one, if that can't be."""
        if not self._rebuilds:
            raise error
        maker = self._makers[index]
        self._makers[index] = dataclasses.replace(maker, seed=derive_seed(maker.seed, 0, 1))
        try:
            self._rebuild(index)
        except UsageError as found:
            # What could be used when the run began: it is no wrong input now, but the task's failure.
            raise TaskError(str(found), maker.task.name) from found
        mark_broken(self.slots[index])
        self._failures.append(error)

    @abstractmethod
    def _rebuild(self, index: int) -> None:
        """End a task's simulator and build another, every copy at an episode's start."""

    @property
    def processes(self) -> list[int]:
        """Ids of the simulators' own processes; none where tasks are stepped in this one."""
        return []

    @abstractmethod
    def _step(self) -> None:
        """Step every task; mend those that failed."""

    @abstractmethod
    def states(self) -> list[State | None]:
        """Return each task's `BatchSim.state`."""

    @abstractmethod
    def load_states(self, states: Sequence[State]) -> None:
        """Load each task's state; observations in the slots stay as they are."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulators and end their processes."""
