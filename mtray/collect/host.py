"""Hosts: the simulators of several tasks, stepped together without a TensorDict in the loop.

``parallel`` keeps a process per task, ``inline`` steps all tasks in the collector's process. For the same seeds both
give the same data, bit for bit.

A task whose simulator fails in a step can be built anew, beside the others: the step is then marked as broken, and
every copy of the task stands at the start of an episode.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from mtray.collect.slots import Slot, close_sim, finish_step, mark_broken, slot_bytes
from mtray.collect.worker import RESET, STEP, Worker, close_workers
from mtray.data.specs import TaskSpec
from mtray.engines.base import TASK_FAILURES, BatchSim, task_error
from mtray.engines.states import State
from mtray.errors import MtrayError, TaskError
from mtray.tasks.makers import TaskMaker
from mtray.tasks.processes import engine_modules, start_fork_server

# A simulator may hang for this long and ten times its longest step so far.
_HANG_SECONDS = 20.0


class Host(ABC):
    """Tasks stepped together: write ``slots[i].action``, call `step`, read the slots.

    An error of a task's own code is a `TaskError` that names the task. Where the host rebuilds, it raises none that a
    new simulator mends. After an error the host can only be closed.
    """

    specs: tuple[TaskSpec, ...]
    slots: tuple[Slot, ...]

    def __init__(self, makers: Sequence[TaskMaker], *, rebuilds: bool) -> None:
        """Take the tasks; ``rebuilds``: simulators that fail in a step are built anew."""
        self.specs = tuple(maker.task.spec for maker in makers)
        self._makers = list(makers)
        self._rebuilds = rebuilds
        self._failures: list[TaskError] = []

    def take_failures(self) -> tuple[TaskError, ...]:
        """Return the error of each simulator that was built anew since the last call."""
        failures, self._failures = tuple(self._failures), []
        return failures

    def _mend(self, index: int, error: TaskError) -> None:
        """Build a task's simulator anew, with another seed; raise the error, or the new one, if that can't be."""
        if not self._rebuilds:
            raise error
        maker = self._makers[index]
        seed = int(np.random.SeedSequence([maker.seed, len(self._makers)]).generate_state(1)[0])
        self._makers[index] = dataclasses.replace(maker, seed=seed)
        self._rebuild(index)
        mark_broken(self.slots[index])
        self._failures.append(error)

    @abstractmethod
    def _rebuild(self, index: int) -> None:
        """End a task's simulator and build another, every copy at an episode's start."""

    @abstractmethod
    def reset(self) -> None:
        """Start an episode in every copy."""

    @abstractmethod
    def step(self) -> None:
        """Take one agent step in every copy; copies whose episode ended start the next one."""

    @abstractmethod
    def states(self) -> list[State | None]:
        """Return each task's `BatchSim.state`."""

    @abstractmethod
    def load_states(self, states: Sequence[State]) -> None:
        """Load each task's state; observations in the slots stay as they are."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulators and end their processes."""


class InlineHost(Host):
    """All tasks in the calling process."""

    def __init__(self, makers: Sequence[TaskMaker], *, rebuilds: bool = False) -> None:
        """Build every task's simulators."""
        super().__init__(makers, rebuilds=rebuilds)
        self._sims: list[BatchSim] = []
        name = ""
        try:
            for maker in makers:
                name = maker.task.name
                self._sims.append(_make_sim(maker))
        except BaseException as error:
            self.close()
            raise _task_error(name, "maker", error) from error
        sizes = [(sim.spec, sim.num_envs) for sim in self._sims]
        self.slots = tuple(Slot.view(bytearray(slot_bytes(*size)), *size) for size in sizes)

    def reset(self) -> None:
        """Start an episode in every copy."""
        for sim, slot in zip(self._sims, self.slots, strict=True):
            _reset(sim, slot)

    def step(self) -> None:
        """Take one agent step in every copy; simulators with threads of their own compute at the same time."""
        failed: dict[int, BaseException] = {}
        for index, (sim, slot) in enumerate(zip(self._sims, self.slots, strict=True)):
            try:
                sim.send(slot.action)
            except TASK_FAILURES as error:
                failed[index] = error
        for index, (sim, slot) in enumerate(zip(self._sims, self.slots, strict=True)):
            try:
                if index not in failed:
                    finish_step(sim, slot)
            except TASK_FAILURES as error:
                failed[index] = error
        for index, cause in failed.items():
            described = _task_error(self.specs[index].name, "step", cause)
            if not isinstance(described, TaskError):
                raise described from cause
            self._mend(index, described)

    def _rebuild(self, index: int) -> None:
        name = self.specs[index].name
        close_sim(self._sims[index], name)
        try:
            self._sims[index] = _make_sim(self._makers[index])
        except TASK_FAILURES as error:
            raise _task_error(name, "maker", error) from error
        _reset(self._sims[index], self.slots[index])

    def states(self) -> list[State | None]:
        """Return each task's `BatchSim.state`."""
        return [sim.state() for sim in self._sims]

    def load_states(self, states: Sequence[State]) -> None:
        """Load each task's state."""
        for sim, state in zip(self._sims, states, strict=True):
            sim.load_state(state)

    def close(self) -> None:
        """Free the simulators."""
        for sim in self._sims:
            close_sim(sim, sim.spec.name)


