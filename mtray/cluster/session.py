"""Ray for one run: started here or joined."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from mtray.config.settings import Config
from mtray.errors import UsageError

_CONNECT_SECONDS = 5.0


# RFC 9113, sections 3.4 and 6.5: the client's preface and an empty SETTINGS frame; the fourth byte is a frame's type.
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


_HTTP2_SETTINGS = 4


def check_address(address: str) -> None:
    """Raise if no Ray can be reached there.

    Raises:
        UsageError: names the address.
    """
    if address.startswith("ray://"):
        raise UsageError(f"--address {address}: run this on a node of the cluster and give its address, or 'auto'")
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host or "localhost", int(port)), timeout=_CONNECT_SECONDS) as connection:
            # Ray itself would try for minutes: a head speaks gRPC, so it answers HTTP/2's greeting with its settings.
            connection.sendall(_HTTP2_GREETING)
            answer = connection.recv(9, socket.MSG_WAITALL)
            if len(answer) < 9 or answer[3] != _HTTP2_SETTINGS:
                raise OSError("what listens there is no Ray head")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--address {address} can't be reached ({error}): give host:port of a running Ray head, 'auto', or "
            "leave it out to start one here"
        ) from error


def cpus_per_actor(nodes: Sequence[float], actors: int) -> float:
    """The most logical CPUs that each of so many actors can ask for and all still find a place on these nodes.

    Args:
        nodes: CPUs of each node.
        actors: how many.
    """
    thousandths = 1000
    # What is left over on one node can't be put together with another's, so dividing the sum is not enough.
    while thousandths > 1 and sum(int(1000 * cpus) // thousandths for cpus in nodes) < actors:
        thousandths -= 1
    return thousandths / 1000


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[float]:
    """Ray, started here or joined; gives the logical CPUs an actor may ask for, so that all can be placed.

    Raises:
        UsageError: the cluster can't be reached.
    """
    import ray

    actors = config.workers + 2
    # Ray's own 15 lets any other program of the machine outrun a run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.address is None:
        # Ray's CPUs are logical: a Ray of the run's own has as many as actors, so that none waits for ever.
        ray.init(address="local", num_cpus=actors, include_dashboard=False, **quiet)
    else:
        check_address(config.address)
        try:
            ray.init(address=config.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"--address {config.address}: no Ray answers there ({error})") from error
    try:
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        yield config.run.cpus_per_actor if config.run.cpus_per_actor is not None else cpus_per_actor(nodes, actors)
    finally:
        ray.shutdown()
