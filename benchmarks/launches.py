"""Start time and memory of a whole run: the real command, measured from outside."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_TIMEOUT_SECONDS = 300.0
# Prints when done, before Ray is shut down, which takes long.
_BARE = """
import os
import ray
import mtray.cluster.supervisor

class Actor:
    def load(self):
        import mtray.collect.hosts.make, mtray.collect.loop, mtray.engines.mujoco

# Ray would leave a token in the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
ray.get(ray.remote(Actor).remote().load.remote())
print(flush=True)
os.read(0, 1)
"""


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[psutil.Popen]:
    """Run a program; then end it and all its processes."""
    process = psutil.Popen(command, **options)
    try:
        yield process
    finally:
        everyone = [process]
        # Any of them may end meanwhile.
        with suppress(psutil.Error):
            # Listed before the end: orphaned children can't be found from their parent.
            everyone += process.children(recursive=True)
        with suppress(psutil.Error):
            process.terminate()
        _, alive = psutil.wait_procs(everyone, timeout=20)
        for other in alive:
            with suppress(psutil.Error):
                other.kill()
        process.wait()


@contextmanager
def launched(*arguments: str) -> Iterator[tuple[psutil.Popen, Path]]:
    """Run ``python -m mtray.launch`` in a temporary folder without learning; then end all its processes."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        settings = ("--learner.updates-per-step", "0", "--run.log-seconds", "0.1", "--run-dir", str(run_dir))
        with started([sys.executable, "-m", "mtray.launch", *arguments, *settings], **quiet) as process:
            yield process, run_dir


def frames(run_dir: Path) -> int:
    """Return the frames of all tasks in the last complete line of a run's metrics."""
    path = run_dir / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return int(json.loads(whole[-1])["frames"]) if whole else 0


def wait_for(condition: Callable[[], Any], process: psutil.Popen, each: Callable[[], None] = lambda: None) -> float:
    """Wait until a condition holds; return that moment (`time.monotonic`).

    Raises:
        RuntimeError: the run ended before that, or the timeout has passed.
    """
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("mtray.launch ended or took too long")
        each()
        time.sleep(0.05)
    return time.monotonic()


def bare_seconds() -> float:
    """Return the seconds of what a start can't do without: Ray, and the imports of the driver and of one actor.

    Raises:
        RuntimeError: Ray can't be started, or the timeout has passed.
    """
    begin = time.monotonic()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with started([sys.executable, "-c", _BARE], **pipes) as process, process.stdin, process.stdout:
        ready, _, _ = select.select([process.stdout], [], [], _TIMEOUT_SECONDS)
        if not ready or not process.stdout.readline():
            raise RuntimeError("Ray alone can't be started or took too long")
        return time.monotonic() - begin


def start_seconds(workers: int) -> tuple[float, float]:
    """Return the seconds from the command until Ray is up, and from then to the first acknowledged frame."""
    begin = time.monotonic()
    with launched("--workers", str(workers), "--total-frames", "1000000") as (process, run_dir):
        # Written as soon as Ray is up.
        up = wait_for((run_dir / "config.json").exists, process)
        first = wait_for(lambda: frames(run_dir) > 0, process)
    return up - begin, first - up


def suite_gib(workers: int) -> float:
    """Return the peak memory (PSS of all processes) of a run over dm_control's whole suite with small rings."""
    largest = 0.0

    def look() -> None:
        nonlocal largest
        total = 0
        members = [process]
        with suppress(psutil.Error):
            members += process.children(recursive=True)
        for member in members:
            with suppress(psutil.Error):
                total += member.memory_full_info().pss
        largest = max(largest, total / 2**30)

    options = ("--tasks", "dmc_all", "--workers", str(workers), "--replay.capacity-rows", "2000")
    with launched(*options, "--total-frames", "10000000") as (process, run_dir):
        wait_for(lambda: frames(run_dir) >= 80_000, process, look)
    return largest
