"""Collectors that can be asked for work, in the order in which they came free, and those that are held back.

Where not all step the same tasks, one that ran ahead would bring its tasks' data only: none is asked for more than a
few rollouts beyond the slowest. One that is back, or was later to start than the others, catches up on what it missed,
up to a limit. Nothing here takes longer with more collectors.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from mtray.cluster.control.parts.actor import Actor
from mtray.cluster.control.plan import CALLS


class Levels:
    """Rollouts finished by each collector that is up, and who is held back for being ahead."""

    def __init__(self, lead: int = 2, missed: int = 64) -> None:
        """Hold back who would be more than ``lead`` rollouts ahead of the slowest; catch up on ``missed`` at most."""
        self.lead, self.missed = lead, missed
        self.lowest = 0
        self._levels: dict[int, int] = {}
        # Of those that are down.
        self._left: dict[int, int] = {}
        self._counts = Counter[int]()
        self._held: list[tuple[Actor, int]] = []
        # Nobody catches up on what was before.
        self._floor = 0

    def forget(self) -> None:
        """Have nobody catch up on what was until now: who steps what has changed."""
        self._floor = self.lowest

    def enter(self, actor: Actor) -> None:
        """Count a collector that came up, from where it left."""
        level = max(self._left.pop(actor.index, 0), self.lowest - self.missed, self._floor)
        # Alone, it is the slowest, wherever others left.
        self.lowest = min(self.lowest, level) if self._levels else level
        self._levels[actor.index] = level
        self._counts[level] += 1

    def advance(self, actor: Actor) -> list[Actor]:
        """Count a rollout of a collector; return those that are held back no longer."""
        level = self._levels[actor.index]
        self._counts[level] -= 1
        self._counts[level + 1] += 1
        self._levels[actor.index] = level + 1
        return self._advance()

    def leave(self, actor: Actor) -> list[Actor]:
        """Take out a collector that is gone: nobody waits for it. Return those that are held back no longer."""
        level = self._levels.pop(actor.index, None)
        if level is None:
            return []
        self._left[actor.index] = level
        self._counts[level] -= 1
        return self._advance()

    def holds_back(self, actor: Actor, calls: int) -> bool:
        """Return whether a collector with so many calls under way must wait; it is then remembered."""
        if self._levels[actor.index] + calls <= self.lowest + self.lead:
            return False
        self._held.append((actor, actor.life))
        return True

    def _advance(self) -> list[Actor]:
        before = self.lowest
        while self._levels and not self._counts[self.lowest]:
            del self._counts[self.lowest]
            self.lowest += 1
        return self.release() if self.lowest != before else []

    def release(self) -> list[Actor]:
        """Return all that were held back."""
        held, self._held = self._held, []
        return [actor for actor, life in held if actor.life == life]


class FreeCollectors:
    """Queues of collectors with no call under way, and with one; an entry that no longer holds is passed over."""

    def __init__(self, levels: Levels | None) -> None:
        """Begin without any; ``levels`` holds back those that are ahead."""
        self._levels = levels
        self._queues: tuple[deque[tuple[Actor, int]], ...] = (deque(), deque())
        # Those with nothing to do and nothing to flush, until there is something to ask for again.
        self._parked: list[Actor] = []

    def put(self, actor: Actor, *, first: bool = False) -> None:
        """Queue a collector, unless it has as much to do as it may have."""
        calls = len(actor.calls)
        if calls < CALLS:
            (self._queues[calls].appendleft if first else self._queues[calls].append)((actor, actor.life))

    def take(self, *, idle_only: bool = False) -> Actor | None:
        """Return the collector that has been free for longest, those without any call first."""
        for calls, queue in enumerate(self._queues[:1] if idle_only else self._queues):
            while queue:
                actor, life = queue.popleft()
                if life != actor.life or not actor.is_up or actor.suspect is not None or actor.is_held:
                    continue
                if len(actor.calls) != calls:
                    continue
                if not idle_only and self._levels is not None and self._levels.holds_back(actor, calls):
                    continue
                return actor
        return None

    def park(self, actor: Actor) -> None:
        """Keep a collector until `unpark`."""
        self._parked.append(actor)

    def unpark(self) -> None:
        """Queue those that were parked."""
        parked, self._parked = self._parked, []
        self._put_all(parked)

    # Who is ahead.

    def enter(self, actor: Actor) -> None:
        """Queue a collector that came up."""
        if self._levels is not None:
            self._levels.enter(actor)
        self.put(actor)

    def advance(self, actor: Actor) -> None:
        """Queue a collector that finished a rollout, and those that were held back for it."""
        if self._levels is not None:
            self._put_all(self._levels.advance(actor))
        self.put(actor)

    def leave(self, actor: Actor) -> None:
        """Queue those that were held back for a collector that is gone."""
        if self._levels is not None:
            self._put_all(self._levels.leave(actor))

    def release(self) -> None:
        """Queue all that are held back."""
        if self._levels is not None:
            self._put_all(self._levels.release())

    def forget(self) -> None:
        """Have nobody catch up on what was until now."""
        if self._levels is not None:
            self._levels.forget()

    def _put_all(self, actors: Iterable[Actor]) -> None:
        for actor in actors:
            self.put(actor)
