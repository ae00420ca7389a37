"""The host ``parallel``: a process per task. One that fails or hangs is ended, and another is started."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mtray.collect.hosts.base import Host
from mtray.collect.hosts.worker import STEP, Worker, close_workers
from mtray.engines.states import State
from mtray.errors import TaskError
from mtray.tasks.makers import TaskMaker
from mtray.tasks.processes import engine_modules, start_fork_server

# A simulator may hang for this long, ten times its longest step so far, and the longest reset of all copies: a step
# makes one at the end of their episodes.
_HANG_SECONDS = 20.0


class ParallelHost(Host):
    """A process per task; the slots are in shared memory, so that nothing is copied between processes."""

    def __init__(self, makers: Sequence[TaskMaker], *, rebuilds: bool = False) -> None:
        """Start the processes and wait until every copy is at an episode's start."""
        super().__init__(makers, rebuilds=rebuilds)
        start_fork_server(engine_modules([maker.task for maker in makers]))
        self._workers: list[Worker] = []
        self._longest_step = 0.0
        try:
            for maker in makers:
                self._workers.append(Worker(maker))
            self._longest_reset = max([worker.started() for worker in self._workers], default=0.0)
        except BaseException:
            self.close()
            raise
        self.slots = tuple(worker.slot for worker in self._workers)

    @property
    def processes(self) -> list[int]:
        """The process id of each task."""
        return [worker.process.pid or 0 for worker in self._workers]

    def _step_all(self) -> dict[int, TaskError]:
        """Have every process step; return the errors of those that failed."""
        failed: dict[int, TaskError] = {}
        for index, worker in enumerate(self._workers):
            try:
                worker.send(STEP)
            except TaskError as error:
                failed[index] = error
        for index, worker in enumerate(self._workers):
            try:
                if index not in failed:
                    worker.wait()
            except TaskError as error:
                failed[index] = error
        return failed

    def _step(self) -> None:
        begin = time.monotonic()
        try:
            failed = self._step_all()
            for index, error in failed.items():
                self._mend(index, error)
        except BaseException:
            self.close()
            raise
        seconds = time.monotonic() - begin
        if seconds > self._longest_step and not failed:
            self._longest_step = seconds
            self._limit(self._workers)

    def _limit(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.limit(_HANG_SECONDS + 10 * self._longest_step + self._longest_reset)

    def _rebuild(self, index: int) -> None:
        old = self._workers[index]
        close_workers([old])
        self._workers[index] = Worker(self._makers[index], old.memory)
        self._longest_reset = max(self._longest_reset, self._workers[index].started())
        self._limit([self._workers[index]])

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
