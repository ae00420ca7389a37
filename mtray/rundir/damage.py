"""Damaged files of a checkpoint: found when they are read, and named with what else could be read."""

from __future__ import annotations

import contextlib
import pickle
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtray.errors import UsageError

META, LATEST = "meta.json", "latest"
# What reading a damaged file of JSON, numpy or torch raises.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, pickle.UnpicklingError)
_CHUNK_BYTES = 2**24


def read_checked(path: Path, meta: Mapping[str, Any]) -> bytes:
    """Read a file of a checkpoint that `verify` accepts.

    Raises:
        UsageError: the file is missing or damaged.
    """
    verify(path, meta)
    with damaged(path):
        return path.read_bytes()


def verify(path: Path, meta: Mapping[str, Any]) -> None:
    """Compare a file with the checksum that was noted when it was written.

    Raises:
        UsageError: the file is missing or damaged.
    """
    with damaged(path), path.open("rb") as file:
        checksum = 0
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
        # Earlier checkpoints have no checksums.
        if meta.get("crc32", {}).get(path.name, checksum) != checksum:
            raise ValueError("its checksum differs from the one noted when it was written")


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into a UsageError that names the file."""
    try:
        yield
    except UsageError:
        raise
    except DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) else None
        text = reason or f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        hint = (
            other_checkpoints(path.parent.parent, path.parent.name) if path.parent.parent.name == "checkpoints" else ""
        )
        raise UsageError(f"{path} can't be read ({text}){hint}") from error


def other_checkpoints(folder: Path, without: str = "") -> str:
    """Return the remedy as the end of a message, or nothing where no other checkpoint is whole."""
    names = sorted(path.parent.name for path in folder.glob(f"[0-9]*/{META}"))
    found = [name for name in names if name != without]
    return f"; to go on from another checkpoint, write its name into {folder / LATEST}: {found[-1]}" if found else ""
