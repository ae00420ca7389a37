"""Cores and memory within the limits of control groups, read from files as Linux shows them in containers."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mtray.tasks.processes import available_bytes, usable_bytes, usable_cores

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
        # A limit of a parent group, as a service manager sets it.
        (
            {
                "proc/self/cgroup": "0::/jobs/mine/step\n",
                "sys/fs/cgroup/jobs/mine/step/cpu.max": "max 100000\n",
                "sys/fs/cgroup/jobs/mine/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/jobs/cpu.max": "800000 100000\n",
            },
            4,
        ),
        # Version 1, with the host's path, which does not exist in a container.
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
        # A quota above the number of cores.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 64),
        # Unexpected text.
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


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  1048576 kB\n"}, GIB),
        # A group without a limit, and one with: copies of files make room.
        (
            {
                "proc/meminfo": "MemAvailable: 2097152 kB\n",
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "5\n",
                "sys/fs/cgroup/a/memory.max": "1000\n",
                "sys/fs/cgroup/a/memory.current": "900\n",
                "sys/fs/cgroup/a/memory.stat": "anon 7\ninactive_file 250\n",
            },
            350,
        ),
        (
            {
                "proc/self/cgroup": "9:memory:/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1200\n",
            },
            0,
        ),
    ],
)
def test_available_memory_is_what_others_leave_of_it(tmp_path, monkeypatch, files, memory):
    machine(tmp_path, files, monkeypatch)
    assert available_bytes(tmp_path) == memory


def test_without_files_cores_are_those_of_the_affinity_and_memory_is_unknown(tmp_path):
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert usable_bytes(tmp_path) is available_bytes(tmp_path) is None


def test_this_machine_has_cores_and_memory():
    assert 1 <= usable_cores() <= os.cpu_count()
    assert usable_bytes() > GIB / 4
    assert 0 < available_bytes() <= usable_bytes()


PROGRAM = """
import multiprocessing, os, signal, sys
from mtray.tasks.processes import hidden_main, start_fork_server

for _ in range(2):
    start_fork_server([], sys.argv[1])
    with hidden_main():
        process = multiprocessing.get_context("forkserver").Process(target=os.getpid)
        process.start()
    process.join()
    assert process.exitcode == 0
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_fork_servers_socket_in_the_given_folder_only():
    # Not of pytest's: a socket's path is short.
    with tempfile.TemporaryDirectory() as parent:
        given, usual = (Path(parent, name) for name in ("given", "usual"))
        given.mkdir()
        usual.mkdir()
        environment = {**os.environ, "TMPDIR": str(usual), "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", PROGRAM, given], env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(list(given.glob("pymp-*/listener-*"))) == 1
        assert not list(usual.iterdir())
