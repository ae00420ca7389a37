"""The replay as a Ray actor."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

from mtray.config.settings import Config
from mtray.data import blocks
from mtray.data.blocks import Address
from mtray.data.messages import Push, Sampled
from mtray.data.specs import FloatArray, TaskSpec
from mtray.replay.buffer import ReplayBuffer


class Replay:
    """The replay as an actor: see `mtray.replay.buffer.ReplayBuffer`."""

    def __init__(self, specs: tuple[TaskSpec, ...], config: Config) -> None:
        """Reserve the rings."""
        self._replay = ReplayBuffer(specs, config.replay, config.seed)
        self._warmup_steps = config.learner.warmup_steps

    def hello(self) -> int:
        """Return this actor's process id."""
        return os.getpid()

    def build(self, state: dict[str, Any] | None = None, rows: Mapping[str, FloatArray] | None = None) -> None:
        """Continue from a snapshot, if there is one."""
        if state is not None:
            self._replay.load(state, rows or {})

    def insert(self, push: Push) -> bytes:
        """Store a push, once however often it is sent; return the frames stored for it, as decimal digits.

        Bytes are what Ray returns fastest.
        """
        receipt = self._replay.insert(push)
        return b"%d" % sum(receipt.frames.values())

    def sample_rows(
        self, rows_per_task: int | Mapping[str, int], batches: int, steps: int = 1, out: bytes | None = None
    ) -> Sampled | bytes:
        """Draw batches over all tasks; pickled if they are drawn into ``out``, pickled rows in a block."""
        if out is None:
            return self._replay.sample_rows(rows_per_task, batches, steps=steps)
        return pickle.dumps(self._replay.sample_rows(rows_per_task, batches, out=pickle.loads(out), steps=steps))

    def reaches(self, address: Address) -> bool:
        """Return whether rows may come and go in that process's blocks."""
        return blocks.reaches(address)

    def count(self) -> dict[str, Any]:
        """Return what control must know.

        Returns:
            ``frames`` by task, ever stored; ``is_warm``, whether every task holds the warm-up's transitions, or as many
            as its ring can.
        """
        return {
            "frames": self._replay.frames(),
            "is_warm": self._replay.holds(max(1, self._warmup_steps)),
        }

    def fence(self, source: str) -> int:
        """Refuse further pushes of a source; return the frames of all tasks that were stored for it."""
        return self._replay.fence(source)

    def snapshot(self, with_rows: bool = True) -> tuple[dict[str, Any], dict[str, Any], dict[str, FloatArray]]:
        """Return counts, state and, if asked, rows, as of one moment."""
        specs = self._replay.specs if with_rows else ()
        return self.count(), self._replay.state(), {spec.name: self._replay.rows(spec.name) for spec in specs}
