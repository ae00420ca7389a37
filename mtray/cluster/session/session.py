"""Ray for one run: the one that is up in this process, a new one of the run's own, or a cluster that is joined."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtray.cluster.session import own
from mtray.cluster.session.checks import is_joined
from mtray.cluster.session.nodes import Node, look, room
from mtray.config.settings import Config
from mtray.errors import UsageError
from mtray.tasks.processes import stat_of, usable_cores

_CONNECT_SECONDS = 5.0
# Python and Ray start in it.
_PROBE_SECONDS = 30.0
# Asks a cluster for its nodes, and whether one of them answers: `ray.init` would wait for it for minutes, deaf to
# signals. In a process of its own, which can be ended.
_PROBE = """
import socket, sys
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient

address = canonicalize_bootstrap_address(sys.argv[1])
if address is None:
    sys.exit("none runs on this machine")
host, _, port = address.rpartition(":")
try:
    socket.create_connection((host.strip("[]"), int(port)), 5).close()
except OSError as error:
    sys.exit(f"the last one that was started on this machine, {address}, is gone: {error}")
nodes = GcsClient(address=address).get_all_node_info(timeout=10).values()
for node in nodes:
    try:
        if node.state == 0:
            socket.create_connection((node.node_manager_address, node.node_manager_port), 5).close()
            sys.exit()
    except OSError:
        pass
sys.exit("its head answers, but none of its nodes: start it anew")
"""
_LOGGER = logging.getLogger("mtray")
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


class Joined:
    """A process that others started."""

    def __init__(self, process_id: int) -> None:
        """Take its id."""
        self._id = process_id
        self._began = self._look()

    def _look(self) -> tuple[str, str] | None:
        """Return the state, and when it was started; None once it is gone."""
        try:
            fields = stat_of(self._id)
        except OSError:
            return None
        return fields[0], fields[19]

    def poll(self) -> int | None:
        """Return None while it is there."""
        found = self._look()
        is_there = found is not None and self._began is not None and found[1] == self._began[1] and found[0] != "Z"
        return None if is_there else -1


@dataclass(frozen=True)
class Session:
    """What a run may use of Ray.

    Attributes:
        cpus_per_actor: logical CPUs that each actor may ask for, so that all can be placed; on a joined cluster, so
            that learner, replay and one collector can.
        cores: cores that actors can keep busy.
        room: collectors that a joined cluster has room for now.
        processes: Ray's on this machine that the run can't go on without, by name.
    """

    cpus_per_actor: float
    cores: int
    room: int = 0
    processes: Mapping[str, subprocess.Popen[bytes] | Joined] = field(default_factory=dict)

    def death(self) -> str | None:
        """Return how Ray died, in one line; None while it lives.

        When one of these processes is gone, Ray's own code ends the driver hard: after a quarter of a minute without
        the raylet, after a minute without the GCS.
        """
        for name, process in self.processes.items():
            code = process.poll()
            if code is not None and isinstance(process, Joined):
                return f"Ray's process {name} on this machine is gone"
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return f"Ray's process {name} {how}"
        return None


def check_address(address: str) -> None:
    """Raise if no Ray answers there within seconds; Ray itself would try for minutes.

    Raises:
        UsageError: names the address.
    """
    if address.startswith("ray://"):
        raise UsageError(f"--address {address}: run this on a node of the cluster and give its address, or 'auto'")
    if address == "local" or is_joined():
        return
    try:
        if address != "auto":
            # A port that nobody listens on is refused at once.
            host, _, port = address.rpartition(":")
            if not port.isdecimal():
                raise _unreachable(address, "it has no port")
            # An address of IPv6 stands in brackets.
            socket.create_connection((host.strip("[]") or "localhost", int(port)), timeout=_CONNECT_SECONDS).close()
        # -P: files of the current folder might have the names of modules.
        subprocess.run(
            [sys.executable, "-P", "-c", _PROBE, address],
            check=True,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env={**os.environ, **_token_mode()},
        )
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, f"no Ray head has answered within {_PROBE_SECONDS:g} seconds") from error
    except subprocess.CalledProcessError as error:
        reason = own.last_line(error.stderr)
        if "InvalidAuthToken" in reason:
            reason = "it asks for a token that is not this user's: copy ~/.ray/auth_token from where it was started"
        raise _unreachable(address, reason) from error
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _token_mode() -> dict[str, str]:
    """Return what has Ray use the user's token, as `ray.init` and `ray start` do if there is one."""
    return {"RAY_AUTH_MODE": "token"} if "RAY_AUTH_MODE" not in os.environ and own.has_token() else {}


