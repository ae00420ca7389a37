"""Hosts: the simulators of several tasks, stepped together without a TensorDict in the loop.

``parallel`` keeps a process per task, ``inline`` steps all tasks in the collector's process. For the same seeds both
give the same data, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from mtray.collect.slots import Slot, close_sim, finish_step, slot_bytes
from mtray.collect.worker import RESET, STEP, Worker, close_workers
from mtray.data.specs import TaskSpec
from mtray.engines.base import TASK_FAILURES, BatchSim, task_error
from mtray.engines.states import State
from mtray.errors import MtrayError
from mtray.tasks.makers import TaskMaker
from mtray.tasks.processes import engine_modules, start_fork_server


class Host(ABC):
    """Tasks stepped together: write ``slots[i].action``, call `step`, read the slots.

    An error of a task's own code is a `TaskError` that names the task; after it the host can only be closed.
    """

    specs: tuple[TaskSpec, ...]
    slots: tuple[Slot, ...]

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

    def __init__(self, makers: Sequence[TaskMaker]) -> None:
        """Build every task's simulators."""
        self.specs = tuple(maker.task.spec for maker in makers)
        self._sims: list[BatchSim] = []
        name = ""
        try:
            for maker in makers:
                name = maker.task.name
                self._sims.append(maker.task.make_sim(maker.num_envs or 1, maker.seed))
        except BaseException as error:
            self.close()
            _raise(name, "maker", error)
        sizes = [(sim.spec, sim.num_envs) for sim in self._sims]
        self.slots = tuple(Slot.view(bytearray(slot_bytes(*size)), *size) for size in sizes)

    def reset(self) -> None:
        """Start an episode in every copy."""
        for sim, slot in zip(self._sims, self.slots, strict=True):
            try:
                sim.reset(np.ones(sim.num_envs, np.bool_), slot.observation)
            except TASK_FAILURES as error:
                _raise(sim.spec.name, "reset", error)

    def step(self) -> None:
        """Take one agent step in every copy; simulators with threads of their own compute at the same time."""
        name = ""
        try:
            for sim, slot in zip(self._sims, self.slots, strict=True):
                name = sim.spec.name
                sim.send(slot.action)
            for sim, slot in zip(self._sims, self.slots, strict=True):
                name = sim.spec.name
                finish_step(sim, slot)
        except TASK_FAILURES as error:
            _raise(name, "step", error)

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


def _raise(name: str, call: str, error: BaseException) -> None:
    if isinstance(error, MtrayError) or not isinstance(error, TASK_FAILURES):
        raise error
    raise task_error(name, call, error) from error


class ParallelHost(Host):
    """A process per task; the slots are in shared memory, so that nothing is copied between processes."""

    def __init__(self, makers: Sequence[TaskMaker]) -> None:
        """Start the processes and wait until every copy is at an episode's start."""
        self.specs = tuple(maker.task.spec for maker in makers)
        start_fork_server(engine_modules([maker.task for maker in makers]))
        self._workers: list[Worker] = []
        try:
            for maker in makers:
                self._workers.append(Worker(maker))
            self._wait()
        except BaseException:
            self.close()
            raise
        self.slots = tuple(worker.slot for worker in self._workers)

    @property
    def processes(self) -> list[int]:
        """The process id of each task."""
        return [worker.process.pid or 0 for worker in self._workers]

    def _command(self, command: bytes) -> None:
        try:
            for worker in self._workers:
                worker.send(command)
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        for worker in self._workers:
            worker.wait()

    def reset(self) -> None:
        """Start an episode in every copy."""
        self._command(RESET)

    def step(self) -> None:
        """Take one agent step in every copy, all tasks in parallel."""
        self._command(STEP)

    def states(self) -> list[State | None]:
        """Return each task's `BatchSim.state`."""
        return [worker.state() for worker in self._workers]

    def load_states(self, states: Sequence[State]) -> None:
        """Load each task's state, all tasks in parallel."""
        for worker, state in zip(self._workers, states, strict=True):
            worker.load_state(state)
        self._wait()

    def close(self) -> None:
        """End the processes."""
        close_workers(self._workers)
        self._workers = []


def make_host(name: str, makers: Sequence[TaskMaker]) -> Host:
    """Return a ``parallel`` or ``inline`` host of these makers' tasks, every copy at an episode's start."""
    if name == "parallel":
        return ParallelHost(makers)
    host = InlineHost(makers)
    try:
        host.reset()
    except BaseException:
        host.close()
        raise
    return host
