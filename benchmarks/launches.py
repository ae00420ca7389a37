"""What a whole run costs before it collects, and in memory: the real command, watched from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

_TIMEOUT_SECONDS = 300.0


@contextmanager
def launched(*arguments: str) -> Iterator[tuple[psutil.Popen, Path]]:
    """``python -m mtray.launch`` in a folder of its own, without learning; ended with everything that it started."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        settings = ("--learner.updates-per-step", "0", "--run.log-seconds", "0.1", "--run-dir", str(run_dir))
        process = psutil.Popen([sys.executable, "-m", "mtray.launch", *arguments, *settings], **quiet)
        try:
            yield process, run_dir
        finally:
            # Collected beforehand: what has lost its parent is no longer found from it.
            everyone = [*process.children(recursive=True), process] if process.is_running() else []
            process.terminate()
            _, alive = psutil.wait_procs(everyone, timeout=20)
            for other in alive:
                other.kill()
            process.wait()


def frames(run_dir: Path) -> int:
    """Frames of all tasks in the last whole line of a run's metrics."""
    path = run_dir / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return int(json.loads(whole[-1])["frames"]) if whole else 0


def wait_for(condition: Callable[[], Any], process: psutil.Popen, each: Callable[[], None] = lambda: None) -> float:
    """The moment at which a condition came to hold.

    Raises:
        RuntimeError: the run ended before, or it takes too long.
    """
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("mtray.launch did not come so far")
        each()
        time.sleep(0.05)
    return time.monotonic()


def start_seconds(workers: int) -> tuple[float, float]:
    """Seconds from the command to a Ray that is up, and from there to the first frame that the replay has."""
    begin = time.monotonic()
    with launched("--workers", str(workers), "--total-frames", "1000000") as (process, run_dir):
        # Written as soon as Ray is up.
        up = wait_for((run_dir / "config.json").exists, process)
        first = wait_for(lambda: frames(run_dir) > 0, process)
    return up - begin, first - up


def suite_gib(workers: int) -> float:
    """Largest memory of a run over dm_control's whole suite with small rings: PSS of all its processes."""
    largest = 0.0

    def look() -> None:
        nonlocal largest
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
        largest = max(largest, total / 2**30)

    options = ("--tasks", "dmc_all", "--workers", str(workers), "--replay.capacity-rows", "2000")
    with launched(*options, "--total-frames", "10000000") as (process, run_dir):
        wait_for(lambda: frames(run_dir) >= 80_000, process, look)
    return largest
