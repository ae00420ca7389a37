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

    def ready(self) -> int:
        """This actor's process id."""
        return os.getpid()

    def insert(self, push: Push) -> None:
        """Store a push, once however often it is sent."""
        self._replay.insert(push)

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

    def stats(self) -> dict[str, dict[str, int]]:
        """Frames inserted ever, per task and per source."""
        return {"frames": self._replay.frames(), "sources": self._replay.source_frames()}

    def snapshot(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Everything, as of one moment."""
        return self._replay.state(), {spec.name: self._replay.rows(spec.name) for spec in self._replay.specs}

    def load(self, state: dict[str, Any], rows: dict[str, FloatArray]) -> None:
        """Continue from a snapshot."""
        self._replay.load(state, rows)
