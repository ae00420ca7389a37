"""How many threads an update takes, and how the learner's process is set up."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

# Of glibc's mallopt, with the largest value that the second takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_BYTES = 2**28, 2**25


# Trials of each count of threads, in turns; the time that one takes; how many such times the best is kept, at most;
# and how much longer than in its trials an update then takes until all are tried again.
_ROUNDS, _WINDOW_SECONDS, _KEPT_WINDOWS, _SLOWER = 2, 0.25, 120, 1.5


def prepare_updates() -> None:
    """Have this process make a learner's updates on the CPU as fast as it can."""
    import torch

    # Atoms that no value comes near get probabilities, gradients and AdamW moments below float32's normal range after
    # some ten thousand updates; computing with such numbers can make an update twice as long.
    torch.set_flush_denormal(True)
    keep_freed_memory()


class Threads:
    """How many threads an update takes: as many as make it quickest, found out anew now and then.

    Two threads make up to 1.4 times the updates of one where two cores are free. Where other processes compute on the
    same cores, each of the two waits at every kernel until the other has had its turn, and two busy learners on two
    cores made a third of the updates of one thread each, or far fewer.
    """

    def __init__(self, counts: Sequence[int], use: Callable[[int], object]) -> None:
        """Try these counts, the first first, and set the one to be used by calling ``use``."""
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
        """Tell how long an update took."""
        self._updates += 1
        self._seconds += seconds
        if len(self.counts) == 1 or self._seconds < _WINDOW_SECONDS:
            return
        each = self._seconds / self._updates
        self._updates, self._seconds = 0, 0.0
        if self._trials:
            # The best of a count's trials: what disturbs makes one longer, never shorter.
            self._best[self.count] = min(self._best[self.count], each)
            self._trials.pop(0)
            self._turn(self._trials[0] if self._trials else min(self.counts, key=self._best.__getitem__))
            return
        self._windows += 1
        if self._windows == _KEPT_WINDOWS or each > _SLOWER * self._best[self.count]:
            self._try_all()


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
