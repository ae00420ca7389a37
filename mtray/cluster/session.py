"""Ray for one run: the one that is up in this process, a new one of the run's own, or a cluster that is joined."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from mtray.config.settings import Config
from mtray.errors import RunError, UsageError
from mtray.tasks.processes import kill_group_at_end, usable_cores

_CONNECT_SECONDS = 5.0
_HEALTH_SECONDS = 10.0
# Ray makes sockets at <folder>/ray/session_<time>_<pid>/sockets/plasma_store, and a socket's path has 107 bytes.
_LONGEST_FOLDER = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_FOLDER_BYTES = 16 * 2**20
# Write ends of pipes that nobody writes to: Ray's processes end when this process closes them by ending.
_lifelines: list[int] = []
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


@dataclass(frozen=True)
class Session:
    """What a run may use of Ray.

    Attributes:
        cpus_per_actor: logical CPUs that each actor may ask for, so that all can be placed.
        cores: cores that actors can keep busy.
        processes: of a Ray that was started for the run, those that it can't go on without, by name.
    """

    cpus_per_actor: float
    cores: int
    processes: Mapping[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def death(self) -> str | None:
        """Return how Ray died, in one line; None while it lives, and for a Ray that others started.

        When one of these processes is gone, Ray's own code ends the driver hard: after a quarter of a minute without
        the raylet, after a minute without the GCS.
        """
        for name, process in self.processes.items():
            code = process.poll()
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return f"Ray's process {name} {how}"
        return None


def check_address(address: str) -> None:
    """Raise if no Ray head answers there within seconds; Ray itself would try for minutes.

    Raises:
        UsageError: names the address.
    """
    if address.startswith("ray://"):
        raise UsageError(f"--address {address}: run this on a node of the cluster and give its address, or 'auto'")
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    try:
        # A port that nobody listens on is refused at once.
        socket.create_connection((host or "localhost", int(port)), timeout=_CONNECT_SECONDS).close()
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        # Not in this folder, where a user's files might have the names of modules.
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_HEALTH_SECONDS, cwd=tempfile.gettempdir()
        )
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, f"no Ray head has answered within {_HEALTH_SECONDS:g} seconds") from error
    except subprocess.CalledProcessError as error:
        raise _unreachable(address, _last_line(error.stderr)) from error
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> UsageError:
    return UsageError(
        f"--address {address} can't be reached ({reason}): give host:port of a running Ray head, 'auto', or leave it "
        "out to start one here"
    )


def _last_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else "no reason was given"


def cpus_per_actor(nodes: Sequence[float], actors: int) -> float:
    """Return the most logical CPUs that each of ``actors`` can ask for while all still fit on the nodes.

    Args:
        nodes: CPUs of each node.
        actors: number of actors.
    """
    thousandths = 1000
    # What is left over on one node can't be put together with another's, so dividing the sum is not enough.
    while thousandths > 1 and sum(int(1000 * cpus) // thousandths for cpus in nodes) < actors:
        thousandths -= 1
    return thousandths / 1000


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[Session]:
    """Use a Ray for a run; one that was up in this process before is left up.

    Raises:
        UsageError: the cluster can't be reached, or this process has joined another.
        RunError: Ray does not start.
    """
    import ray

    if ray.is_initialized():
        _check_joined(config.address)
        yield _session(config, was_up=True)
        return
    with _texts_kept_in(config.run_dir):
        if config.address in (None, "local"):
            _start(config.workers + 2)
        else:
            _join(str(config.address))
        try:
            yield _session(config, was_up=False)
        finally:
            ray.shutdown()
            while _lifelines:
                os.close(_lifelines.pop())


@contextlib.contextmanager
def _texts_kept_in(run_dir: Path | None) -> Iterator[None]:
    """Append to logs/ray.log what Ray would print of its processes: paragraphs about each death."""
    from ray._private import worker

    def keep(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        with contextlib.suppress(OSError):
            if run_dir is not None:
                (run_dir / "logs").mkdir(exist_ok=True)
                with (run_dir / "logs" / "ray.log").open("a") as file:
                    file.writelines(f"{line}\n" for line in data["lines"])

    with _replaced(worker, "print_to_stdstream", keep):
        yield


def _session(config: Config, *, was_up: bool) -> Session:
    import ray

    actors, given = config.workers + 2, config.run.cpus_per_actor
    if not was_up and config.address in (None, "local"):
        # Ray's CPUs are logical: a Ray of the run's own has as many as actors, whatever the machine has.
        node: Any = ray._private.worker._global_node
        started = node.all_processes
        processes = {name: started[name][0].process for name in ("raylet", "gcs_server")}
        return Session(1.0 if given is None else given, usable_cores(), processes)
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    cores = max(1, int(sum(nodes)))
    if was_up:
        # What the caller's own tasks hold, this one perhaps among them, is not there for actors.
        per_node = ray._private.state.available_resources_per_node()
        nodes = [resources.get("CPU", 0.0) for resources in per_node.values()]
    share = cpus_per_actor(nodes, actors)
    fits = sum(int(cpus / share) for cpus in nodes) >= actors
    return Session((share if fits else 0.0) if given is None else given, cores)


def _check_joined(address: str | None) -> None:
    import ray

    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", "local", here):
        raise UsageError(
            f"--address {address}: this process has joined the Ray at {here} already; leave the address out to run "
            "there, or call ray.shutdown() first"
        )


def _start(actors: int) -> None:
    import ray

    _set_environment()
    with _signals_kept_from_ray():
        try:
            # Ray's CPUs are logical: as many as actors, so that none waits for ever.
            ray.init(address="local", num_cpus=actors, include_dashboard=False, **_QUIET)
        except Exception as error:
            ray.shutdown()
            raise RunError(f"Ray could not be started here: {_last_line(error)}") from error


def _join(address: str) -> None:
    import ray

    try:
        with _signals_kept_from_ray():
            ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        ray.shutdown()
        raise UsageError(f"--address {address}: no Ray answers there ({_last_line(error)})") from error


def _set_environment() -> None:
    """Set what the processes of a Ray of the run's own inherit; `process_restored` takes it back."""
    # Ray's own 15 lets any other program of the machine outrun a run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    folder = _temporary_folder()
    if folder is not None:
        os.environ["RAY_TMPDIR"] = os.environ["TMPDIR"] = folder
    if not _has_token():
        # Ray would write one into the home folder, and clusters that are started on this machine later would ask for
        # it. This one ends with the run.
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", _token()


