"""Seconds by what they were spent on."""

from __future__ import annotations

import time


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        """Start; nothing is spent yet."""
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What has passed since the last lap was spent on ``part``."""
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Part to seconds, since the last time this was asked."""
        taken, self._seconds = self._seconds, {}
        return taken
