"""The object store of a Ray of the run's own: its size, and the folder that its memory is a file of.

Ray would reserve 30 percent of the machine's memory without taking it, and its node process would be killed by SIGBUS
once others had filled /dev/shm. So the store is small, since rings and draws lie elsewhere (`mtray.data.blocks`), and
Ray takes all of its memory at the start. When the store is full, pushes wait while Ray moves objects to disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mtray.errors import UsageError

SHARED_MEMORY = Path("/dev/shm")
# Pushes of a collector take up to a few MiB, and checkpoints' pieces, weights and the learner's state the rest.
_BYTES, _COLLECTOR_BYTES = 2**27, 2**22
# Left to others: simulators' slots, and Ray's own small files.
_MARGIN_BYTES = 2**24


def store_bytes(workers: int) -> int:
    """Return the size of the store for a number of collectors."""
    return _BYTES + workers * _COLLECTOR_BYTES


def store_options(workers: int) -> dict[str, Any]:
    """Return the arguments of ``ray.init`` for the store.

    Raises:
        UsageError: neither /dev/shm nor the temporary folder has room; it names the figure that would fit.
    """
    needed = store_bytes(workers)
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    free = {folder: _free_bytes(folder) for folder in (SHARED_MEMORY, temporary)}
    for folder, free_bytes in free.items():
        if free_bytes >= needed + _MARGIN_BYTES:
            return {
                "object_store_memory": needed,
                "_plasma_directory": str(folder),
                "_system_config": {"preallocate_plasma_memory": True},
            }
    found = " and ".join(f"{folder} has {free_bytes >> 20}" for folder, free_bytes in free.items())
    raise UsageError(
        f"--workers {workers}: Ray's object store takes {(needed + _MARGIN_BYTES) >> 20} MiB, and {found} MiB free: "
        "free so much in one of them, mount a larger /dev/shm (docker's --shm-size), or set RAY_TMPDIR"
    )


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
