"""The cores that a run's processes share: the learner comes first, as long as it has data to learn from."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from mtray.replay.waiting import DONE, FRAMES, START, WARM_UP
from mtray.tasks.processes import stat_of

# Of processes that leave the cores they share to the learner: a tenth of its share of one that both want.
_NICENESS = 10
# Share of the time that the learner may wait for data while it has a core to itself: others would have used it.
_MOST_WAIT = 0.05
# Seconds until it is given one again after it has waited; they double each time.
_PAUSE_SECONDS = 60.0


def give_way(processes: Iterable[int] = ()) -> None:
    """Leave the cores that this process and others of its run share to the learner."""
    for process in (0, *processes):
        # One that has ended meanwhile is replaced.
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, process)))


class LearnersCore:
    """A core that a run's other processes leave to the learner, on one machine, while that does not wait for data.

    Priorities alone don't give it one. Linux spreads processes over cores by what they weigh, not quite evenly: with
    eight collectors of low priority beside it on two cores, the learner waited a fifth of its time for a core.
    """

    def __init__(self, cores: Collection[int] | None = None) -> None:
        """Share these cores, by default those that this process may use; all are used by everybody for now."""
        self._cores = frozenset(os.sched_getaffinity(0) if cores is None else cores)
        # The learner's, and all others.
        self._core: int | None = None
        self._others = self._cores
        self._is_kept = False
        self._pause, self._next = _PAUSE_SECONDS, 0.0

    def share(self, learner: int, others: Iterable[int], waits: Mapping[str, float], now: float) -> None:
        """Keep other processes, and those that they have started, from the learner's core, or let them use it again.

        Args:
            learner: id of its process.
            others: ids of processes.
            waits: share of the last seconds that the learner waited, by reason: see `mtray.replay.waiting`.
            now: the time.
        """
        if len(self._cores) < 2:
            return
        if sum(waits.get(reason, 0.0) for reason in (START, WARM_UP, FRAMES, DONE)) > _MOST_WAIT:
            if self._is_kept and waits.get(FRAMES, 0.0) > _MOST_WAIT:
                self._next, self._pause = now + self._pause, 2 * self._pause
            self.give_back(others)
        elif now >= self._next:
            if self._core is None:
                core = _core_of(learner)
                self._core = core if core in self._cores else max(self._cores)
                self._others = self._cores - {self._core}
            # Each time: simulators and threads come and go.
            self._is_kept = True
            _move(others, self._cores, self._others)

    def give_back(self, others: Iterable[int]) -> None:
        """Let these processes use the learner's core again, too."""
        if self._is_kept:
            self._is_kept = False
            _move(others, self._others, self._cores)


def _move(processes: Iterable[int], old: frozenset[int], new: frozenset[int]) -> None:
    """Let threads that may use the old cores use the new ones; those that somebody gave others keep them."""
    for thread in _threads(processes):
        # It may have ended.
        with contextlib.suppress(OSError):
            if os.sched_getaffinity(thread) == old:
                os.sched_setaffinity(thread, new)


def _core_of(process: int) -> int:
    """Return the core that a process was last on; -1 if it has ended."""
    with contextlib.suppress(OSError):
        return int(stat_of(process)[36])
    return -1


def _threads(processes: Iterable[int]) -> Iterator[int]:
    """Return the threads of processes and of all that they have started."""
    children = defaultdict(list)
    for process in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            children[int(stat_of(process)[1])].append(process)
    left = list(processes)
    while left:
        process = left.pop()
        left += children[process]
        with contextlib.suppress(OSError):
            yield from map(int, os.listdir(f"/proc/{process}/task"))
