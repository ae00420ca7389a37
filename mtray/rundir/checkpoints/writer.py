"""Writing checkpoints: each a folder, whole or not there; rows are written once.

A folder is filled under a temporary name, flushed to disk and renamed; ``latest`` is then replaced in one step to name
it. A task's rows lie in chunks that are never changed: a new checkpoint holds the chunks of the one before as hard
links, or copies where the file system has none, and writes only rows that are newer. A chunk whose rows were all
overwritten is left out, and its file ends with the last checkpoint that holds it. So every folder is complete by
itself, and no copy of the rings is ever made. Where files of the checkpoint before are gone, the ring's rows are
written again.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from mtray.data.specs import FloatArray
from mtray.rundir.checkpoints.checkpoint import (
    COLLECTOR,
    FORMAT,
    LEARNER,
    POLICY,
    REPLAY,
    Checkpoint,
    Chunk,
    checkpoints_of,
    order,
)
from mtray.rundir.checkpoints.newest import newer_than
from mtray.rundir.files import LATEST, META, file_name, replace_file, sync, sync_folder

# A chunk is begun anew, with the rows before it, while it would stay smaller. So there are few, and a row is written a
# few times at most.
CHUNK_BYTES = 2**26

# From a task and the numbers of the first row and of the one after the last, to the number of the first that is still
# held, and the rows from there on.
Fetch: TypeAlias = Callable[[str, int, int], tuple[int, FloatArray]]


class CheckpointWriter:
    """Writes the checkpoints of one run, one after the other.

    Attributes:
        newest: the last that was written, or the one that the run began with; None if there is none.
        superseded: checkpoints of this run directory that are newer than the one it went on from; they are removed when
            another one is whole and named.
    """

    def __init__(
        self, run_dir: Path, keep: int, row_bytes: Mapping[str, int], resumed: Checkpoint | None = None
    ) -> None:
        """Write nothing yet.

        Args:
            run_dir: an existing folder.
            keep: newest checkpoints that are kept; older ones are removed.
            row_bytes: task to the bytes of one row.
            resumed: what the run began with, from this run directory or another.
        """
        self.run_dir = run_dir
        self.newest = resumed
        self.superseded = newer_than(resumed.path, run_dir) if resumed and resumed.path else []
        self._keep = keep
        self._row_bytes = row_bytes

    def write(self, checkpoint: Checkpoint, fetch: Fetch | None) -> Path:
        """Write a checkpoint and make it the latest.

        Args:
            checkpoint: without rows.
            fetch: reads rows, up to those that ``checkpoint.replay`` counts; None to save none.

        Raises:
            OSError: it can't be written; what was saved before it is whole, and nothing partial is left.
        """
        folder = self.run_dir / "checkpoints"
        # Not its parents: a run directory that was deleted is not made again.
        folder.mkdir(exist_ok=True)
        # A name is never used twice: the folder that `latest` names stands until another is whole and named.
        name = f"{checkpoint.frames:012d}"
        taken = [place[1] for path in checkpoints_of(self.run_dir) if (place := order(path)) and place[0] == int(name)]
        final = folder / (f"{name}.{max(taken) + 1}" if taken else name)
        partial = folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            checksums, rows = self._write_rows(partial, checkpoint.replay, fetch) if fetch else ({}, {})
            _write_rest(partial, checkpoint, checksums, rows)
            partial.rename(final)
        except OSError as error:
            # A full disk does not say which file.
            error.filename = error.filename or str(final)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(folder)
        replace_file(folder / LATEST, final.name)
        checkpoint.rows = {
            task: [Chunk(begin, end, final / file, checksums[file]) for begin, end, file in chunks]
            for task, chunks in rows.items()
        }
        checkpoint.path = final
        self.newest = checkpoint
        self._remove_old(final)
        return final

    def _remove_old(self, newest: Path) -> None:
        others = [path for path in checkpoints_of(self.run_dir) if path != newest]
        lineage = [path for path in others if path not in self.superseded]
        for old in [path for path in others if path not in lineage[max(0, len(lineage) - self._keep + 1) :]]:
            # What can't be removed stays until the next one is written.
            shutil.rmtree(old, ignore_errors=True)
        self.superseded = [path for path in self.superseded if path.exists()]

    def _write_rows(
        self, folder: Path, replay: Mapping[str, Any], fetch: Fetch
    ) -> tuple[dict[str, int], dict[str, list[tuple[int, int, str]]]]:
        """Write every task's chunks; return each file's checksum, and each task's chunks."""
        checksums: dict[str, int] = {}
        rows: dict[str, list[tuple[int, int, str]]] = {}
        for task, written in replay["written"].items():
            held = [] if self.newest is None else list(self.newest.rows.get(task, ()))
            chunks = rows[task] = []
            for chunk in _kept(held, replay["start"][task], written, self._row_bytes[task]):
                if isinstance(chunk, Chunk):
                    _link(chunk.path, folder / chunk.path.name)
                    chunks.append((chunk.begin, chunk.end, chunk.path.name))
                    checksums[chunk.path.name] = chunk.checksum
                    continue
                begin, array = fetch(task, *chunk)
                if len(array):
                    name = f"rows_{file_name(task)}_{begin:012d}-{chunk[1]:012d}.npy"
                    checksums[name] = _write_file(folder / name, functools.partial(_save, rows=array))
                    chunks.append((begin, chunk[1], name))
        return checksums, rows


