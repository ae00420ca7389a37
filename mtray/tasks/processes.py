"""Processes: the fork server that simulators' processes come from, their end, and how many cores there are."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import forkserver
from typing import Any

from mtray.tasks.plan import ENGINES, TORCHRL_MODULE, Task

# Of fcntl.h: which signal O_ASYNC sends.
_F_SETSIG = 10


def engine_modules(tasks: Iterable[Task]) -> list[str]:
    """The modules that a process which steps these tasks imports."""
    return sorted({ENGINES.get(task.engine, TORCHRL_MODULE) for task in tasks})


def start_fork_server(modules: Sequence[str]) -> None:
    """Start it, if it is not yet up, with these modules imported; those that can't be are passed over.

    It has nothing of its parent's threads, imports the simulators once, and forks a process per task in milliseconds.
    Starting it early, before the parent's own imports, lets the two import side by side.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Hide the main module from processes that are started meanwhile.

    multiprocessing makes each process import the parent's main module again: in a Ray actor that is Ray's own worker
    program, in a user's script the script. Makers travel by value, so no process needs it.
    """
    main = sys.modules["__main__"]
    saved: dict[str, Any] = {
        name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__
    }
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(saved)


def die_with(lifeline: int) -> None:
    """Have the kernel kill this process and its children once no process has the pipe's write end open.

    A simulator's process is no child of its collector but of the fork server, and may hang in Python or in C code that
    holds the interpreter's lock, so no thread of its own could end it.

    Args:
        lifeline: read end of a pipe that nobody writes to.
    """
    # A group of its own takes its children along, and keeps a terminal's Ctrl-C from it: its collector ends it.
    os.setpgid(0, 0)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgid(0))
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(1)


def usable_cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
