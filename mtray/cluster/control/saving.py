"""Checkpoints: when one is due, and the calls that it is made of.

In lockstep the collectors may give their states first. The learner gives its state, then the replay its counts; the
driver reads the rows and writes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mtray.cluster.control.ledger import Ledger
from mtray.cluster.control.parts.actor import Actor
from mtray.cluster.control.parts.lifecycle import RETRY_SECONDS
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import Failed, Failure, Method
from mtray.replay.pacing import Pacing

Outcome: TypeAlias = Literal["done", "failed", "input"]
# The reason of a run that made all it was to make.
FINISHED = "finished"
# Saves in a row that may fail since the replay could not be reached, before the next failure ends a run that is ending.
BROKEN_SAVES = 3


@dataclass
class Ending:
    """Why a run ends, until when what is under way may take, and whether it ends because it has made what it was to."""

    reason: str
    outcome: Outcome
    until: float
    is_due: bool


class Saving(Ledger):
    """The checkpoint that is being made, and the next one.

    Attributes:
        is_at_cut: whether a resume from the checkpoint that is written goes on bit for bit as this run does.
        has_states: whether it holds the collectors' states.
    """

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; nothing is saved yet."""
        super().__init__(plan, pacing, now)
        self._saving: Method | None = None
        self._is_final = False
        self._next_checkpoint = plan.frames + plan.checkpoint_frames
        self._next_save = now + plan.checkpoint_seconds
        # The call that the checkpoint waits for; a retry has a later id.
        self._save_call = -1
        # Frames and updates of the last checkpoint.
        self._last_saved = plan.frames, plan.updates
        # Saves in a row that failed since the replay could not be reached.
        self._broken_saves = 0
        self._ending: Ending | None = None
        self.is_at_cut = self.has_states = False
        # Collectors' states that have not come.
        self._states_due = 0

    @abstractmethod
    def _close(self, failure: str | None = None) -> None:
        """End the run; a failure to save counts unless something else went wrong before."""

    def _is_save_due(self) -> bool:
        if self.counts.frames >= self._next_checkpoint:
            return True
        return self.now >= self._next_save and (self.counts.frames, self.updates) != self._last_saved

    def _save(self) -> None:
        self._next_checkpoint = self.counts.frames + self.plan.checkpoint_frames
        self._next_save = self.now + self.plan.checkpoint_seconds
        self._save_step(Method.STATE, self.learner)

    def _save_step(self, method: Method, actor: Actor | None) -> None:
        self._saving = method
        if self._ending is not None:
            self._until(self._patience(self._ending))
        self._save_call = self._call(actor, method).id

    def _saved(self) -> None:
        self._saving, self._broken_saves = None, 0
        frames, updates = self._last_saved
        self._tell("save", frames=frames, updates=updates)
        if self._is_final:
            self._close()
        elif self._ending is not None:
            self._until(self.limits.stop_seconds)

    def _save_failed(self, failure: Failed) -> None:
        self._saving, self._last_saved = None, (-1, -1)
        sentence = f"a checkpoint could not be written, the one before stays: {failure.text}"
        self._tell("save_failed", sentence, cause=failure.text)
        if failure.kind is Failure.PEER and self._broken_saves < BROKEN_SAVES:
            # The replay is probably gone. Its new process is saved.
            self._broken_saves += 1
            self._is_stale, self._next_count = True, self.now
            self._next_save = self.now + RETRY_SECONDS
            self._after(RETRY_SECONDS, lambda: None)
        elif self._is_final:
            self._close(f"the last checkpoint could not be written: {failure.text}")

    def _break_off_save(self, method: Method) -> None:
        """Save again as soon as it can be, if this part of a checkpoint is what is waited for."""
        if self._saving is method:
            self._saving, self._next_save = None, self.now

    def _patience(self, ending: Ending) -> float:
        """Return for how long what is under way is waited for, at the end of a run.

        A slow disk is waited for, and nobody waits for the end of a run that is due. A second signal ends it at once.
        """
        is_patient = self._saving is Method.WRITE or (ending.is_due and self._saving is not None)
        return self.limits.call_seconds if is_patient else self.limits.stop_seconds

    def _until(self, seconds: float) -> None:
        assert self._ending is not None
        self._ending.until = self.now + seconds
        self._after(seconds, lambda: None)
