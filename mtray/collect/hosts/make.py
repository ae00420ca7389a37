"""The host of a run's choice."""

from __future__ import annotations

from collections.abc import Sequence

from mtray.collect.hosts.base import Host
from mtray.collect.hosts.inline import InlineHost
from mtray.collect.hosts.parallel import ParallelHost
from mtray.tasks.makers import TaskMaker


def make_host(name: str, makers: Sequence[TaskMaker], *, rebuilds: bool = False) -> Host:
    """Return a ``parallel`` or ``inline`` host of these makers' tasks, every copy at an episode's start.

    Args:
        name: ``parallel`` or ``inline``.
        makers: one per task.
        rebuilds: a simulator that fails in a step is built anew (see `Host.take_failures`).
    """
    kind = ParallelHost if name == "parallel" else InlineHost
    return kind(makers, rebuilds=rebuilds)
