"""The replay's account: frames, receipts and statistics of every push that was stored, and the records they make."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtray.data.messages import Push, Receipt
from mtray.data.specs import TaskSpec
from mtray.data.statistics import TaskStatistics
from mtray.errors import RunError
from mtray.replay.peaks import Peaks

# Receipts kept per source. A source has a few pushes in flight at most; an older push is a mistake, not a retry.
_RECEIPTS = 256
_LENGTH = struct.Struct("<I")


class Account:
    """What was stored, and for whom.

    Attributes:
        frames: task to frames ever stored.
        source_frames: source to frames ever stored, of all tasks.
        statistics: task to those of everything ever stored; the largest values are those of the newest (see `Peaks`).
    """

    def __init__(self, specs: tuple[TaskSpec, ...], capacity: int) -> None:
        """Begin with nothing stored, for rings of so many rows."""
        self._capacity = capacity
        self._peaks = {spec.name: Peaks() for spec in specs}
        self._specs = {spec.name: spec for spec in specs}
        self.frames = dict.fromkeys(self._specs, 0)
        self.source_frames: dict[str, int] = {}
        self.statistics = {
            spec.name: TaskStatistics(0, np.zeros(spec.observation_size), np.zeros(spec.observation_size))
            for spec in specs
        }
        self._receipts: dict[str, dict[int, Receipt]] = {}
        # Sources whose process is gone: what comes of them late is not stored, since it was requested again.
        self._fenced: set[str] = set()

    def find(self, source: str, number: int) -> Receipt | None:
        """Return the receipt of a push that is stored; None if it is to be stored.

        Raises:
            RunError: the push is older than the receipts kept, or its source was fenced.
        """
        if source in self._fenced:
            raise RunError(f"push {number} of {source} is refused: its process was replaced")
        receipts = self._receipts.get(source, {})
        if len(receipts) >= _RECEIPTS and number < min(receipts):
            raise RunError(f"push {number} of {source} comes after {_RECEIPTS} later ones: it is not a retry")
        return receipts.get(number)

    def next_number(self, source: str) -> int:
        """Return the number after a source's newest push."""
        return max(self._receipts.get(source, {}), default=-1) + 1

    def merge(self, push: Push) -> None:
        """Add a push's statistics."""
        for task, rows in push.rows.items():
            total = self.statistics[task]
            added = push.statistics.get(task) or TaskStatistics.of(rows, self._specs[task].observation_size)
            total.merge(added)
            peaks, largest_return = self._peaks[task], push.largest_returns.get(task, 0.0)
            peaks.add(added.largest_reward, largest_return, total.count, self._capacity)
            total.largest_reward, total.largest_return = peaks.largest

    def add(self, receipt: Receipt) -> None:
        """Count a push that was stored."""
        for task, frames in receipt.frames.items():
            self.frames[task] += frames
        source, frames = receipt.source, sum(receipt.frames.values())
        self.source_frames[source] = self.source_frames.get(source, 0) + frames
        kept = self._receipts.setdefault(source, {})
        kept[receipt.number] = receipt
        if len(kept) > _RECEIPTS:
            del kept[min(kept)]

    def fence(self, source: str) -> int:
        """Refuse further pushes of a source; return the frames of all tasks that were stored for it."""
        self._fenced.add(source)
        self._receipts.pop(source, None)
        return self.source_frames.get(source, 0)

    # Records of the journal.

    def record(self, receipt: Receipt, rows: Mapping[str, int]) -> bytes:
        """Return what a push changes: counts as JSON, then each of its tasks' statistics, as they are after it."""
        changed = [self.statistics[task] for task in rows]
        tasks = [
            [task, rows[task], receipt.frames[task], total.count, self._peaks[task].plain()]
            for task, total in zip(rows, changed, strict=True)
        ]
        text = json.dumps([receipt.source, receipt.number, tasks]).encode()
        numbers = (total.mean.tobytes() + total.square.tobytes() for total in changed)
        return b"".join((_LENGTH.pack(len(text)), text, *numbers))

    def apply(self, record: bytes) -> None:
        """Change what a record says."""
        source, number, tasks = _text(record)
        offset = _LENGTH.size + _LENGTH.unpack_from(record)[0]
        for task, _, _, count, peaks in tasks:
            size = self._specs[task].observation_size
            mean, square = np.frombuffer(record, np.float64, 2 * size, offset).reshape(2, size).copy()
            self._restore(task, count, mean, square, peaks)
            offset += 16 * size
        self.add(Receipt(source, number, {task: frames for task, _, frames, *_ in tasks}))

    # States.

    def state(self) -> dict[str, Any]:
        """Return everything but the fences, as plain JSON values."""
        return {
            "frames": dict(self.frames),
            "sources": dict(self.source_frames),
            "statistics": {
                task: [total.count, total.mean.tolist(), total.square.tolist(), self._peaks[task].plain()]
                for task, total in self.statistics.items()
            },
            "receipts": {
                source: [[receipt.number, dict(receipt.frames)] for receipt in receipts.values()]
                for source, receipts in self._receipts.items()
            },
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.frames.update(state["frames"])
        self.source_frames = dict(state["sources"])
        for task, (count, mean, square, peaks) in state["statistics"].items():
            self._restore(task, count, np.array(mean), np.array(square), peaks)
        self._receipts = {
            source: {number: Receipt(source, number, frames) for number, frames in receipts}
            for source, receipts in state["receipts"].items()
        }

    def _restore(self, task: str, count: int, mean: Any, square: Any, peaks: list[float]) -> None:
        self._peaks[task] = Peaks.of(peaks)
        self.statistics[task] = TaskStatistics(count, mean, square, *self._peaks[task].largest)


def rows_of(record: bytes) -> dict[str, int]:
    """Return the rows of each task that a record's push has."""
    return {task: rows for task, rows, *_ in _text(record)[2]}


def _text(record: bytes) -> Any:
    (length,) = _LENGTH.unpack_from(record)
    return json.loads(record[_LENGTH.size : _LENGTH.size + length])
