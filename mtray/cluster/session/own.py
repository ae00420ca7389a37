"""A Ray of the run's own: its environment, folder, token and processes.

It listens on the loopback address only, asks for a token that is made for the run, and ends with this process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mtray.cluster.session.signals import signals_hasten
from mtray.cluster.session.store import store_options
from mtray.errors import RunError, UsageError
from mtray.rundir.sinks import say
from mtray.tasks.processes import kill_group_at_end

# Ray makes sockets at <folder>/mtray-<user>/ray/session_<time>_<pid>/sockets/plasma_store, and a socket's path has 107
# bytes.
_LONGEST_FOLDER = 107 - len("/mtray-4294967295/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_FOLDER_BYTES = 16 * 2**20
# Write ends of pipes that nobody writes to: Ray's processes end when this process closes them by ending.
_lifelines: list[int] = []
_timers: list[threading.Timer] = []
_SHUTDOWN_SECONDS, _CUT_SECONDS = 20.0, 5.0
# Folders of Ray's logs that are kept, so that the cause of a death can be read; the most that are removed at once; and
# for how long nothing was written to those.
_KEPT_SESSIONS, _REMOVED_SESSIONS, _OLD_SECONDS = 10, 20, 24 * 3600.0

# In place of the raylet's agents, which it has to have. Nobody listens at port 1.
_IDLE = subprocess.list2cmdline([sys.executable, "-ISc", "import signal; signal.pause()"])
_IDLE_AGENTS = [
    *(f"--{agent}_agent_command={_IDLE}" for agent in ("dashboard", "runtime_env")),
    *(
        f"--{agent}_port=1"
        for agent in ("dashboard_agent_listen", "metrics_agent", "metrics_export", "runtime_env_agent")
    ),
]

_LOGGER = logging.getLogger("mtray")
# Despite its name it holds on Linux too: a Ray without other nodes binds to the loopback address only.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"


def start(workers: int, quiet: dict[str, Any]) -> None:
    """Start it.

    Args:
        workers: collectors of the run.
        quiet: arguments of ``ray.init`` about what is shown.

    Raises:
        RunError: it does not start.
        UsageError: there is no room for its sockets or its memory.
    """
    import ray
    from ray._private import ray_constants

    _set_environment()
    options = store_options(workers)
    # What `_LOOPBACK` says to Ray's processes; here Ray may have been imported before.
    with signals_kept_from_ray(), _services_left_out(), replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        for is_last in (False, True):
            _use_token()
            try:
                # Ray's CPUs are logical: as many as actors, so that none waits for ever.
                ray.init(address="local", num_cpus=workers + 2, include_dashboard=False, **options, **quiet)
                return
            except BaseException as error:
                shut_down()
                if not isinstance(error, Exception):
                    raise
                # Ray waits half a minute for its processes, which on a machine with much to do is not always enough.
                if is_last or "timed out" not in str(error):
                    raise RunError(f"Ray could not be started here: {last_line(error)}") from error
                _LOGGER.warning("Ray is started once more: %s", last_line(error))


def outlive_the_raylet() -> None:
    """Have Ray's core not end this process as soon as the raylet is gone; it saves first. Call before Ray is imported.

    The core does so where the parent is the first process: with `nohup` in a shell that has ended, under systemd, or in
    a container with an init. It then takes this process for one that the raylet has started. But where the environment
    has a raylet's id, it asks whether that process lives: here it is this one's. `process_restored` takes it back, and
    Ray's other processes have the raylet's own.
    """
    if "ray" not in sys.modules:
        os.environ["RAY_RAYLET_PID"] = str(os.getpid())


def limit_shutdown() -> None:
    """Have Ray's processes killed unless `shut_down` is called soon: what is asked of them before may wait for ever."""
    if _lifelines:
        _timers.append(threading.Timer(_SHUTDOWN_SECONDS, _kill))
        _timers[-1].start()