def _make_sim(maker: TaskMaker) -> BatchSim:
    return maker.task.make_sim(maker.num_envs or 1, maker.seed)


def _reset(sim: BatchSim, slot: Slot) -> None:
    try:
        sim.reset(np.ones(sim.num_envs, np.bool_), slot.observation)
    except TASK_FAILURES as error:
        raise _task_error(sim.spec.name, "reset", error) from error


def _task_error(name: str, call: str, error: BaseException) -> BaseException:
    is_task_code = isinstance(error, TASK_FAILURES) and not isinstance(error, MtrayError)
    return task_error(name, call, error) if is_task_code else error


class ParallelHost(Host):
    """A process per task; the slots are in shared memory, so that nothing is copied between processes."""

    def __init__(self, makers: Sequence[TaskMaker], *, rebuilds: bool = False) -> None:
        """Start the processes and wait until every copy is at an episode's start."""
        super().__init__(makers, rebuilds=rebuilds)
        start_fork_server(engine_modules([maker.task for maker in makers]))
        self._workers: list[Worker] = []
        self._longest_seconds = 0.0
        try:
            for maker in makers:
                self._workers.append(Worker(maker))
            for worker in self._workers:
                worker.wait()
        except BaseException:
            self.close()
            raise
        self.slots = tuple(worker.slot for worker in self._workers)

    @property
    def processes(self) -> list[int]:
        """The process id of each task."""
        return [worker.process.pid or 0 for worker in self._workers]

    def _command(self, command: bytes) -> dict[int, TaskError]:
        """Have every process do something; return the errors of those that failed."""
        failed: dict[int, TaskError] = {}
        for index, worker in enumerate(self._workers):
            try:
                worker.send(command)
            except TaskError as error:
                failed[index] = error
        for index, worker in enumerate(self._workers):
            try:
                if index not in failed:
                    worker.wait()
            except TaskError as error:
                failed[index] = error
        return failed

    def reset(self) -> None:
        """Start an episode in every copy."""
        for error in self._command(RESET).values():
            self.close()
            raise error

    def step(self) -> None:
        """Take one agent step in every copy, all tasks in parallel."""
        begin = time.monotonic()
        try:
            for index, error in self._command(STEP).items():
                self._mend(index, error)
        except BaseException:
            self.close()
            raise
        seconds = time.monotonic() - begin
        if seconds > self._longest_seconds:
            self._longest_seconds = seconds
            for worker in self._workers:
                worker.limit(_HANG_SECONDS + 10 * seconds)

    def _rebuild(self, index: int) -> None:
        old = self._workers[index]
        close_workers([old])
        self._workers[index] = Worker(self._makers[index], old.memory)
        self._workers[index].wait()
        self._workers[index].limit(_HANG_SECONDS + 10 * self._longest_seconds)

    def states(self) -> list[State | None]:
        """Return each task's `BatchSim.state`."""
        return [worker.state() for worker in self._workers]

    def load_states(self, states: Sequence[State]) -> None:
        """Load each task's state, all tasks in parallel."""
        for worker, state in zip(self._workers, states, strict=True):
            worker.load_state(state)
        for worker in self._workers:
            worker.wait()

    def close(self) -> None:
        """End the processes."""
        close_workers(self._workers)
        self._workers = []


def make_host(name: str, makers: Sequence[TaskMaker], *, rebuilds: bool = False) -> Host:
    """Return a ``parallel`` or ``inline`` host of these makers' tasks, every copy at an episode's start.

    Args:
        name: ``parallel`` or ``inline``.
        makers: one per task.
        rebuilds: a simulator that fails in a step is built anew (see `Host.take_failures`).
    """
    if name == "parallel":
        return ParallelHost(makers, rebuilds=rebuilds)
    host = InlineHost(makers, rebuilds=rebuilds)
    try:
        host.reset()
    except BaseException:
        host.close()
        raise
    return host
