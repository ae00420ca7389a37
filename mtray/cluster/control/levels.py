"""Which collectors run ahead of the others, where not all step the same tasks.

One that ran ahead would bring its tasks' data only, so none is asked for more than a few rollouts beyond the slowest.
One that is back, or was later to start than the others, catches up on what it missed, up to a limit.

Nothing here takes longer with more collectors.
"""

from __future__ import annotations

from collections import Counter

from mtray.cluster.control.actor import Actor


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

    def enter(self, actor: Actor) -> None:
        """Count a collector that came up, from where it left."""
        level = max(self._left.pop(actor.index, 0), self.lowest - self.missed)
        self._levels[actor.index] = level
        self._counts[level] += 1
        self.lowest = min(self.lowest, level)

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
