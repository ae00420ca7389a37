"""A process that steps one task for `ParallelHost`.

Enters: the task and its number of copies, by value; then commands of one byte through a socket. Leaves: arrays in
memory that it shares with its collector, and for each command one byte, with an error after it where one was raised.
It ends with its collector, however that ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mtray.collect.slots import Slot, close_sim, receive
from mtray.data.specs import TaskSpec
from mtray.engines.base import TASK_FAILURES, BatchSim, StepArrays, task_error
from mtray.errors import MtrayError, RunError, TaskError
from mtray.tasks.processes import die_with, hidden_main

if TYPE_CHECKING:
    from mtray.tasks.makers import TaskMaker

STEP, RESET, CLOSE = b"s", b"r", b"c"
_DONE, _FAILED = b".", b"!"

# A simulator that frees what it holds is waited for this long.
_CLOSE_SECONDS = 5.0
# A fork server is asked for a process with spawned state: its start method.
_CONTEXT = multiprocessing.get_context("forkserver")


class Worker:
    """A task's process, seen from its collector."""

    def __init__(self, maker: TaskMaker) -> None:
        """Start it; `wait` returns once every copy is at an episode's start.

        Args:
            maker: the task, its number of copies and its seed.
        """
        import cloudpickle

        self.name = maker.task.name
        spec, copies = maker.task.spec, maker.num_envs or 1
        memory = _CONTEXT.RawArray("b", _Layout(spec, copies).size)
        self.slot = _Layout(spec, copies).slot(memory)
        self._connection, theirs = _CONTEXT.Pipe()
        lifeline, self._lifeline = _CONTEXT.Pipe(duplex=False)
        blob = cloudpickle.dumps((maker.task, copies, maker.seed))
        self.process = _CONTEXT.Process(
            target=_run, args=(theirs, lifeline, memory, blob), name=f"mtray {self.name}", daemon=True
        )
        with hidden_main():
            self.process.start()
        theirs.close()
        lifeline.close()
        self.descriptor = self._connection.fileno()

    def send(self, command: bytes) -> None:
        """Begin a command; `wait` ends it."""
        try:
            os.write(self.descriptor, command)
        except (BrokenPipeError, ConnectionResetError):
            self._raise_death()

    def wait(self) -> None:
        """Wait until the command is done.

        Raises:
            TaskError: the task's code raised, or the process died.
            UsageError: what the maker built can't be used.
        """
        try:
            answer = os.read(self.descriptor, 1)
        except ConnectionResetError:
            answer = b""
        if answer == _DONE:
            return
        if answer == _FAILED:
            with contextlib.suppress(EOFError, OSError):
                raise self._connection.recv()
        self._raise_death()

    def _raise_death(self) -> NoReturn:
        self.process.join(timeout=5.0)
        code = self.process.exitcode
        if code is None:
            raise RunError(f"the process that steps task {self.name!r} closed its connection but did not end")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise TaskError(f"task {self.name!r}: the process that steps it {how}", self.name)

    def close(self, deadline: float) -> None:
        """Wait until it has ended, or kill it and its children at the deadline (`time.monotonic`)."""
        self.process.join(timeout=max(0.0, deadline - time.monotonic()))
        # Kills whatever is left of its group: see `die_with`.
        self._lifeline.close()
        self.process.kill()
        self.process.join()
        self._connection.close()


def close_workers(workers: list[Worker]) -> None:
    """Have processes close their simulators, side by side, and end."""
    for worker in workers:
        with contextlib.suppress(OSError):
            os.write(worker.descriptor, CLOSE)
    deadline = time.monotonic() + _CLOSE_SECONDS
    for worker in workers:
        worker.close(deadline)


@dataclass(frozen=True)
class _Layout:
    """Where a slot's arrays lie in shared memory."""

    spec: TaskSpec
    copies: int

    def _fields(self) -> list[tuple[tuple[int, ...], Any]]:
        observation, action = (self.copies, self.spec.observation_size), (self.copies, self.spec.action_size)
        flag = (self.copies,)
        numbers = [(shape, np.float32) for shape in (observation, action, observation, flag)]
        return [*numbers, (flag, np.bool_), (flag, np.bool_)]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self._fields())

    def slot(self, memory: Any) -> Slot:
        """The arrays, in the order of `Slot`."""
        arrays, start = [], 0
        for shape, dtype in self._fields():
            count = int(np.prod(shape))
            arrays.append(np.frombuffer(memory, dtype, count, start).reshape(shape))
            start += count * np.dtype(dtype).itemsize
        return Slot(*arrays)


def _run(connection: Connection, lifeline: Connection, memory: Any, blob: bytes) -> None:
    """The process: build the task, then step it until told to close."""
    die_with(lifeline.fileno())
    # Environments may start processes of their own, which end with this one.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    commands = connection.fileno()
    name, call = "?", "maker"
    sim: BatchSim | None = None
    try:
        import cloudpickle

        task, copies, seed = cloudpickle.loads(blob)
        name = task.name
        if task.maker is not None:
            import torch

            torch.set_num_threads(1)
        sim = task.make_sim(copies, seed)
        slot = _Layout(task.spec, copies).slot(memory)
        out = StepArrays(slot.next_observation, slot.reward, slot.terminated, slot.truncated)
        everyone = np.ones(copies, np.bool_)
        command = RESET
        while command in (STEP, RESET):
            call = "step" if command == STEP else "reset"
            if command == STEP:
                sim.send(slot.action)
                receive(sim, slot, out)
            else:
                sim.reset(everyone, slot.observation)
            os.write(commands, _DONE)
            command = os.read(commands, 1)
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
