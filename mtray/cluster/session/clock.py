"""The time that control lives in: that of the driver, without what the driver slept through."""

from __future__ import annotations

import time
from collections.abc import Callable

# A driver that has not looked for so long, which it does several times a second, was suspended (Ctrl-Z, a scheduler, a
# machine that stood still), or stood still in a call.
SLEPT_SECONDS = 5.0


class DriverClock:
    """Seconds of `time.monotonic` in which the driver ran.

    Whoever was suspended has heard of nobody. What the others answered meanwhile lies in sockets, and comes some turns
    after it wakes: no deadline may pass before.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin; the clock must be read several times a second."""
        self._monotonic = monotonic
        self._read = monotonic()
        self._slept = 0.0

    def now(self) -> float:
        """Return the time; it stands still where it was not read for long."""
        read = self._monotonic()
        passed, self._read = read - self._read, read
        if passed > SLEPT_SECONDS:
            self._slept += passed
        return read - self._slept
