"""The replay as a Ray actor."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtray.config.settings import Config
from mtray.data import blocks as shared
from mtray.data.blocks import Address
from mtray.data.messages import Push, Receipt, Sampled
from mtray.data.specs import FloatArray, TaskSpec
from mtray.replay.buffer import ReplayBuffer

if TYPE_CHECKING:
    pass


class Replay:
    """The replay as an actor: see `mtray.replay.buffer.ReplayBuffer`."""

    def __init__(self, specs: tuple[TaskSpec, ...], config: Config) -> None:
        """Reserve the rings."""
        self._replay = ReplayBuffer(specs, config.replay, config.seed)

    def ready(self) -> int:
        """This actor's process id."""
        return os.getpid()

    def insert(self, push: Push) -> Receipt:
        """Store a push once."""
        return self._replay.insert(push)

    def sample_rows(self, rows_per_task: int | Mapping[str, int], batches: int, steps: int = 1) -> Sampled:
        """Draw batches over all tasks."""
        return self._replay.sample_rows(rows_per_task, batches, steps=steps)

    def reaches(self, address: Address) -> bool:
        """Whether rows may come and go in that process's blocks."""
        return shared.reaches(address)

    def insert_near(self, push: bytes) -> bytes:
        """`insert` of rows in a block, both ways pickled by the caller's side: see `mtray.cluster.exchange`."""
        return pickle.dumps(self._replay.insert(pickle.loads(push)))

    def sample_near(self, rows_per_task: int | Mapping[str, int], batches: int, steps: int, out: bytes) -> bytes:
        """`sample_rows` into a block."""
        return pickle.dumps(self._replay.sample_rows(rows_per_task, batches, out=pickle.loads(out), steps=steps))

    def stats(self) -> dict[str, dict[str, int]]:
        """Frames inserted ever, per task and per source."""
        return {"frames": self._replay.frames(), "sources": self._replay.source_frames()}

    def snapshot(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Everything, as of one moment."""
        return self._replay.state(), {spec.name: self._replay.rows(spec.name) for spec in self._replay.specs}

    def load(self, state: dict[str, Any], rows: dict[str, FloatArray]) -> None:
        """Continue from a snapshot."""
        self._replay.load(state, rows)
