"""What an actor prints, in a file of the run directory, where the cause of its death can be read afterwards."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import os
import socket
import sys
from pathlib import Path


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
