"""Where lines of figures go: metrics.jsonl and TensorBoard; `mtray.rundir.screen` is the terminal.

A sink that can't be written never ends a run: `Guarded` warns once per cause and lets the run go on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mtray.rundir.files import to_json, whole_lines


class Sink(Protocol):
    """Where lines go."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take one line of figures."""

    def close(self) -> None:
        """No more lines."""


def say(text: str) -> None:
    """Write to stderr; a terminal or pipe that was closed is no reason to end a run."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        # AttributeError and ValueError: there is no stderr, or it was closed in this process.
        return


class Guarded:
    """A sink whose failures to write are told once per cause."""

    def __init__(self, sink: Sink, name: str) -> None:
        """Wrap a sink; ``name`` stands in the warning."""
        self._sink = sink
        self._name = name
        self._told: set[str] = set()

    def write(self, line: Mapping[str, Any]) -> None:
        """Pass the line on."""
        try:
            self._sink.write(line)
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Close the sink."""
        try:
            self._sink.close()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        cause = error.strerror or str(error)
        if cause not in self._told:
            self._told.add(cause)
            say(f"warning: {self._name} can't be written: {cause}; the run goes on without\n")


class _Appended:
    """A file to whose end records are written, whole or not at all; it is opened with the first one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._size = 0

    def append(self, data: bytes) -> None:
        """Write a record; an OSError leaves the file as it was, and the next record is tried again."""
        if self._descriptor is None:
            if not self._path.parent.exists():
                self._path.parent.mkdir()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._size = self.whole_bytes(self._path.read_bytes())
        # A disk that is full takes a part of a record.
        os.ftruncate(self._descriptor, self._size)
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], self._size + written)
        self._size += written

    def whole_bytes(self, held: bytes) -> int:
        """Return the length of the whole records that a file holds."""
        return len(held)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.ftruncate(descriptor, self._size)
            os.close(descriptor)


class JsonLines(_Appended):
    """metrics.jsonl: a line of JSON each, after the last whole line; one that a killed run left half is cut off."""

    def __init__(self, path: Path) -> None:
        """Remember where."""
        super().__init__(path)

    def whole_bytes(self, held: bytes) -> int:
        """Return the length of the whole lines."""
        return held.rfind(b"\n") + 1

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line.

        Raises:
            OSError: it can't be written; the next line is tried again.
        """
        self.append((to_json(line) + "\n").encode())


def cut_lines(path: Path, seconds: float) -> None:
    """Cut off the lines of a metrics.jsonl that were written after this time of the run; a resumed run writes others.

    A file that can't be read or written stays as it is.
    """
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        end = 0
        for line in path.read_bytes().splitlines(keepends=True):
            # A damaged line has no time.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if json.loads(line)["time"] > seconds:
                    os.truncate(path, end)
                    return
            end += len(line)


def last_seconds(run_dir: Path) -> float:
    """Return the time of a run's last event or line of figures, whichever is later; 0 if there is none.

    A run that was killed has run up to there, also if its newest checkpoint is older.
    """
    found = [0.0]
    for name in ("events.jsonl", "metrics.jsonl"):
        with contextlib.suppress(OSError):
            found += [float(line["time"]) for line in whole_lines(run_dir / name)[-1:]]
    return max(found)


class TensorBoard(_Appended):
    """The same figures as an event file, over frames; written by this thread, so that no error is in another's."""

    def __init__(self, folder: Path, begin_frames: int | None = None) -> None:
        """Choose a name as TensorBoard looks for.

        Args:
            folder: of the event files.
            begin_frames: where a resumed run goes on; TensorBoard shows nothing of earlier files that lies after it.
                None for a new run.
        """
        super().__init__(folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}")
        self._begin_frames = begin_frames
        self._is_new = True

    def write(self, line: Mapping[str, Any]) -> None:
        """Write every number of a line.

        Raises:
            OSError: they can't be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        figures = {f"run/{name}": value for name, value in line.items()}
        for side, waits in line.get("waiting", {}).items():
            figures |= {f"waiting/{side} for {reason}": share for reason, share in waits.items()}
        for task, of_task in line["tasks"].items():
            figures |= {f"{task}/{name}": value for name, value in of_task.items()}
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in figures.items()
            if isinstance(value, int | float)
        ]
        event = Event(wall_time=time.time(), step=line["frames"], summary=Summary(value=values))
        begin = []
        if self._is_new:
            begin.append(Event(wall_time=time.time(), file_version="brain.Event:2"))
            # A new run's too: TensorBoard's Python reader takes no notice of the first start that it reads.
            step = 0 if self._begin_frames is None else self._begin_frames + 1
            start = SessionLog(status=SessionLog.START)
            begin.append(Event(wall_time=time.time(), step=step, session_log=start))
        self.append(b"".join(map(_record, [*begin, event])))
        self._is_new = False


def _record(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
