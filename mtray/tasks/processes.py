"""Processes: the fork server that starts simulators, their end, and the cores and memory that a process may use."""

from __future__ import annotations

import contextlib
import fcntl
import math
import multiprocessing
import os
import select
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import forkserver
from pathlib import Path

from mtray.tasks.plan import ENGINES, TORCHRL_MODULE, Task


def engine_modules(tasks: Iterable[Task]) -> list[str]:
    """Return the modules of the engines of these tasks."""
    return sorted({ENGINES.get(task.engine, TORCHRL_MODULE) for task in tasks})


def limit_torch(tasks: Iterable[Task]) -> None:
    """Let torch compute in one thread in a process that steps these tasks: on batches so small more are slower.

    Only makers bring it; mtray's own engines do without.
    """
    if any(task.maker is not None for task in tasks):
        import torch

        torch.set_num_threads(1)


def start_fork_server(modules: Sequence[str], folder: str | None = None) -> None:
    """Start the fork server, unless it runs, with these modules imported; imports that fail are ignored.

    It has none of the parent's threads, imports the simulators once, and forks a process per task in milliseconds.
    Started before the parent's own imports, it imports in parallel.

    Args:
        modules: names of modules.
        folder: of its socket, in a folder that stays where this process is killed; by default the temporary folder.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    usual = tempfile.tempdir
    try:
        tempfile.tempdir = folder or usual
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = usual


def fork_server() -> list[int]:
    """Return the id of the fork server's process; none if it does not run."""
    process: int | None = getattr(forkserver._forkserver, "_forkserver_pid", None)
    return [] if process is None else [process]


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Hide the main module from processes that the block starts.

    multiprocessing makes each process import the parent's main module again: Ray's worker program in a Ray actor, or a
    user's script. Makers are pickled by value, so no process needs it.
    """
    main = sys.modules["__main__"]
    names = vars(main).keys() & {"__file__", "__spec__"}
    saved = {name: vars(main).pop(name) for name in names}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(saved)


def kill_group_at_end(lifeline: int, group: int) -> None:
    """Have the kernel kill a process group once no process has a pipe's write end open.

    Args:
        lifeline: read end, which a process of the group must hold too.
        group: the process group's id.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -group)
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)


def die_with(lifeline: int) -> None:
    """Have the kernel kill this process and its children once no process has the pipe's write end open.

    A simulator's process is a child of the fork server, not of its collector, and may hang in C code that holds the
    interpreter's lock, so that no thread could end it.

    Args:
        lifeline: read end of a pipe that no process writes to.
    """
    # In a new process group the signal reaches the children too, and a terminal's Ctrl-C reaches none of them.
    os.setpgid(0, 0)
    kill_group_at_end(lifeline, os.getpgid(0))
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(1)


def stat_of(process: int) -> list[str]:
    """Return the fields of a process's ``/proc/<pid>/stat`` from the third on, its state.

    Raises:
        OSError: it has ended.
    """
    # Its name, in parentheses, may have spaces.
    return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores this process may use: its CPU affinity, within the quotas of its control groups.

    Args:
        root: folder that holds ``proc`` and ``sys``; tests pass another.
    """
    quotas = [quota for folder in _control_groups("cpu", root) if (quota := _quota(folder)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def usable_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory this process may use: the machine's, within its control groups' limits; None if unknown.

    Args:
        root: folder that holds ``proc`` and ``sys``; tests pass another.
    """
    limits = [limit for folder in _control_groups("memory", root) if (limit := _memory_limit(folder)) is not None]
    return min([*limits, *_numbers(root / "proc/meminfo", "MemTotal:", 1024)], default=None)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory this process could get now; None if unknown.

    Args:
        root: folder that holds ``proc`` and ``sys``; tests pass another.
    """
    free = _numbers(root / "proc/meminfo", "MemAvailable:", 1024)
    for folder in _control_groups("memory", root):
        limit = _memory_limit(folder)
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if limit is not None and used:
            # Copies of files on disk count as used, and make room.
            copies = [*_numbers(folder / "memory.stat", "inactive_file"), 0]
            free.append(max(0, limit - int(used) + copies[0]))
    return min(free, default=None)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of their ancestors, of cgroup version 1 and 2."""
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
        # In a container the path may be the host's and not exist; the mount is then the group.
        group = base / path.strip("/")
        yield group
        yield from (folder for folder in group.parents if folder.is_relative_to(base))


def _quota(folder: Path) -> float | None:
    text = _read(folder / "cpu.max")
    if not text:
        text = " ".join(_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    numbers = [int(word) for word in text.split() if word.isdecimal()]
    return numbers[0] / numbers[1] if len(numbers) == 2 and min(numbers) > 0 else None


def _numbers(path: Path, name: str, unit: int = 1) -> list[int]:
    """Return the number that follows a name in a file, in a list that is empty if there is none."""
    lines = (line.split() for line in _read(path).splitlines())
    return [unit * int(words[1]) for words in lines if words[:1] == [name]]


def _memory_limit(folder: Path) -> int | None:
    text = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
