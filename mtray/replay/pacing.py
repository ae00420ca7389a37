"""How many updates the learner may make for the frames collected, and how many frames the collectors may run ahead.

With ``frames`` acknowledged by the replay (all tasks together) and F frames in one agent step of every task:

    updates allowed = start_updates + most * (frames - start_frames) / F     (never below start_updates)
    frames allowed  = start_frames + F * (updates - start_updates) / least + slack_frames

Between the most and the least updates per step both sides are as fast as they can be. Where the two are equal, the run
keeps this ratio. Updates that are owed, which the run makes before it ends, are those of the least.

A new run starts with no update at the end of its warm-up. A resumed run keeps its start, unless its ratio was changed,
tasks that were set aside are back, or its rows were not saved: it then owes nothing of before, so neither side waits
for what the other did not do. So the learner waits for collectors that lag behind and collectors wait for a learner
that lags behind; between the two lies ``slack_frames``. Reverb's rate limiter holds the same two lines (Cassirer et al.
2021, "Reverb: a framework for experience replay", section 3.4).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mtray.errors import UsageError


def least_slack(ratio: float, step_frames: int, round_frames: int) -> int:
    """Return the slack in frames below which both sides would wait for ever.

    Args:
        ratio: the least updates per agent step of every task.
        step_frames: as `Pacing`'s.
        round_frames: as `Pacing`'s.
    """
    return round_frames + int(step_frames / ratio) + 1 if ratio else 0


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """The two lines above.

    Attributes:
        updates_per_step: the most updates per agent step of every task; 0 collects without learning.
        least_updates_per_step: the least; None for the same.
        step_frames: frames of one agent step of every task: the sum of their action repeats.
        start_frames: frames of all tasks from which on updates are owed: those of the warm-up.
        slack_frames: frames that collectors may be ahead of the learner.
        round_frames: frames that all collectors bring when each brings one rollout.
        start_updates: updates made when ``start_frames`` were reached.
    """

    updates_per_step: float
    step_frames: int
    start_frames: int
    slack_frames: int
    round_frames: int
    start_updates: int = 0
    least_updates_per_step: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings under which both sides would wait for ever.

        Raises:
            UsageError: names the setting.
        """
        if self.updates_per_step < 0 or self.step_frames < 1 or min(self.start_frames, self.start_updates) < 0:
            raise UsageError(f"pacing can't be negative: {self}")
        if not self.updates_per_step:
            return
        if not 0 < self.least <= self.updates_per_step:
            raise UsageError(f"at least {self.least:g} updates per step and at most {self.updates_per_step:g}: {self}")
        least = least_slack(self.least, self.step_frames, self.round_frames)
        if self.slack_frames < least:
            raise UsageError(
                f"slack of {self.slack_frames} frames: collectors bring {self.round_frames} at a time, an update needs "
                f"{self.step_frames / self.least:g}, so at least {least} is needed or both sides would wait"
            )

    @property
    def least(self) -> float:
        """The least updates per agent step of every task."""
        return self.updates_per_step if self.least_updates_per_step is None else self.least_updates_per_step

    def updates_owed(self, frames: int) -> int:
        """Return how many updates a run that ends with so many frames acknowledged makes in all, at least."""
        return self._updates(self.least, frames)

    def updates_allowed(self, frames: int) -> int:
        """Return how many updates may have been made in all once ``frames`` are acknowledged."""
        return self._updates(self.updates_per_step, frames)

    def _updates(self, ratio: float, frames: int) -> int:
        return self.start_updates + max(0, int(ratio * (frames - self.start_frames) / self.step_frames))

    def frames_allowed(self, updates: int) -> float:
        """Return how many frames may be acknowledged or under way in all once ``updates`` are made."""
        if not self.updates_per_step:
            return float("inf")
        steps = (updates - self.start_updates) / self.least
        return self.start_frames + self.step_frames * steps + self.slack_frames

    def resumed(self, saved: Pacing, frames: int, updates: int, *, lost_rows: bool) -> Pacing:
        """Return the pacing of a run that goes on at these counts.

        Args:
            saved: of the run until then.
            frames: acknowledged in all.
            updates: made in all.
            lost_rows: whether the replay starts empty: the warm-up is then repeated, without updates.
        """
        if lost_rows:
            return dataclasses.replace(self, start_frames=frames + self.start_frames, start_updates=updates)
        ratio, before = ((pacing.updates_per_step, pacing.least, pacing.step_frames) for pacing in (self, saved))
        if ratio == before:
            return dataclasses.replace(self, start_frames=saved.start_frames, start_updates=saved.start_updates)
        return dataclasses.replace(self, start_frames=max(frames, saved.start_frames), start_updates=updates)
