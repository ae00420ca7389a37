"""How a learner's process is set up: its threads, and that freed tensors are not taken from the system anew."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy
from mtray.processes import keep_freed_memory

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
from mtray.processes import prepare_updates

small = torch.full((8,), 1e-30)
print(bool((small * 1e-10).any()))
prepare_updates(1)
print(bool((small * 1e-10).any()))
print(torch.get_num_threads())
"""


def test_updates_do_not_compute_with_denormal_numbers():
    command = [sys.executable, "-c", DENORMAL]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert found == ["True", "False", "1"]


THREADS = """
import os, sys, torch
from mtray.processes import prepare_updates, usable_cores

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
prepare_updates()
print(usable_cores(), torch.get_num_threads())
"""


@pytest.mark.parametrize("cores", [1, len(os.sched_getaffinity(0))])
def test_updates_take_two_threads_where_there_are_cores_for_them(cores):
    command = [sys.executable, "-c", THREADS, str(cores)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert found == [str(cores), str(min(cores, 2))]


def test_freed_memory_is_kept():
    assert faults("as it is") > 8 * 64
    assert faults("keep") < 10
