"""Set-up of a learner's process: threads, denormal numbers, freed memory."""

import subprocess
import sys

import pytest

from mtray.learn.execution.threads import Threads

PROGRAM = """
import resource, sys
import numpy
from mtray.learn.execution.threads import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(20):
    # Half a megabyte each, as an update's: 128 pages.
    parts = [numpy.ones(2**17, numpy.float32) for _ in range(8)]
    del parts
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print((faults[-1] - faults[9]) // 10)
"""


def faults(how: str) -> int:
    """Return the page faults per round of the last ten rounds."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


DENORMAL = """
import torch
from mtray.learn.execution.threads import prepare_updates

small = torch.full((8,), 1e-30)
print(bool((small * 1e-10).any()))
prepare_updates()
print(bool((small * 1e-10).any()))
"""


def test_denormal_numbers_are_flushed_to_zero():
    command = [sys.executable, "-c", DENORMAL]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert found == ["True", "False"]


class Machine:
    """Updates whose time in seconds depends on the number of threads."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.counts = []
        self.threads = Threads(list(seconds), self.counts.append)

    def run(self, duration):
        """Make updates for a duration; return the seconds with each number of threads, and the number of updates."""
        seconds, updates = dict.fromkeys(self.seconds, 0.0), 0
        while sum(seconds.values()) < duration:
            count = self.counts[-1]
            seconds[count] += self.seconds[count]
            self.threads.add(self.seconds[count])
            updates += 1
        return seconds, updates


@pytest.mark.parametrize(("one", "two", "best"), [(0.02, 0.015, 2), (0.02, 0.06, 1), (0.02, 1.0, 1)])
def test_the_fastest_number_of_threads_is_used(one, two, best):
    machine = Machine({1: one, 2: two})
    assert machine.counts == [1]
    seconds, updates = machine.run(300)
    assert machine.threads.count == best
    # The other number is used in trials only. A trial has one update at least, which may take a second.
    assert seconds[best] > (0.9 if two == 1.0 else 0.97) * 300
    assert updates > 0.9 * 300 / min(one, two)


def test_trials_are_repeated_after_a_slowdown_and_from_time_to_time():
    machine = Machine({1: 0.02, 2: 0.015})
    machine.run(5)
    assert machine.counts[-1] == 2
    machine.seconds = {1: 0.022, 2: 0.06}
    machine.run(2)
    assert machine.counts[-1] == 1
    # One thread has not become slower, so two are tried again only after the fixed time.
    machine.seconds = {1: 0.02, 2: 0.015}
    machine.run(35)
    assert machine.counts[-1] == 2


def test_one_slow_trial_does_not_decide():
    machine = Machine({1: 0.02, 2: 0.015})
    machine.run(0.27)
    machine.seconds[2] = 0.1
    machine.run(0.3)
    machine.seconds[2] = 0.015
    machine.run(1)
    assert machine.counts == [1, 2, 1, 2, 2]


def test_a_single_number_is_kept():
    machine = Machine({3: 5.0})
    machine.run(300)
    assert machine.counts == [3]


def test_freed_memory_is_kept():
    assert faults("as it is") > 8 * 64
    assert faults("keep") < 10