def shut_down() -> None:
    """Leave Ray, and end its processes if it was started here; a signal meanwhile ends them at once.

    Left half-way, it would be taken for one that is up by the next run of this process. Ray waits without a limit, and
    deaf to signals, for a node process that is stuck: it goes on without its answers, and where Ray can't, this process
    ends, with the error that is being handled as its last line.
    """
    import ray

    has_left = threading.Event()
    with signals_hasten(_kill):
        for timer in _timers:
            timer.cancel()
            timer.join()
        _timers.clear()
        node: Any = ray._private.worker._global_node
        if node is not None:
            arguments = has_left, node.raylet_socket_name, sys.exc_info()[1]
            threading.Thread(target=_limit_leaving, args=arguments, daemon=True).start()
        try:
            ray.shutdown()
        finally:
            has_left.set()
        _kill()
        _forget_token()


def _limit_leaving(has_left: threading.Event, address: str, error: BaseException | None) -> None:
    """Have Ray wait no longer for its node process, which listens at an address, or end this process."""
    import ray

    if has_left.wait(_SHUTDOWN_SECONDS):
        return
    _cut(address)
    if has_left.wait(_CUT_SECONDS):
        return
    if hasattr(ray._private.worker.global_worker, "core_worker"):
        # It waits for the object store, without whose answer it would end this process, and say nothing.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        say(f"error: {error or 'the run has ended, but Ray is stuck'}\n")
        os._exit(1)
    # It has left, and waits for processes that it started.
    _kill()


def _kill() -> None:
    while _lifelines:
        os.close(_lifelines.pop())


def _cut(address: str) -> None:
    """End this process's connections to a Unix socket: who waits there for an answer goes on without one."""
    for name in os.listdir("/proc/self/fd"):
        # Other threads may close theirs meanwhile.
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    if connection.getpeername() == address:
                        connection.shutdown(socket.SHUT_RDWR)


def last_line(error: object) -> str:
    """Return the last line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else "no reason was given"


def _set_environment() -> None:
    """Set what the processes of a Ray of the run's own inherit; `process_restored` takes it back."""
    # Ray's own 15 lets any other program of the machine outrun a run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nobody takes them.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    os.environ[_LOOPBACK[0]] = _LOOPBACK[1]
    other = _temporary_folder()
    folder = other or _usual_folder()
    # The sockets of simulators lie there, where Ray's may lie elsewhere.
    if other is not None or len(os.fsencode(os.environ.get("TMPDIR", ""))) > _LONGEST_FOLDER:
        os.environ["TMPDIR"] = folder
    os.environ["RAY_TMPDIR"] = _private_folder(folder)


def _temporary_folder() -> str | None:
    """Return another folder for Ray's sockets where the usual one has too long a name or can't be written."""
    usual = _usual_folder()
    for folder in (usual, "/tmp", "/dev/shm"):
        if len(os.fsencode(folder)) <= _LONGEST_FOLDER and _is_writable(Path(folder), _FOLDER_BYTES):
            return None if folder == usual else folder
    raise UsageError(
        f"Ray can't keep its sockets and logs in {usual}: set RAY_TMPDIR to a folder that can be written, with a path "
        f"of at most {_LONGEST_FOLDER} bytes and {_FOLDER_BYTES // 2**20} MiB free"
    )


def _usual_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _private_folder(parent: str) -> str:
    """Return a folder that other users can't enter; into Ray's own they could put sockets in place of a run's."""
    folder = Path(parent) / f"mtray-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return str(folder)
    # Somebody else has taken the name.
    return tempfile.mkdtemp(prefix="mtray-", dir=parent)


def remove_old_sessions(folder: Path) -> None:
    """Remove what Ray left of earlier runs, which it never does, but of the newest ones; ``folder`` is Ray's."""
    # Their names begin with the date. A few at each end, which shall not take long.
    for session in sorted(folder.glob("session_2*"))[:-_KEPT_SESSIONS][:_REMOVED_SESSIONS]:
        process = session.name.rpartition("_")[2]
        # A run in another container may share the folder, but not the ids of processes; its Ray writes all the time.
        with contextlib.suppress(OSError, ValueError):
            if Path("/proc", process).exists():
                continue
            written = max(path.stat().st_mtime for path in (session / "logs").iterdir())
            if time.time() - written > _OLD_SECONDS:
                shutil.rmtree(session, ignore_errors=True)


