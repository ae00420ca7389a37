"""Where lines of figures go: metrics.jsonl, TensorBoard, the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """Where lines go."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take one line of figures."""

    def close(self) -> None:
        """No more lines."""


class JsonLines:
    """metrics.jsonl: a line of JSON each."""

    def __init__(self, path: Path) -> None:
        """Append to the file, after its last whole line: one that a killed run left half written is cut off."""
        if path.exists():
            text = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
        self._file = path.open("a")

    def write(self, line: Mapping[str, Any]) -> None:
        """Write and flush a line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
        self._live = sys.stderr.isatty()

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
        sys.stderr.write(f"\r\033[K{text}" if self._live else f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live:
            sys.stderr.write("\n")
