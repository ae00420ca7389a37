"""Control of a run in lockstep: the same seed gives the same data and weights.

A round: every collector steps one rollout with the same weights, then they push one after the other, the replay counts,
and the learner makes the updates that are owed. Checkpoints are written between rounds, the first at or after every
multiple of their frames. It holds the collectors' states, from which a resumed run goes on within episodes. If one of
them has none, the run is cut there: episodes and draws begin anew, as they do in a run that is resumed from that
checkpoint, so that both give the same numbers. What the learner drew ahead is dropped in either case. A process that
dies ends the run, because what replaced it would draw other numbers; the last checkpoint stays.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from mtray.cluster.control.parts.actor import Actor
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import Call, Failed, Failure, Method
from mtray.cluster.control.run import Run
from mtray.cluster.control.saving import Outcome
from mtray.replay.pacing import Pacing
from mtray.replay.waiting import COLLECTORS, LEARNER, REPLAY, SAVE


class Lockstep(Run):
    """Rounds instead of queues."""

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; `start` begins it."""
        super().__init__(plan, pacing, now)
        self._next_checkpoint = self._after_multiple()
        self._is_round_over = True
        self._pushers: deque[Actor] = deque()

    def _after_multiple(self) -> int:
        """Return the next multiple of the frames between two checkpoints."""
        return (self.counts.frames // self.plan.checkpoint_frames + 1) * self.plan.checkpoint_frames

    def _proceed(self) -> None:
        if all(actor.is_up and not actor.is_busy for actor in self.actors) and self._saving is None:
            self._step()
        self._finish()

    def _step(self) -> None:
        if self._is_round_over:
            if self._ending is not None or self._is_done():
                return
            if self.counts.frames >= self._next_checkpoint:
                self._save()
                return
            self._held_by = COLLECTORS
            self._begin_round()
        elif self._pushers:
            self._call(self._pushers.popleft(), Method.PUSH)
        elif self._is_stale:
            self._is_stale, self._held_by = False, REPLAY
            self._call(self.replay, Method.COUNT)
        else:
            self._is_round_over = True
            owed = self._updates_allowed() - self.updates
            if owed > 0:
                self._held_by = LEARNER
                self._call(self.learner, Method.TRAIN, owed)
            else:
                self._step()

    def _begin_round(self) -> None:
        self._is_round_over = False
        self._pushers = deque(self.collectors)
        for actor in self.collectors:
            self._collect(actor, Method.ACT)

    def _save(self) -> None:
        self._held_by = SAVE
        is_up = all(actor.is_up for actor in self.collectors)
        self.is_at_cut = self.has_states = self.counts.frames >= self._next_checkpoint and is_up
        if self.is_at_cut:
            self._states_due = len(self.collectors)
            for actor in self.collectors:
                self._save_step(Method.STATE, actor)
        else:
            super()._save()
        self._next_checkpoint = self._after_multiple()

    def _saved(self) -> None:
        super()._saved()
        self._cut()

    def _save_failed(self, failure: Failed) -> None:
        super()._save_failed(failure)
        # The run's numbers are the same whether it could be written or not.
        self._cut()

    def _cut(self) -> None:
        """Drop what was drawn ahead, and begin new episodes where states can't be saved, as a resumed run does."""
        if not self.is_over and self._ending is None:
            for actor in (self.learner, *(() if self.has_states else self.collectors)):
                self._call(actor, Method.CUT, self.counts.frames)

    def _settled(self, actor: Actor) -> None:
        raise NotImplementedError("a push in lockstep waits for its receipt: there is nothing to flush")

    def _finished_work(self, actor: Actor, call: Call) -> None:
        if call.method is Method.PUSH:
            self._unflushed.discard(actor.index)
            self._is_stale = True

    @property
    def is_idle(self) -> bool:
        """Whether a round is over and nothing of it is under way."""
        is_busy = self._states_due or any(actor.is_busy for actor in self.actors)
        return self._is_round_over and not is_busy

    def _can_save(self) -> bool:
        return self.is_idle and super()._can_save()

    def _came_up(self, actor: Actor, value: Any) -> None:
        pass

    def _comes_back(self) -> bool:
        return False

    def _end(self, reason: str, outcome: Outcome, *, is_due: bool = False) -> None:
        super()._end(reason, outcome, is_due=is_due)
        if self.is_idle or self.is_over:
            return
        # What is saved stands between two rounds: one that can't be ended is not saved, another is waited for.
        if outcome != "done":
            self._close()
        elif self._saving is None:
            self._until(self.limits.call_seconds)

    def _can_not_start(self, actor: Actor, text: str) -> None:
        self._end(f"{actor.part.name} could not be started: {text}", "failed")

    def _went_down(self, actor: Actor, text: str) -> bool:
        if actor.kind == "collector":
            self._fence(actor)
        remedy = "--deterministic replaces no process: go on with --resume"
        self._end(f"{actor.part.name} died: {text}; {remedy}", "failed")
        return False

    def _decide(self, actor: Actor, failure: Failed) -> None:
        if failure.kind in (Failure.INPUT, Failure.TASK):
            is_first = failure.kind is Failure.INPUT or failure.task not in self._stepped
            self._end(failure.text, "input" if is_first else "failed")
        else:
            self._end(f"{actor.part.name} failed: {failure.text}", "failed")

    def _unreached(self, actor: Actor, call: Call, failure: Failed) -> None:
        if call.method in (Method.ACT, Method.PUSH, Method.TRAIN):
            self._die(actor, f"it could not be reached, so what it did is unknown: {failure.text}")
