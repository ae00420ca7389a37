"""Set-up of the learner's process: number of threads, denormal numbers, freed memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

# Parameters of glibc's mallopt, and their values; that of the second is its largest.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_BYTES = 2**28, 2**25


# Trials of each number of threads, in turns; seconds of a trial; windows of that length for which the best is kept; and
# the slow-down of its updates at which all are tried again before.
_ROUNDS, _WINDOW_SECONDS, _KEPT_WINDOWS, _SLOWER = 2, 0.25, 120, 1.5


def prepare_updates() -> None:
    """Set this process up for fast updates on the CPU."""
    import torch

    # After some ten thousand updates, atoms far from any value have probabilities, gradients and moments below the
    # normal range of float32; computing with such numbers can double the time of an update.
    torch.set_flush_denormal(True)
    keep_freed_memory()


class Threads:
    """Chooses the number of threads of an update by measuring, and measures again from time to time.

    On two free cores, two threads make up to 1.4 times the updates of one. On cores that other processes use, each
    thread waits for the other at every kernel: two learners with two threads each on two cores made a third of the
    updates of one thread each, or far fewer.
    """

    def __init__(self, counts: Sequence[int], use: Callable[[int], object]) -> None:
        """Try these counts in order; ``use`` is called to set a count."""
        self.counts = tuple(counts)
        self._use = use
        self._updates, self._seconds = 0, 0.0
        self._try_all()

    def _try_all(self) -> None:
        self._trials = list(self.counts) * _ROUNDS
        self._best = dict.fromkeys(self.counts, math.inf)
        self._windows = 0
        self._turn(self._trials[0])

    def _turn(self, count: int) -> None:
        self.count = count
        self._use(count)

    def spent(self, seconds: float) -> None:
        """Record the time that an update took."""
        self._updates += 1
        self._seconds += seconds
        if len(self.counts) == 1 or self._seconds < _WINDOW_SECONDS:
            return
        each = self._seconds / self._updates
        self._updates, self._seconds = 0, 0.0
        if self._trials:
            # The best of a count's trials: disturbances only make them longer.
            self._best[self.count] = min(self._best[self.count], each)
            self._trials.pop(0)
            self._turn(self._trials[0] if self._trials else min(self.counts, key=self._best.__getitem__))
            return
        self._windows += 1
        if self._windows == _KEPT_WINDOWS or each > _SLOWER * self._best[self.count]:
            self._try_all()


def keep_freed_memory() -> bool:
    """Keep up to 256 MiB of freed memory in this process; return False if the C library has no such setting.

    Tensors of half a megabyte lie at the end of the heap, which glibc returns to the system when they are freed.
    Updates that are not recorded allocate them again: up to 500 page faults each, 3 percent of their time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_TRIM_THRESHOLD, _KEPT_BYTES), mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)])