def _temporary_folder() -> str | None:
    """Return another folder for Ray's sockets where the usual one has too long a name or can't be written."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    for folder in (usual, "/tmp", "/dev/shm"):
        if len(os.fsencode(folder)) <= _LONGEST_FOLDER and _is_writable(Path(folder), _FOLDER_BYTES):
            return None if folder == usual else folder
    raise UsageError(
        f"Ray can't keep its sockets and logs in {usual}: set RAY_TMPDIR to a folder that can be written, with a path "
        f"of at most {_LONGEST_FOLDER} bytes and {_FOLDER_BYTES // 2**20} MiB free"
    )


def _has_token() -> bool:
    """Return whether the user has a token for Ray, or has chosen to have none."""
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return True
    # RuntimeError: this user has no home.
    with contextlib.suppress(OSError, RuntimeError):
        return (Path.home() / ".ray" / "auth_token").is_file()
    return False


def _is_writable(folder: Path, free_bytes: int = 0) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return shutil.disk_usage(folder).free >= free_bytes
    except OSError:
        return False


@functools.cache
def _token() -> str:
    # The same for every run of this process, since Ray reads it once.
    return secrets.token_hex(32)


@contextlib.contextmanager
def _signals_kept_from_ray() -> Iterator[None]:
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

    with _replaced(services, "ConsolePopen", popen), _replaced(utils, "set_sigterm_handler", lambda _: None):
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
