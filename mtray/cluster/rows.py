"""Rows that pass through the driver, in pieces: from the replay to a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from mtray.data.specs import FloatArray, TaskSpec
from mtray.errors import UnreachableError
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.rundir.checkpoints.writer import Fetch

# Bytes of rows that travel between the replay and the driver in one call: about 10 ms of the replay's time.
_PIECE_BYTES = 2**24


def rows_reader(replay: Any, specs: Sequence[TaskSpec]) -> Fetch:
    """Return a function that reads a task's rows by number; it raises UnreachableError if the replay dies."""

    def fetch(task: str, begin: int, end: int) -> tuple[int, FloatArray]:
        try:
            pieces = [ray.get(replay.read_rows.remote(task, *piece)) for piece in _pieces(specs, task, begin, end)]
        except RayActorError as error:
            raise UnreachableError("the replay is gone, so its rows can't be saved") from error
        # Only the first pieces can have lost rows.
        rows = np.concatenate([rows for _, rows in pieces])
        return end - len(rows), rows

    return fetch


def put_rows(replay: Any, specs: Sequence[TaskSpec], saved: Checkpoint | None) -> None:
    """Put a checkpoint's rows, if there is one, into a replay that is empty."""
    for task, chunks in saved.rows.items() if saved else ():
        for chunk in chunks:
            rows = chunk.load()
            for first, last in _pieces(specs, task, chunk.begin, chunk.end):
                ray.get(replay.write_rows.remote(task, first, rows[first - chunk.begin : last - chunk.begin]))


def _pieces(specs: Sequence[TaskSpec], task: str, begin: int, end: int) -> list[tuple[int, int]]:
    spec = next(spec for spec in specs if spec.name == task)
    rows = max(1, _PIECE_BYTES // (4 * spec.row_size))
    return [(first, min(first + rows, end)) for first in range(begin, end, rows)]
