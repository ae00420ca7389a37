"""Where lines of figures go: metrics.jsonl, TensorBoard, the terminal.

A sink that can't be written never ends a run: `Guarded` warns once per cause and lets the run go on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mtray.rundir.files import to_json


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


class JsonLines:
    """metrics.jsonl: a line of JSON each."""

    def __init__(self, path: Path) -> None:
        """Append to the file, after its last whole line; a line that a killed run left half written is cut off.

        The file is opened with the first line.
        """
        self._path = path
        self._descriptor: int | None = None
        self._size = 0

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line, whole or not at all.

        Raises:
            OSError: it can't be written; the next line is tried again.
        """
        data = (to_json(line) + "\n").encode()
        if self._descriptor is None:
            self._open()
        assert self._descriptor is not None
        # A disk that is full takes a part of a line.
        os.ftruncate(self._descriptor, self._size)
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], self._size + written)
        self._size += written

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = self._path.read_bytes().rfind(b"\n") + 1

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.ftruncate(descriptor, self._size)
            os.close(descriptor)


class TensorBoard:
    """The same figures as event files, over frames."""

    def __init__(self, folder: Path) -> None:
        """Remember where; the file is opened, and tensorboard imported, with the first line."""
        self._folder = folder
        self._writer: Any = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Write every number of a line."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        frames = line["frames"]
        for name, value in line.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"run/{name}", value, frames)
        for task, figures in line["tasks"].items():
            for name, value in figures.items():
                if value is not None:
                    self._writer.add_scalar(f"{task}/{name}", value, frames)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Progress:
    """One line on a terminal, rewritten; a line each time elsewhere."""

    def __init__(self, total_frames: int) -> None:
        """Write to stderr."""
        self._total = total_frames
        self._live = sys.stderr is not None and sys.stderr.isatty()

    def write(self, line: Mapping[str, Any]) -> None:
        """Show where the run stands."""
        returns = [task["return_mean"] for task in line["tasks"].values() if task["return_mean"] is not None]
        mean = f"{sum(returns) / len(returns):.1f}" if returns else "-"
        text = (
            f"{line['frames']:,}/{self._total:,} frames ({100 * line['frames'] / self._total:.0f}%)  "
            f"{line['frames_per_second']:,.0f} frames/s  {line['updates']:,} updates  "
            f"{line['updates_per_second']:.0f}/s  return {mean}  staleness {line['staleness']:.1f}  "
            f"{line['time']:.0f} s"
        )
        say(f"\r\033[K{text}" if self._live else f"{text}\n")

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live:
            say("\n")
