"""Set-up of the learner's process: number of threads, denormal numbers, allocator."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

# Parameters of glibc's mallopt and their values; the second value is the largest that glibc accepts.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 2**28, 2**25

# Trials of each number of threads, alternating, and the length of a trial.
_TRIALS, _TRIAL_SECONDS = 2, 0.25
# The trials are repeated after this number of trial lengths, or once updates take this many times as long.
_TRIAL_LENGTHS_BETWEEN, _SLOWDOWN = 120, 1.5


def prepare_updates() -> None:
    """Prepare this process for fast updates on the CPU."""
    prepare_thread()
    keep_freed_memory()


def prepare_thread() -> None:
    """Prepare this thread for updates that use no other."""
    import torch

    torch.set_num_threads(1)
    # After some ten thousand updates, atoms far from any value have probabilities, gradients and moments below the
    # normal range of float32. Computing with such numbers can double the time of an update.
    torch.set_flush_denormal(True)


class Threads:
    """Chooses the number of threads of an update by measuring, and measures again from time to time.

    On two free cores, two threads make up to 1.4 times the updates of one. On cores shared with other processes, they
    wait for each other at every kernel: two learners on two cores, with two threads each, made at most a third of the
    updates that they made with one thread each.

    Attributes:
        count: the number in use.
    """

    def __init__(self, counts: Sequence[int], set_threads: Callable[[int], object]) -> None:
        """Try these numbers of threads in order; ``set_threads`` sets one."""
        self._counts = tuple(counts)
        self._set_threads = set_threads
        self._updates, self._seconds = 0, 0.0
        self._start_trials()

    def _start_trials(self) -> None:
        self._trials = list(self._counts) * _TRIALS
        self._best = dict.fromkeys(self._counts, math.inf)
        self._windows = 0
        self._use(self._trials[0])

    def _use(self, count: int) -> None:
        self.count = count
        self._set_threads(count)

    def add(self, seconds: float) -> None:
        """Record the time of an update, and change the number of threads if necessary."""
        self._updates += 1
        self._seconds += seconds
        if len(self._counts) == 1 or self._seconds < _TRIAL_SECONDS:
            return
        mean = self._seconds / self._updates
        self._updates, self._seconds = 0, 0.0
        if self._trials:
            # The minimum over trials, since other processes only make a trial slower.
            self._best[self.count] = min(self._best[self.count], mean)
            self._trials.pop(0)
            self._use(self._trials[0] if self._trials else min(self._counts, key=self._best.__getitem__))
            return
        self._windows += 1
        if self._windows == _TRIAL_LENGTHS_BETWEEN or mean > _SLOWDOWN * self._best[self.count]:
            self._start_trials()


def keep_freed_memory() -> bool:
    """Keep up to 256 MiB of freed memory in this process; return whether the C library has such a setting.

    glibc returns freed tensors at the end of the heap, such as those of half a megabyte, to the system. Allocating them
    again costs updates that are not recorded up to 500 page faults each, 3 percent of their time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES), mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)])
