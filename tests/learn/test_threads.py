"""How a learner's process is set up: its threads, and that freed tensors are not taken from the system anew."""

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
    """Page faults of each of the last ten rounds."""
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


def test_updates_do_not_compute_with_denormal_numbers():
    command = [sys.executable, "-c", DENORMAL]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert found == ["True", "False"]


class Machine:
    """Updates whose time depends on the threads they take; tells which they took."""

    def __init__(self, counts, **seconds):
        self.seconds = {int(name[1:]): value for name, value in seconds.items()}
        self.took = []
        self.threads = Threads(counts, self.took.append)

    def run(self, seconds):
        """For about so long; how much of it each count had, and how many updates were made."""
        shares, made, spent = dict.fromkeys(self.seconds, 0.0), 0, 0.0
        while spent < seconds:
            now = self.took[-1]
            spent += self.seconds[now]
            shares[now] += self.seconds[now]
            self.threads.add(self.seconds[now])
            made += 1
        return shares, made


@pytest.mark.parametrize(("one", "two", "best"), [(0.02, 0.015, 2), (0.02, 0.06, 1), (0.02, 1.0, 1)])
def test_updates_take_the_threads_that_make_them_quickest(one, two, best):
    machine = Machine([1, 2], n1=one, n2=two)
    assert machine.took == [1]
    shares, made = machine.run(300)
    assert machine.threads.count == best
    # Trials are all that the others take; those of updates of a second take a second.
    assert shares[best] > (0.9 if two == 1.0 else 0.97) * 300
    assert made > 0.9 * 300 / min(one, two)


def test_threads_are_tried_anew_once_they_are_slower():
    machine = Machine([1, 2], n1=0.02, n2=0.015)
    machine.run(5)
    assert machine.took[-1] == 2
    machine.seconds = {1: 0.022, 2: 0.06}
    machine.run(2)
    assert machine.took[-1] == 1
    # One thread is as quick as it was, so that two are found to be quicker again only when all are tried anyway.
    machine.seconds = {1: 0.02, 2: 0.015}
    machine.run(35)
    assert machine.took[-1] == 2


def test_one_trial_that_is_disturbed_decides_nothing():
    machine = Machine([1, 2], n1=0.02, n2=0.015)
    machine.run(0.27)
    machine.seconds[2] = 0.1
    machine.run(0.3)
    machine.seconds[2] = 0.015
    machine.run(1)
    assert machine.took == [1, 2, 1, 2, 2]


def test_a_count_that_is_given_is_kept():
    machine = Machine([3], n3=5.0)
    machine.run(300)
    assert machine.took == [3]


def test_freed_memory_is_kept():
    assert faults("as it is") > 8 * 64
    assert faults("keep") < 10
