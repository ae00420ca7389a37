"""A process that steps one task for `ParallelHost`.

Enters: the task, its number of copies and seed, pickled; then commands of one byte through a socket. Leaves: a slot in
shared memory, and for each command a byte that says whether it succeeded, followed by the error if it did not. The
process ends with its collector, even if the collector is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mtray.collect.hosts.slots import Slot, close_sim, finish_step, reset_copies, slot_bytes
from mtray.engines.base import TASK_FAILURES, BatchSim, task_error
from mtray.engines.states import State
from mtray.errors import MtrayError, RunError, TaskError
from mtray.tasks.generators import seed_generators
from mtray.tasks.processes import die_with, hidden_main, limit_torch

if TYPE_CHECKING:
    from mtray.tasks.makers import TaskMaker

STEP, STATE, LOAD, CLOSE = b"s", b"g", b"l", b"c"
_CALLS = {STEP: "step", STATE: "state", LOAD: "load_state"}
_DONE, _FAILED = b".", b"!"

# Time that simulators have for closing.
_CLOSE_SECONDS = 5.0
_CONTEXT = multiprocessing.get_context("forkserver")


class Worker:
    """A task's process, seen from its collector."""

    def __init__(self, maker: TaskMaker, memory: Any = None) -> None:
        """Start the process; `started` waits until every copy is at an episode's start.

        Args:
            maker: the task, its copies and seed.
            memory: that of a process that is gone, to write to the same slot.
        """
        import cloudpickle

        self.name = maker.task.name
        spec, copies = maker.task.spec, maker.num_envs or 1
        self.memory = _CONTEXT.RawArray("b", slot_bytes(spec, copies)) if memory is None else memory
        self.slot = Slot.view(self.memory, spec, copies)
        self._connection, theirs = _CONTEXT.Pipe()
        lifeline, self._lifeline = _CONTEXT.Pipe(duplex=False)
        blob = cloudpickle.dumps((maker.task, copies, maker.seed))
        self.process = _CONTEXT.Process(
            target=_run, args=(theirs, lifeline, self.memory, blob), name=f"mtray {self.name}", daemon=True
        )
        with hidden_main():
            self.process.start()
        theirs.close()
        lifeline.close()
        self.descriptor = self._connection.fileno()

    def send(self, command: bytes) -> None:
        """Send a command; `wait` waits for its end."""
        try:
            os.write(self.descriptor, command)
        except (BrokenPipeError, ConnectionResetError):
            self._raise_death()

    def limit(self, seconds: float) -> None:
        """Wait for so long at most from now on."""
        with socket.socket(fileno=os.dup(self.descriptor)) as connection:
            timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)

    def wait(self) -> None:
        """Wait until the command is done.

        Raises:
            TaskError: the task's code raised, or the process died or hangs.
            UsageError: the environment that the maker built can't be used.
        """
        try:
            answer = os.read(self.descriptor, 1)
        except ConnectionResetError:
            answer = b""
        except BlockingIOError:
            # Kills its process group, too.
            self._lifeline.close()
            raise TaskError(f"task {self.name!r}: the process that steps it hangs", self.name) from None
        if answer == _DONE:
            return
        if answer == _FAILED:
            with contextlib.suppress(EOFError, OSError):
                raise self._connection.recv()
        self._raise_death()

    def started(self) -> float:
        """Wait until every copy is at an episode's start; return the seconds that their reset took."""
        return float(self._receive())

    def state(self) -> State | None:
        """Return the state that the simulators give."""
        self.send(STATE)
        state: State | None = self._receive()
        return state

    def _receive(self) -> Any:
        self.wait()
        with contextlib.suppress(EOFError, OSError):
            return self._connection.recv()
        self._raise_death()

    def load_state(self, state: State) -> None:
        """Send a state to the simulators; `wait` waits until it is loaded."""
        self.send(LOAD)
        try:
            self._connection.send(state)
        except OSError:
            self._raise_death()

    def _raise_death(self) -> NoReturn:
        self.process.join(timeout=5.0)
        code = self.process.exitcode
        if code is None:
            raise RunError(f"the process that steps task {self.name!r} closed its connection but did not end")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise TaskError(f"task {self.name!r}: the process that steps it {how}", self.name)

    def close(self, deadline: float) -> None:
        """Wait for the process to end; at the deadline (`time.monotonic`) kill it and its children."""
        self.process.join(timeout=max(0.0, deadline - time.monotonic()))
        # Kills its process group: see `die_with`. Once it is gone nobody listens, but what it started may be left.
        self._lifeline.close()
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self._connection.close()


def close_workers(workers: list[Worker]) -> None:
    """Close the simulators of all processes at once and end the processes."""
    for worker in workers:
        with contextlib.suppress(OSError):
            os.write(worker.descriptor, CLOSE)
    deadline = time.monotonic() + _CLOSE_SECONDS
    for worker in workers:
        worker.close(deadline)


def _run(connection: Connection, lifeline: Connection, memory: Any, blob: bytes) -> None:
    """Build the task, then step it until the command to close: the process's main function."""
    die_with(lifeline.fileno())
    # Daemons can't have children, but environments may start processes; they end with this one.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    commands = connection.fileno()
    name, call = "?", "maker"
    sim: BatchSim | None = None
    try:
        import cloudpickle

        task, copies, seed = cloudpickle.loads(blob)
        name = task.name
        limit_torch([task])
        seed_generators(task, seed)
        sim = task.make_sim(copies, seed)
        slot, call, begin = Slot.view(memory, task.spec, copies), "reset", time.monotonic()
        reset_copies(sim, slot, np.ones(copies, np.bool_))
        os.write(commands, _DONE)
        connection.send(time.monotonic() - begin)
        while (command := os.read(commands, 1)) in _CALLS:
            call, state = _CALLS[command], None
            if command == STATE:
                state = sim.state()
            elif command == LOAD:
                sim.load_state(connection.recv())
            else:
                sim.send(slot.action)
                finish_step(sim, slot)
            os.write(commands, _DONE)
            if command == STATE:
                connection.send(state)
    except MtrayError as error:
        _report(connection, error)
    except TASK_FAILURES as error:
        _report(connection, task_error(name, call, error))
    finally:
        connection.close()
        if sim is not None:
            close_sim(sim, name)


def _report(connection: Connection, error: MtrayError) -> None:
    with contextlib.suppress(OSError):
        os.write(connection.fileno(), _FAILED)
        connection.send(error)