def _kept(held: list[Chunk], start: int, written: int, row_bytes: int) -> Iterator[Chunk | tuple[int, int]]:
    """Yield the chunks that a checkpoint takes over, then the rows that it writes as new ones."""
    most = max(1, CHUNK_BYTES // row_bytes)
    held = [chunk for chunk in held if chunk.end > start]
    # The run that this one forked from removes its old checkpoints, and so may users.
    if not all(chunk.path.is_file() for chunk in held):
        held = []
    begin = held[-1].end if held else start
    # Small chunks are written again as part of a larger one, as a binary counter carries.
    while held and held[-1].end - held[-1].begin <= written - begin and written - held[-1].begin <= most:
        begin = held.pop().begin
    yield from held
    for first in range(max(begin, start), written, most):
        yield first, min(first + most, written)


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copyfile(old, new)
        with new.open("rb") as file:
            sync(file.fileno())


def _write_rest(
    folder: Path, checkpoint: Checkpoint, checksums: Mapping[str, int], rows: Mapping[str, Sequence[Any]]
) -> None:
    contents = {
        POLICY: checkpoint.policy,
        LEARNER: checkpoint.learner,
        REPLAY: json.dumps(checkpoint.replay).encode(),
        **{COLLECTOR.format(place): state for place, state in enumerate(checkpoint.collectors)},
    }
    sums = {name: _write_bytes(folder / name, data) for name, data in contents.items()}
    meta = {
        **checkpoint.meta,
        "format": FORMAT,
        "frames": checkpoint.frames,
        "rows": rows,
        "crc32": {**checksums, **sums},
    }
    _write_bytes(folder / META, json.dumps(meta, indent=1).encode())
    sync_folder(folder)


def _save(file: Any, rows: FloatArray) -> None:
    np.lib.format.write_array(file, rows, allow_pickle=False)


def _write_bytes(path: Path, data: bytes) -> int:
    return _write_file(path, lambda file: file.write(data))


def _write_file(path: Path, write: Callable[[Any], Any]) -> int:
    """Write a file, flush it to disk and return its checksum."""
    with path.open("wb") as file:
        summed = _Summed(file)
        write(summed)
        file.flush()
        sync(file.fileno())
    return summed.checksum


class _Summed:
    """An open file that sums up what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = 0

    def write(self, data: Any) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return self._file.write(data)
