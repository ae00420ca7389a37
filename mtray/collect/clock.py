"""A clock that adds up seconds by part of the work."""

from __future__ import annotations

import time


class Clock:
    """Adds up seconds by part of the work."""

    def __init__(self) -> None:
        """Start the first lap."""
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Add the time since the last lap to ``part``."""
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Return part to seconds since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken
