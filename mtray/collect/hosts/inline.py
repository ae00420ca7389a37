"""The host ``inline``: all tasks in the calling process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtray.collect.hosts.base import Host
from mtray.collect.hosts.slots import Slot, close_sim, finish_step, reset_copies, slot_bytes
from mtray.engines.base import TASK_FAILURES, BatchSim, task_error
from mtray.engines.states import State
from mtray.errors import MtrayError, TaskError
from mtray.tasks.generators import seed_generators
from mtray.tasks.makers import TaskMaker


class InlineHost(Host):
    """All tasks in the calling process."""

    def __init__(self, makers: Sequence[TaskMaker], *, rebuilds: bool = False) -> None:
        """Build every task's simulators and start an episode in every copy."""
        super().__init__(makers, rebuilds=rebuilds)
        self._sims: list[BatchSim] = []
        name = ""
        try:
            for maker in makers:
                name = maker.task.name
                self._sims.append(_make_sim(maker))
            sizes = [(sim.spec, sim.num_envs) for sim in self._sims]
            self.slots = tuple(Slot.view(bytearray(slot_bytes(*size)), *size) for size in sizes)
            for sim, slot in zip(self._sims, self.slots, strict=True):
                _reset(sim, slot)
        except BaseException as error:
            self.close()
            raise _task_error(name, "maker", error) from error

    def _step(self) -> None:
        # Simulators with threads of their own compute at the same time.
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
    # The process is a collector's. Its tasks share the generators, and go on from the seed of the one built last.
    seed_generators(maker.task, maker.seed)
    return maker.task.make_sim(maker.num_envs or 1, maker.seed)


def _reset(sim: BatchSim, slot: Slot) -> None:
    try:
        reset_copies(sim, slot, np.ones(sim.num_envs, np.bool_))
    except TASK_FAILURES as error:
        raise _task_error(sim.spec.name, "reset", error) from error


def _task_error(name: str, call: str, error: BaseException) -> BaseException:
    is_task_code = isinstance(error, TASK_FAILURES) and not isinstance(error, MtrayError)
    return task_error(name, call, error) if is_task_code else error
