"""Processes: the fork server that simulators' processes come from, their end, and what of the machine they may use."""

from __future__ import annotations

import contextlib
import fcntl
import math
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from mtray.tasks.plan import ENGINES, TORCHRL_MODULE, Task

# Of fcntl.h: which signal O_ASYNC sends.
_F_SETSIG = 10


def engine_modules(tasks: Iterable[Task]) -> list[str]:
    """Return the modules that a process which steps these tasks imports."""
    return sorted({ENGINES.get(task.engine, TORCHRL_MODULE) for task in tasks})


def start_fork_server(modules: Sequence[str]) -> None:
    """Start the fork server, if it is not yet up, with these modules imported; modules that fail are passed over.

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


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores this process may use: those it may run on, within the CPU quotas of its control groups.

    Args:
        root: folder that holds ``proc`` and ``sys``; a test may give its own.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _control_groups("cpu", root) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def usable_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory this process may use: the machine's, or less where a control group limits it; None if unknown.

    Args:
        root: folder that holds ``proc`` and ``sys``; a test may give its own.
    """
    limits = [limit for folder in _control_groups("memory", root) if (limit := _memory_limit(folder)) is not None]
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            limits.append(1024 * int(line.split()[1]))
    return min(limits, default=None)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of all above them, of version 1 and 2."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base = mount
        elif controller in controllers.split(","):
            base = mount / controllers if (mount / controllers).is_dir() else mount / controller
        else:
            continue
        # In a container the path may be the host's, which is not to be seen here; the mount itself then is the group.
        inner = base / path.strip("/")
        yield inner
        yield from (folder for folder in inner.parents if folder.is_relative_to(base))


def _quota(folder: Path) -> float | None:
    text = _read(folder / "cpu.max").split()
    if not text:
        text = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    numbers = _numbers(text)
    return numbers[0] / numbers[1] if len(numbers) == 2 and min(numbers) > 0 else None


def _memory_limit(folder: Path) -> int | None:
    numbers = _numbers(_read(folder / name).strip() for name in ("memory.max", "memory.limit_in_bytes"))
    return numbers[0] if numbers else None


def _numbers(texts: Iterable[str]) -> list[int]:
    return [int(text) for text in texts if text.isdecimal()]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