def has_token() -> bool:
    """Return whether the user has a token for clusters, or has chosen to have none."""
    if _has_chosen():
        return True
    # RuntimeError: this user has no home.
    with contextlib.suppress(OSError, RuntimeError):
        return (Path.home() / ".ray" / "auth_token").is_file()
    return False


def _has_chosen() -> bool:
    return any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))


def _is_writable(folder: Path, free_bytes: int = 0) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return shutil.disk_usage(folder).free >= free_bytes
    except OSError:
        return False


def _use_token() -> None:
    """Have Ray ask for a token that ends with the run, unless the environment says how.

    Ray would take one from the home folder, where it may have been written for all accounts to read, or write it there,
    and clusters that are started on this machine later would ask for it.
    """
    if not _has_chosen():
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", _token()
        _have_ray_read_tokens()


def _forget_token() -> None:
    """Have Ray be used in this process as before: the user's next one has no token, or another."""
    if os.environ.get("RAY_AUTH_TOKEN") == _token():
        del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
        _have_ray_read_tokens()


def _have_ray_read_tokens() -> None:
    """Have Ray's code in this process read the environment again: it did when it was imported."""
    core: Any = importlib.import_module("ray._raylet")
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


@functools.cache
def _token() -> str:
    return secrets.token_hex(32)


@contextlib.contextmanager
def signals_kept_from_ray() -> Iterator[None]:
    """Let Ray start without touching signals: this process keeps its handlers, and Ray's processes get none of its own.

    ``ray.init`` would replace the handler of SIGTERM. And a signal to this process's group, as `timeout` or a closed
    terminal sends it, would end Ray's processes before a checkpoint is saved: they get groups of their own. The kernel
    kills those groups when this process ends: some of Ray's processes would notice after a minute only.
    """
    from ray._private import services, utils

    start = services.ConsolePopen

    def popen(*arguments: Any, **options: Any) -> Any:
        lifeline, ours = os.pipe()
        try:
            process = start(*arguments, **options, process_group=0, pass_fds=[lifeline])
            kill_group_at_end(lifeline, process.pid)
        finally:
            os.close(lifeline)
        _lifelines.append(ours)
        return process

    with replaced(services, "ConsolePopen", popen), replaced(utils, "set_sigterm_handler", lambda _: None):
        yield


@contextlib.contextmanager
def _services_left_out() -> Iterator[None]:
    """Let Ray start without the processes that nobody asks here: they take a core for seconds, and 0.3 GiB of memory.

    They bring the dashboard's nodes and jobs, more machines, the output of actors to the driver, metrics, and
    environments of actors' own. The raylet waits for its agents, and ends with them: idle processes take their places.
    The environment that `uv run`, a hook or a job would give to actors is this process's, which they inherit.
    """
    from ray._private import services, worker
    from ray._private.node import Node

    start = services.ConsolePopen

    def popen(command: list[str], **options: Any) -> Any:
        return start([*command, *_IDLE_AGENTS] if Path(command[0]).name == "raylet" else command, **options)

    def start_nothing(node: Any, **_: Any) -> None: ...

    with (
        replaced(services, "ConsolePopen", popen),
        replaced(worker, "_maybe_modify_runtime_env", lambda *_: None),
        replaced(Node, "start_api_server", start_nothing),
        replaced(Node, "start_monitor", start_nothing),
        replaced(Node, "start_log_monitor", start_nothing),
    ):
        yield


@contextlib.contextmanager
def replaced(module: ModuleType | type, name: str, value: Any) -> Iterator[None]:
    """Replace a name of a module while the block runs."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
