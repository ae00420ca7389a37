"""The replay as a Ray actor."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mtray.cluster.actors.hello import Hello, say_hello
from mtray.config.settings import Config
from mtray.data import blocks
from mtray.data.blocks import Address
from mtray.data.messages import Push, Sampled
from mtray.data.specs import FloatArray, TaskSpec
from mtray.replay.buffer import ReplayBuffer
from mtray.replay.memory import MemoryAddress, RingMemory


class Replay:
    """The replay as an actor: see `mtray.replay.buffer.ReplayBuffer`.

    Its rings lie in memory that other processes of the node hold open, so that the next process can take them over.
    """

    def __init__(self, specs: tuple[TaskSpec, ...], config: Config) -> None:
        """Take what `reserve` and `take_over` need."""
        self._specs = specs
        self._config = config
        self._warmup_steps = config.learner.warmup_steps
        self._is_ready = False
        self._aside: Collection[str] = ()

    def hello(self, logs: Path, name: str) -> Hello:
        """Keep what this actor prints in a file of ``logs``; return where it is."""
        return say_hello(logs, name)

    def take_over(self, address: MemoryAddress) -> bool:
        """Go on from the memory of an earlier process; return whether that could be done, or anything is here already.

        Raises:
            RunError: that process is still there, and does not end when killed.
        """
        if not self._is_ready:
            try:
                memory = RingMemory.attach(address)
            except OSError:
                # On another node, or with its holder gone.
                return False
            self._replay = ReplayBuffer(self._specs, self._config.replay, self._config.seed, memory)
            self._replay.take_over()
            self._memory, self._is_ready = memory, True
        return True

    def reserve(self) -> bool:
        """Reserve empty rings; return whether there are any that are ready."""
        if not self._is_ready:
            self._memory = RingMemory.new(self._specs, self._config.replay.capacity_rows)
            self._replay = ReplayBuffer(self._specs, self._config.replay, self._config.seed, self._memory)
        return self._is_ready

    def write_rows(self, task: str, begin: int, rows: FloatArray) -> None:
        """Put back rows of a checkpoint, older ones first."""
        self._replay.write_rows(task, begin, rows)

    def load(self, state: dict[str, Any] | None) -> None:
        """Put back the rest of a checkpoint, if there is one: the rings are ready then."""
        if state is not None:
            self._replay.load(state)
        self._replay.begin_journal()
        self._is_ready = True

    def memory(self) -> MemoryAddress:
        """Return where the rings' memory is found, on this node."""
        return self._memory.address

    def insert(self, push: Push) -> bytes:
        """Store a push, once however often it is sent; return the frames stored for it, as decimal digits.

        Bytes are what Ray returns fastest.
        """
        receipt = self._replay.insert(push)
        return b"%d" % sum(receipt.frames.values())

    def stored(self, source: str) -> int:
        """Return the frames of all tasks that were stored for a source."""
        return self._replay.source_frames().get(source, 0)

    def sample_rows(
        self, rows_per_task: Mapping[str, int], batches: int, steps: int = 1, out: bytes | None = None
    ) -> Sampled | bytes:
        """Draw batches over all tasks; pickled if they are drawn into ``out``, pickled rows in a block.

        A task that was set aside, and whose rows were lost with an earlier process, is left out.
        """
        tasks = None
        if self._aside:
            tasks = tuple(task for task in rows_per_task if task not in self._aside or self._replay.holds_any(task))
        if out is None:
            return self._replay.sample_rows(rows_per_task, batches, tasks, steps=steps)
        return pickle.dumps(self._replay.sample_rows(rows_per_task, batches, tasks, pickle.loads(out), steps))

    def reaches(self, address: Address) -> bool:
        """Return whether rows may come and go in that process's blocks."""
        return blocks.reaches(address)

    def count(self, aside: Collection[str] = ()) -> dict[str, Any]:
        """Return what control must know.

        Args:
            aside: tasks that are set aside, for which the warm-up need not be complete.

        Returns:
            ``frames`` by task, ever stored; ``is_warm``, whether every task holds the warm-up's transitions, or as many
            as its ring can.
        """
        self._aside = aside
        return {
            "frames": self._replay.frames(),
            "is_warm": self._replay.holds(max(1, self._warmup_steps), aside),
        }

    def sources(self) -> dict[str, int]:
        """Return the frames of all tasks that were stored, by source."""
        return self._replay.source_frames()

    def fence(self, source: str) -> int:
        """Refuse further pushes of a source; return the frames of all tasks that were stored for it."""
        return self._replay.fence(source)

    def snapshot(self, aside: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `count` does and everything but the rows, as of one moment."""
        return self.count(aside), self._replay.state()

    def read_rows(self, task: str, begin: int, end: int) -> tuple[int, FloatArray]:
        """Return rows by number, as far as they are still held, and the number of the first."""
        return self._replay.read_rows(task, begin, end)
