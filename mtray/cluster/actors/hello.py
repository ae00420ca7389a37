"""How an actor begins: it says where it is and what is installed there, and keeps what it prints."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ray

from mtray.rundir.directory import versions


class Hello(NamedTuple):
    """A new process.

    Attributes:
        process: its id.
        log: the file that it prints to, in the run directory's ``logs``; None where that can't be written from there.
        node: Ray's id of the node.
        address: the node's.
        versions: of Python and packages there.
    """

    process: int
    log: str | None
    node: str
    address: str
    versions: Mapping[str, str]

    @property
    def is_here(self) -> bool:
        """Whether it is on this process's node."""
        return self.node == ray.get_runtime_context().get_node_id()


def say_hello(logs: Path, name: str) -> Hello:
    """Keep what this process prints in a file of ``logs``; return where it is."""
    node = ray.get_runtime_context().get_node_id()
    return Hello(os.getpid(), keep_output(logs, name), node, ray.util.get_node_ip_address(), versions())


def keep_output(folder: Path, name: str) -> str | None:
    """Send this process's output, its children's and the traces of crashes to a file of its own from now on.

    Args:
        folder: ``logs`` of the run directory.
        name: the actor's.

    Returns:
        The file's name; None where the run directory is not on this machine or can't be written.
    """
    with contextlib.suppress(OSError):
        if folder.parent.is_dir():
            folder.mkdir(exist_ok=True)
            path = folder / f"{name}-{os.getpid()}.log"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            os.write(descriptor, f"{name}, process {os.getpid()} on {socket.gethostname()}, {now}\n".encode())
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(descriptor, stream.fileno())
            os.close(descriptor)
            faulthandler.enable()
            return path.name
    return None
