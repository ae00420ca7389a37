"""Memory of the rings that outlives the replay's process.

The process that creates it writes it; other processes of the node hold it open. When the writer dies, the next one
takes it over, with every row that was acknowledged. It ends with the last process that holds it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtray.data.blocks import Address, Block, hold
from mtray.data.specs import FloatArray, TaskSpec
from mtray.errors import RunError
from mtray.replay.journal import Journal
from mtray.replay.ring import words_of
from mtray.tasks.processes import stat_of

# Time for which a killed process may still be there.
_END_SECONDS = 10.0


@dataclass(frozen=True)
class MemoryAddress:
    """Where a replay's memory is found, on its holder's node only."""

    rings: Mapping[str, Address]
    journal: Sequence[Address]


class RingMemory:
    """Memory of every ring and the journal of what was written to it."""

    def __init__(self, blocks: Mapping[str, Block], journal: Journal) -> None:
        """Take over blocks by task, and their journal."""
        self._blocks = dict(blocks)
        self.journal = journal

    @classmethod
    def new(cls, specs: Sequence[TaskSpec], capacity: int) -> RingMemory:
        """Reserve memory for rings of ``capacity`` rows."""
        return cls({spec.name: Block.new(words_of(spec, capacity)) for spec in specs}, Journal())

    @classmethod
    def attach(cls, address: MemoryAddress) -> RingMemory:
        """Open memory that another process holds; it stays as long as the returned object.

        Raises:
            OSError: it is on another node, or its holder has ended.
        """
        blocks = {task: Block(hold(block)) for task, block in address.rings.items()}
        return cls(blocks, Journal.attach(address.journal))

    @property
    def address(self) -> MemoryAddress:
        """Where others find it, as long as this process holds it."""
        rings = {task: block.address for task, block in self._blocks.items()}
        return MemoryAddress(rings, self.journal.addresses)

    def words(self, task: str) -> FloatArray:
        """Return a ring's memory."""
        return self._blocks[task].words


def process_identity() -> list[int]:
    """Return this process's id and start time, which no later process of this id shares."""
    return [os.getpid(), _start_ticks(os.getpid()) or 0]


def end_process(identity: Sequence[int]) -> None:
    """Kill another process if it is still there, and wait until it writes nothing any more.

    Raises:
        RunError: it does not end.
    """
    process, start = identity
    until = time.monotonic() + _END_SECONDS
    while process != os.getpid() and _start_ticks(process) == start:
        if time.monotonic() > until:
            raise RunError(f"process {process} still writes this memory: it does not end when killed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def _start_ticks(process: int) -> int | None:
    """Return when a process started, in the system's clock ticks; None if it has ended."""
    with contextlib.suppress(OSError):
        fields = stat_of(process)
        if fields[0] not in "ZX":
            return int(fields[19])
    return None
