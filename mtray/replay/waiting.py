"""Who waits for what: the time of the learner and of all collectors since the last line of figures, by reason.

A collector waits while it is up and has no call under way. A wait counts when it ends, or when the shares are taken;
only that takes longer with more collectors. Fed by control, in the driver.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

START: Final = "start"
"""Processes come up."""
WARM_UP: Final = "warm-up"
"""The learner: every task must have the warm-up's rows."""
FRAMES: Final = "frames"
"""The learner: no update is owed for the frames that are there."""
LEARNER: Final = "learner"
"""Collectors: they are as far ahead of the learner as they may be."""
COLLECTORS: Final = "collectors"
"""Collectors: others, which are behind."""
REPLAY: Final = "replay"
"""Receipts or batches, or a new process of the replay."""
SAVE: Final = "save"
"""A checkpoint."""
DONE: Final = "end"
"""All frames were requested, or the run is ending."""


class Waits:
    """Seconds by reason, of the learner and of all collectors together."""

    def __init__(self, now: float) -> None:
        """Begin with everybody waiting for the start."""
        self.collectors_reason = START
        self._learner_reason: str | None = START
        self._learner_since = self._begin = now
        self._collectors: defaultdict[str, float] = defaultdict(float)
        self._learner: defaultdict[str, float] = defaultdict(float)

    def end(self, since: float, now: float) -> None:
        """Count the wait of a collector that has had no call since then and is given one now."""
        self._collectors[self.collectors_reason] += now - max(since, self._begin)

    def learner(self, reason: str | None, now: float) -> None:
        """Say what the learner waits for from now on; None if it works."""
        if reason != self._learner_reason:
            if self._learner_reason is not None:
                self._learner[self._learner_reason] += now - self._learner_since
            self._learner_reason, self._learner_since = reason, now

    def take(
        self, waiting_since: Iterable[float], collectors: int, now: float, replay_seconds: tuple[float, float]
    ) -> dict[str, dict[str, float]]:
        """Return the share of the time since this was last called that each side waited, by reason.

        Args:
            waiting_since: of collectors that wait now, when they began to.
            collectors: all of the run.
            now: the time.
            replay_seconds: in which collectors waited for receipts, and the learner for batches, within their calls.
        """
        for since in waiting_since:
            self.end(since, now)
        reason = self._learner_reason
        self.learner(None, now)
        self.learner(reason, now)
        self._collectors[REPLAY] += replay_seconds[0]
        self._learner[REPLAY] += replay_seconds[1]
        seconds = max(now - self._begin, 1e-9)
        taken = {
            "collectors": _shares(self._collectors, seconds * collectors),
            "learner": _shares(self._learner, seconds),
        }
        self._collectors.clear()
        self._learner.clear()
        self._begin = now
        return taken


def _shares(waits: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Return the shares of at least a thousandth."""
    shares = {reason: round(min(1.0, spent / seconds), 3) for reason, spent in waits.items()}
    return {reason: share for reason, share in shares.items() if share > 0}
