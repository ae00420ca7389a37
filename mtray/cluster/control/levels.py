"""Which collectors run ahead of the others, where not all step the same tasks.

One that ran ahead would bring its tasks' data only, so none is asked for more than a few rollouts beyond the slowest.
Nothing here takes longer with more collectors.
"""

from __future__ import annotations

from collections import Counter

from mtray.cluster.control.actor import Actor


class Levels:
    """Rollouts finished by each collector that is up, and who is held back for being ahead."""

    def __init__(self, lead: int = 2) -> None:
        """Hold back who would be more than ``lead`` rollouts ahead of the slowest."""
        self.lead = lead
        self.lowest = 0
        self._levels: dict[int, int] = {}
        self._counts = Counter[int]()
        self._held: list[tuple[Actor, int]] = []

    def of(self, actor: Actor) -> int:
        """Return the level of a collector that is up."""
        return self._levels[actor.index]

    def put(self, actor: Actor, level: int) -> list[Actor]:
        """Set a collector's level; return those that are held back no longer."""
        self.drop(actor, advance=False)
        self._levels[actor.index] = level
        self._counts[level] += 1
        return self._advance()

    def drop(self, actor: Actor, *, advance: bool = True) -> list[Actor]:
        """Forget a collector that is gone: nobody waits for it. Return those that are held back no longer."""
        level = self._levels.pop(actor.index, None)
        if level is not None:
            self._counts[level] -= 1
        return self._advance() if advance else []

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
