"""Runs on a /dev/shm that is small, or that others fill: in a mount namespace of the run's own."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from mtray.cluster.session import store
from tests.processes import Run
from tests.test_faults import BUSY, assert_whole, events_of
from tests.test_launch import frames_so_far, summary_of

NARROW = (
    "import ctypes, os, subprocess\n"
    "from mtray.launch import main\n"
    "libc = ctypes.CDLL(None)\n"
    "assert libc.unshare(0x00020000) == 0\n"
    "subprocess.run(['mount', '--make-rprivate', '/'], check=True)\n"
    "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=' + os.environ['SHM'], 'shm', '/dev/shm'], check=True)\n"
    "raise SystemExit(main())\n"
)
ARGUMENTS = (*BUSY, "--host", "parallel")


def can_mount():
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


pytestmark = [pytest.mark.cluster, pytest.mark.skipif(not can_mount(), reason="needs a mount namespace")]


@pytest.fixture
def narrow(tmp_path, monkeypatch):
    """Start a run with so many bytes of /dev/shm."""
    (tmp_path / "narrow.py").write_text(NARROW)

    def start(size, *arguments):
        monkeypatch.setenv("SHM", str(size))
        return Run(*ARGUMENTS, *arguments, cwd=tmp_path, module="narrow")

    return start


def free_bytes(folder):
    return os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize


def test_a_run_with_a_small_one_keeps_its_store_in_the_temporary_folder(tmp_path, narrow):
    run_dir = tmp_path / "a"
    with narrow(2**26, "--total-frames", 3000, "--run-dir", run_dir) as run:
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    assert summary_of(run_dir)["restarts"] == 0
    assert_whole(run_dir)


def test_a_run_goes_on_when_others_fill_it_and_a_collector_is_replaced(tmp_path, narrow):
    run_dir = tmp_path / "a"
    size = store.store_bytes(2) + 2 * store._MARGIN_BYTES
    with narrow(size, "--total-frames", 12_000, "--run-dir", run_dir) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 1000)
        shared = Path(f"/proc/{run.process.pid}/root/dev/shm")
        assert size - free_bytes(shared) >= store.store_bytes(2), "Ray has taken all of its store's memory"
        subprocess.run(["dd", "if=/dev/zero", f"of={shared}/full"], capture_output=True, check=False)
        assert free_bytes(shared) == 0
        before = frames_so_far(run_dir)
        run.wait_until(lambda: frames_so_far(run_dir) > before + 2000)
        run.named("ray::Collector")[0].send_signal(signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    (death,) = events_of(run_dir, "death")
    assert death["part"].startswith("collector")
    assert_whole(run_dir)
