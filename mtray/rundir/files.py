"""Files of a run directory: their names, their JSON, and how they are replaced."""

from __future__ import annotations

import hashlib
import json
import math
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
