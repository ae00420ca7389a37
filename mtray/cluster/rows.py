"""The replay's rows, as far as the driver has to do with them: they outlive the replay, and pass in pieces."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from mtray.cluster.failures import one_line
from mtray.config.settings import Config
from mtray.data.specs import FloatArray, TaskSpec
from mtray.errors import RunError, UnreachableError, UsageError
from mtray.replay.buffer import ReplayBuffer
from mtray.replay.memory import RingMemory
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.rundir.checkpoints.writer import Fetch

# Bytes of rows that travel between the replay and the driver in one call: about 10 ms of the replay's time.
_PIECE_BYTES = 2**24

_LOGGER = logging.getLogger("mtray")


class RowsKeeper:
    """Holds the memory of the replay's rings, so that it outlives the replay; that of another node can't be held."""

    def __init__(self, specs: Sequence[TaskSpec], config: Config) -> None:
        """Hold nothing yet."""
        self._specs = tuple(specs)
        self._config = config
        self._memory: RingMemory | None = None
        self._was_filled = False

    def fill(self, replay: Any, saved: Checkpoint | None) -> tuple[str, bool]:
        """Make a new process of the replay ready, with what the one before had, or with a checkpoint.

        A checkpoint whose files of rows are gone since the run began gives its counts only; its rows are forgotten.

        Returns:
            Source of the rows, and whether there are any, as `Restored` has them.

        Raises:
            UsageError: the checkpoint that the run begins with can't be read.
        """
        source, has_rows = "memory", True
        if not self._takes_over(replay):
            self._memory = None
            source = "nothing" if saved is None else "checkpoint"
            if not ray.get(replay.reserve.remote()):
                has_rows = saved is None or self._put(replay, saved)
                ray.get(replay.load.remote(saved.replay if saved else None))
        with contextlib.suppress(OSError):
            self._memory = self._memory or RingMemory.attach(ray.get(replay.memory.remote()))
        self._was_filled = True
        return source, has_rows

    def _takes_over(self, replay: Any) -> bool:
        if self._memory is None:
            return False
        try:
            return bool(ray.get(replay.take_over.remote(self._memory.address)))
        except RayTaskError as error:
            _LOGGER.warning("the memory of the rings could not be taken over: %s", one_line(error))
            return False

    def take_over(self) -> ReplayBuffer:
        """Return the replay, which is gone, in this process.

        Raises:
            RunError: nothing was collected, or the replay does not end.
        """
        if self._memory is None and self._was_filled:
            raise RunError("the replay was on another node, and its rows with it")
        if self._memory is None:
            raise RunError("nothing was collected yet")
        replay = ReplayBuffer(self._specs, self._config.replay, self._config.seed, self._memory)
        replay.take_over()
        return replay

    def reader(self, replay: Any) -> Fetch:
        """Return a function that reads a task's rows by number; it raises UnreachableError if the replay dies."""

        def fetch(task: str, begin: int, end: int) -> tuple[int, FloatArray]:
            kept: list[FloatArray] = []
            try:
                for first, last in self._pieces(task, begin, end):
                    found, rows = ray.get(replay.read_rows.remote(task, first, last))
                    if found != first:
                        # Overwritten since: what came before has nothing to follow it.
                        kept = []
                    kept.append(rows)
            except (RayActorError, ObjectLostError) as error:
                raise UnreachableError("the replay is gone, so its rows can't be saved") from error
            joined = np.concatenate(kept)
            return end - len(joined), joined

        return fetch

    def _put(self, replay: Any, saved: Checkpoint) -> bool:
        """Put a checkpoint's rows into an empty replay; return whether there are any."""
        for task, chunks in saved.rows.items():
            for chunk in chunks:
                try:
                    rows = chunk.load()
                except UsageError as error:
                    if not self._was_filled:
                        raise
                    _LOGGER.warning("the replay begins without rows: %s", one_line(error))
                    # The next rows have the numbers of these: no later checkpoint may hold both.
                    saved.rows = {}
                    ray.get(replay.reserve.remote())
                    return False
                for first, last in self._pieces(task, chunk.begin, chunk.end):
                    ray.get(replay.write_rows.remote(task, first, rows[first - chunk.begin : last - chunk.begin]))
        return bool(saved.rows)

    def _pieces(self, task: str, begin: int, end: int) -> list[tuple[int, int]]:
        spec = next(spec for spec in self._specs if spec.name == task)
        rows = max(1, _PIECE_BYTES // (4 * spec.row_size))
        return [(first, min(first + rows, end)) for first in range(begin, end, rows)]
