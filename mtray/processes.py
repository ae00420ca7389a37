"""Of operating system processes: where those that step simulators come from, and how a learner's is set up."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing import forkserver

# Of glibc's mallopt, with the largest value that the second takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_BYTES = 2**28, 2**25


def start_fork_server(modules: Sequence[str]) -> None:
    """Start it, if it is not yet up, with these modules imported; those that can't be are passed over.

    It has nothing of its parent's threads, imports the simulators once, and forks a process per task in milliseconds.
    Starting it early, before the parent's own imports, lets the two import side by side.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


def usable_cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_updates(threads: int | None = None) -> None:
    """Have this process make a learner's updates on the CPU as fast as it can, with so many threads.

    By default two: 1.2 times the updates of one on two cores, with collectors beside it; more were not measured.
    """
    import torch

    torch.set_num_threads(threads or min(2, usable_cores()))
    # Atoms that no value comes near get probabilities, gradients and AdamW moments below float32's normal range after
    # some ten thousand updates; computing with such numbers can make an update twice as long.
    torch.set_flush_denormal(True)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have this process keep up to 256 MiB that it has freed, not give each large tensor's back to the system.

    An update's tensors of half a megabyte lie at the end of the heap, which is given back with some of them and taken
    again, page by page, for the next: up to 500 page faults an update, 3 percent of its time. False where the C
    library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_TRIM_THRESHOLD, _KEPT_BYTES), mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)])
