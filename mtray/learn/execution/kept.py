"""What runs have compiled, kept for later ones: in ``~/.cache/mtray/compiled``, or below $XDG_CACHE_HOME.

Code is compiled for one kind of CPU, so a name depends on it, as on the code and on torch. Nothing here raises: where
files can't be written or read, each run compiles for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch

# Files that are kept; those that were not used for longest go first. A run has two, of some 2.5 MB each.
_MOST_FILES = 32
_PARTIAL = "partial-"

_LOGGER = logging.getLogger("mtray")


def _folder() -> Path | None:
    """Return where they lie; None without a home."""
    with contextlib.suppress(RuntimeError):
        given = os.environ.get("XDG_CACHE_HOME", "")
        return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "mtray" / "compiled"
    return None


def key_of(*parts: str) -> str:
    """Return a name for what is compiled from these with this torch for this CPU."""
    digest = hashlib.sha256()
    for part in (torch.__version__, _cpu(), *parts):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _cpu(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return this machine's kind of CPU and what it can do; its cores are of one kind."""
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    with contextlib.suppress(OSError):
        core = info.read_text().partition("\n\n")[0]
        return "\n".join(line for line in core.splitlines() if line.partition(":")[0].strip() in names)
    return ""


def has_any() -> bool:
    """Return whether anything is kept."""
    return bool(_files())


def find(key: str) -> Path | None:
    """Return the file of that key, which counts as used now; None without one."""
    folder = _folder()
    if folder is None:
        return None
    path = folder / f"{key}.so"
    try:
        os.utime(path)
    except OSError:
        return None
    return path


def keep(library: Path, key: str) -> None:
    """Keep a copy of a file under that key, and remove what was not used for longest beyond the limit."""
    folder = _folder()
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Another run may keep the same at this moment.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_PARTIAL, delete=False) as copy, library.open("rb") as file:
            shutil.copyfileobj(file, copy)
        os.replace(copy.name, folder / f"{key}.so")
        for path in _files()[:-_MOST_FILES]:
            remove(path)
    except OSError as error:
        _LOGGER.warning("what was compiled is not kept in %s: %s", folder, error.strerror or error)


def remove(path: Path) -> None:
    """Remove a file that was found."""
    with contextlib.suppress(OSError):
        path.unlink()


def _files() -> list[Path]:
    """Return all that is kept, by the time of its last use, with what a process that was killed had begun to write."""
    folder = _folder()
    if folder is None:
        return []
    times = {}
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            # Another run may remove it.
            with contextlib.suppress(OSError):
                times[path] = path.stat().st_mtime
    return sorted(times, key=lambda path: times[path])
