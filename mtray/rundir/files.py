"""Files of a run directory: their names, their JSON, how they are replaced, and how damage is found and told."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import pickle
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtray.errors import UsageError

_LOGGER = logging.getLogger("mtray")
# File systems allow 255 bytes; the rest is for a prefix, a suffix and the dots of a partial file.
_NAME_BYTES = 180


def file_name(text: str) -> str:
    """Return any text as a part of a file name: percent-encoded, and shortened with a hash where it is long.

    Different texts have different names, and none has a path separator, a control character or a leading dot:
    ``../a`` becomes ``%2E.%2Fa``.
    """
    name = urllib.parse.quote(text, safe="", errors="surrogatepass").replace("~", "%7E")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if len(name) <= _NAME_BYTES:
        return name
    # A short name has no tilde, so the two kinds can't meet.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{name[:100]}~{digest}"


def to_json(value: Any, indent: int | None = None) -> str:
    """Return plain values as standard JSON: numbers that are not finite become null.

    Args:
        value: dicts, lists, text, numbers; numpy's scalars count as numbers.
        indent: spaces per level; None for one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    # A numpy scalar or an array of one element.
    return _finite(value.item()) if hasattr(value, "item") else value


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return what the whole lines of events.jsonl or metrics.jsonl hold; nothing if the file is not there yet.

    A damaged line is left out, and told once.
    """
    found = []
    data = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(data.rpartition(b"\n")[0].splitlines(), 1):
        entry = None
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
        if isinstance(entry, dict) and isinstance(entry.get("time"), int | float):
            found.append(entry)
        else:
            _tell_damaged(path, number)
    return found


@functools.cache
def _tell_damaged(path: Path, number: int) -> None:
    _LOGGER.warning("%s: line %d is damaged and left out", path, number)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and flush it to disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        sync(file.fileno())


def sync(descriptor: int) -> None:
    """Flush an open file to disk."""
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Write a small file so that a reader finds the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_synced(partial, text.encode())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
        if meta["crc32"][path.name] != checksum:
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
        raise UsageError(f"{path} can't be read ({text})") from error
