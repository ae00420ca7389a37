"""Hosts: what a collector steps.

The simulators of several tasks together, without a TensorDict in the loop. ``parallel`` keeps a process per task,
``inline`` steps them in the collector's own process; both give the same data for the same seeds, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from mtray.collect.slots import Slot, close_sim, receive
from mtray.collect.worker import RESET, STEP, Worker, close_workers
from mtray.data.specs import TaskSpec
from mtray.engines.base import TASK_FAILURES, BatchSim, StepArrays, task_error
from mtray.errors import MtrayError
from mtray.tasks.makers import TaskMaker
from mtray.tasks.processes import engine_modules, start_fork_server


class Host(ABC):
    """Tasks stepped together: write ``slots[i].action``, call `step`, read the slots.

    A task's own code that raises is a `TaskError` that names the task; the host can only be closed after it.
    """

    specs: tuple[TaskSpec, ...]
    slots: tuple[Slot, ...]

    @abstractmethod
    def reset(self) -> None:
        """Start an episode in every copy."""

    @abstractmethod
    def step(self) -> None:
        """One agent step of every copy; copies whose episode ended start the next one."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulators and end their processes."""


class InlineHost(Host):
    """All tasks in the calling process."""

    def __init__(self, makers: Sequence[TaskMaker]) -> None:
        """Build every task's simulators."""
        self.specs = tuple(maker.task.spec for maker in makers)
        self._sims: list[BatchSim] = []
        slots, self._out = [], []
        name = ""
        try:
            for maker in makers:
                name = maker.task.name
                self._sims.append(maker.task.make_sim(maker.num_envs or 1, maker.seed))
        except BaseException as error:
            self.close()
            _raise(name, "maker", error)
        for sim in self._sims:
            out = StepArrays.empty(sim.num_envs, sim.spec)
            action = np.zeros((sim.num_envs, sim.spec.action_size), np.float32)
            self._out.append(out)
            slots.append(
                Slot(np.zeros_like(out.observation), action, out.observation, out.reward, out.terminated, out.truncated)
            )
        self.slots = tuple(slots)

    def reset(self) -> None:
        """Start an episode in every copy."""
        for sim, slot in zip(self._sims, self.slots, strict=True):
            try:
                sim.reset(np.ones(sim.num_envs, np.bool_), slot.observation)
            except TASK_FAILURES as error:
                _raise(sim.spec.name, "reset", error)

    def step(self) -> None:
        """One agent step of every copy; simulators with threads of their own work side by side."""
        name = ""
        try:
            for sim, slot in zip(self._sims, self.slots, strict=True):
                name = sim.spec.name
                sim.send(slot.action)
            for sim, slot, out in zip(self._sims, self.slots, self._out, strict=True):
                name = sim.spec.name
                receive(sim, slot, out)
        except TASK_FAILURES as error:
            _raise(name, "step", error)

    def close(self) -> None:
        """Free the simulators."""
        for sim in self._sims:
            close_sim(sim, sim.spec.name)


def _raise(name: str, call: str, error: BaseException) -> None:
    if isinstance(error, MtrayError) or not isinstance(error, TASK_FAILURES):
        raise error
    raise task_error(name, call, error) from error


class ParallelHost(Host):
    """A process per task; the slots are memory that it shares with them, so nothing is copied on the way."""

    def __init__(self, makers: Sequence[TaskMaker]) -> None:
        """Start the processes and wait until every copy stands at the start of an episode."""
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
        """One agent step of every copy, all tasks at once."""
        self._command(STEP)

    def close(self) -> None:
        """End the processes."""
        close_workers(self._workers)
        self._workers = []


def make_host(name: str, makers: Sequence[TaskMaker]) -> Host:
    """The host ``parallel`` or ``inline`` over these makers, every copy at the start of an episode."""
    if name == "parallel":
        return ParallelHost(makers)
    host = InlineHost(makers)
    try:
        host.reset()
    except BaseException:
        host.close()
        raise
    return host
