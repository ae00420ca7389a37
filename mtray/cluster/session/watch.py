"""A thread of the driver's that looks at a joined cluster: how many collectors it has room for, which nodes will go."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping

from mtray.cluster.control.protocol import Draining, Event, Part, Room
from mtray.cluster.session.nodes import look, room

_SECONDS, _END_SECONDS = 2.0, 5.0


class Watch:
    """Looks every two seconds, and tells which nodes will go and how much room there is."""

    def __init__(
        self,
        tell: Callable[[Event], None],
        places: Callable[[], Mapping[Part, str]],
        cpus: float,
        *,
        follows_room: bool,
    ) -> None:
        """Begin to look.

        Args:
            tell: called by the thread.
            places: returns the node of each process that has one.
            cpus: logical CPUs that a collector takes.
            follows_room: whether room is told.
        """
        self._tell, self._places, self._cpus, self._follows_room = tell, places, cpus, follows_room
        self._told: set[Part] = set()
        # Ray reports what is free a while after it changed: what was seen twice is told.
        self._seen = -1
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="nodes", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no more: a call of Ray's after its shutdown would start another."""
        self._is_over.set()
        self._thread.join(_END_SECONDS)

    def _work(self) -> None:
        while not self._is_over.wait(_SECONDS):
            # A head that does not answer is noticed elsewhere.
            with contextlib.suppress(Exception):
                self._look()

    def _look(self) -> None:
        import ray

        if not ray.is_initialized():
            return
        places, nodes = self._places(), look()
        draining = {node.id for node in nodes if node.is_draining}
        parts = {part for part, node in places.items() if node in draining} - self._told
        if parts:
            self._told |= parts
            self._tell(Draining(parts))
        if self._follows_room:
            used = Counter(node for part, node in places.items() if part.kind == "collector")
            seen, self._seen = self._seen, room(nodes, self._cpus, used)
            if self._seen == seen:
                # Again and again: control has collectors wait for room for a while before it gives them up.
                self._tell(Room(seen))
