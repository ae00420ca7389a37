"""Processes: the fork server that simulators' processes come from, and how many cores there are."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from multiprocessing import forkserver

from mtray.tasks.plan import ENGINES, TORCHRL_MODULE, Task


def engine_modules(tasks: Iterable[Task]) -> list[str]:
    """The modules that a process which steps these tasks imports."""
    return ["mtray.tasks.env", *sorted({ENGINES.get(task.engine, TORCHRL_MODULE) for task in tasks})]


def start_fork_server(modules: Sequence[str]) -> None:
    """Start it, if it is not yet up, with these modules imported; those that can't be are passed over.

    It has nothing of its parent's threads, imports the simulators once, and forks a process per task in milliseconds.
    Starting it early, before the parent's own imports, lets the two import side by side.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


def usable_cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
