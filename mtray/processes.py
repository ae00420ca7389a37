"""The fork server: where a process that steps simulators comes from.

It has nothing of its parent's threads, imports the simulators once, and forks a process per task in milliseconds.
Starting it early, before the parent's own imports, lets the two import side by side.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing import forkserver


def start_fork_server(modules: Sequence[str]) -> None:
    """Start it, if it is not yet up, with these modules imported; those that can't be are passed over."""
    multiprocessing.set_forkserver_preload(list(modules))
    forkserver.ensure_running()
