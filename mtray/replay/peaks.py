"""The largest reward and return of a task's newest data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Peaks:
    """Largest absolute reward and return of at least as many transitions as a ring holds, and at most twice as many.

    An outlier counts while its data may be drawn, and not for ever.

    Attributes:
        since: transitions that were stored before the newer half began.
        newer: reward and return of it.
        older: those of the half before.
    """

    since: int = 0
    newer: tuple[float, float] = (0.0, 0.0)
    older: tuple[float, float] = (0.0, 0.0)

    def add(self, reward: float, discounted_return: float, count: int, capacity: int) -> None:
        """Add those of a push.

        Args:
            reward: its largest.
            discounted_return: its largest.
            count: transitions stored, with the push's.
            capacity: most transitions that the ring holds.
        """
        if count - self.since > capacity:
            self.since, self.newer, self.older = count, (0.0, 0.0), self.newer
        self.newer = max(self.newer[0], reward), max(self.newer[1], discounted_return)

    @property
    def largest(self) -> tuple[float, float]:
        """The largest reward and return of both halves."""
        return max(self.newer[0], self.older[0]), max(self.newer[1], self.older[1])

    def plain(self) -> list[float]:
        """Return what `of` takes."""
        return [self.since, *self.newer, *self.older]

    @classmethod
    def of(cls, plain: list[float]) -> Peaks:
        """Return what `plain` was made of."""
        since, reward, discounted_return, older_reward, older_return = plain
        return cls(int(since), (reward, discounted_return), (older_reward, older_return))