def _unreachable(address: str, reason: str) -> UsageError:
    return UsageError(
        f"--address {address} can't be reached ({reason}): give host:port of a running Ray head, 'auto', or "
        "'local' to start one here"
    )


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
def ray_session(config: Config, environment: Mapping[str, Any] | None = None) -> Iterator[Session]:
    """Use a Ray for a run; one that was up in this process before is left up.

    Args:
        config: the run's.
        environment: Ray's runtime environment of the run's processes on a cluster that is joined.

    Raises:
        UsageError: the cluster can't be reached, or this process has joined another.
        RunError: Ray does not start.
    """
    import ray

    if ray.is_initialized():
        _check_joined(config.address)
        _tell_unsent(environment or {})
        yield _session(config, was_up=True)
        return
    # Of a call that fails with several values, those that nobody asks for; the failure itself is told.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    with _texts_kept_in(config.run_dir):
        if config.address is None:
            own.start(config.collectors, _QUIET)
        else:
            _join(config.address, environment or {})
        try:
            yield _session(config, was_up=False)
        finally:
            own.shut_down()
            if config.address is None:
                # Not at the start, whose time is waited for.
                own.remove_old_sessions(Path(os.environ["RAY_TMPDIR"], "ray"))


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

    with own.replaced(worker, "print_to_stdstream", keep):
        yield


def _session(config: Config, *, was_up: bool) -> Session:
    import ray

    actors, given = config.collectors + 2, config.run.cpus_per_actor
    if config.address is not None:
        return dataclasses.replace(_joined(look(), given), processes=_processes_here())
    if not was_up:
        # Ray's CPUs are logical: a Ray of the run's own has as many as actors, whatever the machine has.
        node: Any = ray._private.worker._global_node
        started = node.all_processes
        processes = {name: started[name][0].process for name in ("raylet", "gcs_server")}
        return Session(1.0 if given is None else given, usable_cores(), processes=processes)
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    cores = max(1, int(sum(nodes)))
    # What the caller's own tasks hold, this one perhaps among them, is not there for actors.
    per_node = ray._private.state.available_resources_per_node()
    nodes = [resources.get("CPU", 0.0) for resources in per_node.values()]
    share = cpus_per_actor(nodes, actors)
    fits = sum(int(cpus / share) for cpus in nodes) >= actors
    return Session((share if fits else 0.0) if given is None else given, cores)


def _joined(nodes: Sequence[Node], given: float | None) -> Session:
    """Return what a run may use of a cluster: a core for each process, less where there are not three."""
    cpus = [node.cpus for node in nodes if not node.is_draining]
    # Where there is nothing yet, a core each, for an autoscaler to bring.
    each = given if given is not None else cpus_per_actor(cpus, 3) if any(cpus) else 1.0
    return Session(each, max(1, int(sum(cpus))), room=max(1, room(nodes, each or 1.0, Counter()) - 2))


def _processes_here() -> dict[str, Joined]:
    """Return Ray's processes of a joined cluster that are on this machine and that this process's core needs."""
    import ray

    node: Any = ray._private.worker._global_node
    marks = {"raylet": node.raylet_socket_name, "gcs_server": node.get_session_dir_path()}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            name = command.partition("\0")[0].rpartition("/")[2]
            if name in marks and marks[name] in command:
                found[name] = Joined(int(folder.name))
    return found


def _check_joined(address: str | None) -> None:
    import ray

    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", "local", here):
        raise UsageError(
            f"--address {address}: this process has joined the Ray at {here} already; leave the address out to run "
            "there, or call ray.shutdown() first"
        )


def _tell_unsent(environment: Mapping[str, Any]) -> None:
    """Warn of the modules of makers, which Ray takes only as it is joined, unless the user has sent some."""
    import ray

    modules, sent = environment.get("py_modules"), ray.get_runtime_context().runtime_env
    if modules and not {"py_modules", "working_dir"} & sent.keys():
        _LOGGER.warning(
            "this process has joined Ray before the run: %s can't be sent to the cluster's nodes, which may lack what "
            "the tasks' makers need; call ray.init(..., runtime_env={'py_modules': %s})",
            ", ".join(modules),
            list(modules),
        )


def _join(address: str, environment: Mapping[str, Any]) -> None:
    import ray

    try:
        with own.signals_kept_from_ray():
            ray.init(address=address, runtime_env=dict(environment), **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        ray.shutdown()
        raise UsageError(f"--address {address}: no Ray answers there ({own.last_line(error)})") from error
