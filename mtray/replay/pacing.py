"""How many updates the learner may make for the frames collected, and how many frames the collectors may run ahead.

With ``frames`` acknowledged by the replay (all tasks together) and F frames in one agent step of every task:

    updates allowed = updates_per_step * (frames - warmup_frames) / F            (never below 0)
    frames allowed  = warmup_frames + F * updates / updates_per_step + slack_frames

so the learner waits for collectors that lag behind and collectors wait for a learner that lags behind; between the
two lies ``slack_frames``. Reverb's rate limiter holds the same two lines (Cassirer et al. 2021, "Reverb: a framework
for experience replay", section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass

from mtray.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """The two lines above.

    Attributes:
        updates_per_step: updates per agent step of every task; 0 collects without learning.
        step_frames: frames of one agent step of every task: the sum of their action repeats.
        warmup_frames: frames of all tasks before the first update.
        slack_frames: frames that collectors may be ahead of the learner.
        round_frames: frames that all collectors bring when each brings one rollout.
    """

    updates_per_step: float
    step_frames: int
    warmup_frames: int
    slack_frames: int
    round_frames: int

    def __post_init__(self) -> None:
        """Refuse settings under which both sides would wait for ever.

        Raises:
            UsageError: names the setting.
        """
        if self.updates_per_step < 0 or self.step_frames < 1 or self.warmup_frames < 0:
            raise UsageError(f"pacing can't be negative: {self}")
        if not self.updates_per_step:
            return
        least = self.round_frames + int(self.step_frames / self.updates_per_step) + 1
        if self.slack_frames < least:
            raise UsageError(
                f"slack of {self.slack_frames} frames: collectors bring {self.round_frames} at a time, an update needs "
                f"{self.step_frames / self.updates_per_step:g}, so at least {least} is needed or both sides would wait"
            )

    def updates_allowed(self, frames: int) -> int:
        """Updates that may have been made in all once ``frames`` are acknowledged."""
        return max(0, int(self.updates_per_step * (frames - self.warmup_frames) / self.step_frames))

    def frames_allowed(self, updates: int) -> float:
        """Frames that may be acknowledged or under way in all once ``updates`` are made."""
        if not self.updates_per_step:
            return float("inf")
        return self.warmup_frames + self.step_frames * updates / self.updates_per_step + self.slack_frames
