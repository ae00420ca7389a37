"""What of a machine a process may use; how a learner's process is set up: threads, and freed memory that is kept."""

import os
import subprocess
import sys

import pytest

from mtray.learn.threads import Threads
from mtray.tasks import processes
from mtray.tasks.processes import usable_bytes, usable_cores

PROGRAM = """
import resource, sys
import numpy
from mtray.learn.threads import keep_freed_memory

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
from mtray.learn.threads import prepare_updates

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
            self.threads.spent(self.seconds[now])
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


# What a process may use. Files as Linux shows them, below a folder of the test's.

GIB = 2**30


def machine(root, files, monkeypatch, cores=64):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    for name, text in {"proc/meminfo": "MemTotal:       67108864 kB\nMemFree: 5 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        # docker --cpus 2, version 2: the container's group is at the mount.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        # A limit of a group above, as a service manager sets it.
        (
            {
                "proc/self/cgroup": "0::/jobs/mine/step\n",
                "sys/fs/cgroup/jobs/mine/step/cpu.max": "max 100000\n",
                "sys/fs/cgroup/jobs/mine/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/jobs/cpu.max": "800000 100000\n",
            },
            4,
        ),
        # Version 1, with the host's path, which is not to be seen in a container.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/0123\n0::/x\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
        # More than there are cores.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 64),
        # What another kernel might write.
        ({"proc/self/cgroup": "nonsense\n::\n", "sys/fs/cgroup/cpu.max": "x y z\n"}, 64),
    ],
)
def test_cores_are_those_of_the_quota(tmp_path, monkeypatch, files, cores):
    machine(tmp_path, files, monkeypatch)
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, 64 * GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 64 * GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": f"{3 * GIB}\n"}, 3 * GIB),
        ({"proc/self/cgroup": "9:memory:/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        # Version 1 without a limit.
        (
            {"proc/self/cgroup": "9:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
            64 * GIB,
        ),
    ],
)
def test_memory_is_that_of_the_limit(tmp_path, monkeypatch, files, memory):
    machine(tmp_path, files, monkeypatch)
    assert usable_bytes(tmp_path) == memory


def test_a_machine_that_tells_nothing_has_its_cores_and_no_known_memory(tmp_path):
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert usable_bytes(tmp_path) is None


def test_this_machine_has_cores_and_memory():
    assert 1 <= usable_cores() <= os.cpu_count()
    assert processes.usable_bytes() > GIB / 4
