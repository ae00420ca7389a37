"""A run from its start to its end: events are taken, checkpoints made, and every way it can end.

However a run ends, what replay and learner have is saved if they can still be reached: first what is under way has a
while to end, then both are asked for their state. The first failure is the reason that is told.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mtray.cluster.control.ledger import Ledger
from mtray.cluster.control.lifecycle import Actor
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import Answered, Call, Command, End, Event, Failed, Method, Stop
from mtray.replay.pacing import Pacing

Outcome: TypeAlias = Literal["done", "failed", "input"]
# The reason of a run that made all it was to make.
FINISHED = "finished"


@dataclass
class _Ending:
    reason: str
    outcome: Outcome
    until: float


class Run(Ledger):
    """What free-running runs and runs in lockstep share."""

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; `start` begins it."""
        super().__init__(plan, pacing, now)
        self._saving: Method | None = None
        self._is_final = False
        self._next_checkpoint = plan.frames + plan.checkpoint_frames
        self._ending: _Ending | None = None
        self.is_over = False
        # Tasks of which a rollout was stepped.
        self._stepped: set[str] = set()

    @abstractmethod
    def _proceed(self) -> None:
        """Ask for what can be asked for now."""

    @abstractmethod
    def _finished_work(self, actor: Actor, call: Call) -> None:
        """Take a collector's answer: a rollout was stepped or pushed."""

    def start(self) -> list[Command]:
        """Begin: every part is started at once."""
        for actor in self.actors:
            self._start(actor)
        return self._take()

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event; return what to do."""
        self.now = max(now, self.now)
        if self.is_over:
            return []
        match event:
            case Answered():
                self._answered(event)
            case Failed():
                if event.call in self._calls and self._calls[event.call][1] is None:
                    self._calls.pop(event.call)
                    self._save_failed(event.text)
                else:
                    self._failed(event)
            case Stop():
                self._tell("stop", cause=event.reason)
                self._end(event.reason, "done")
        self._proceed()
        return self._take()

    def tick(self, now: float) -> list[Command]:
        """Do what was planned for this time; return what to do."""
        self.now = max(now, self.now)
        if self.is_over:
            return []
        self._run_timers()
        self._proceed()
        return self._take()

    def _answered(self, event: Answered) -> None:
        call, actor, _ = self._calls.pop(event.call, (None, None, 0.0))
        if call is None:
            return
        if actor is None:
            self._saved()
            return
        actor.calls.pop(call.id, None)
        actor.heard, actor.answered = self.now, max(actor.answered, call.id)
        if call.method in (Method.HELLO, Method.BUILD):
            self._answered_start(actor, call)
            return
        self._worked(actor)
        match call.method:
            case Method.COLLECT | Method.ACT | Method.PUSH:
                if not actor.tasks <= self._stepped:
                    self._stepped |= actor.tasks
                self._finished_work(actor, call)
            case Method.FLUSH:
                self._flushed(actor, call, event.value)
            case Method.TRAIN | Method.STATUS:
                # Answers may come out of order; updates only grow.
                self._moved = self.now
                self.updates = max(self.updates, event.value)
                if call.method is Method.STATUS:
                    self._cleared(actor, call)
            case Method.COUNT:
                self._counted(event.value)
            case Method.FENCE:
                assert call.of is not None
                self._fenced(call.of, event.value)
            case Method.STATE:
                self._save_step(Method.SNAPSHOT, self.replay)
            case Method.SNAPSHOT:
                self._learn_counts(event.value)
                self._save_step(Method.WRITE, None)

    def _save(self) -> None:
        self._next_checkpoint = self.counts.frames + self.plan.checkpoint_frames
        self._save_step(Method.STATE, self.learner)

    def _save_step(self, method: Method, actor: Actor | None) -> None:
        self._saving = method
        if self._ending is not None and self._is_final:
            self._until(self.limits.call_seconds if self._ending.reason == FINISHED else self.limits.stop_seconds)
        self._call(actor, method)

    def _saved(self) -> None:
        self._saving = None
        self._tell("save", frames=self.counts.frames, updates=self.updates)
        if self._is_final:
            self._close()

    def _save_failed(self, text: str) -> None:
        self._saving = None
        self._tell("save_failed", warning=True, cause=text)
        if self._is_final:
            self._close(f"the last checkpoint could not be written: {text}")

    def _end(self, reason: str, outcome: Outcome) -> None:
        """Ask for nothing more; save once what is under way has ended, then end. The first failure counts."""
        if outcome != "done" and (self._ending is None or self._ending.outcome == "done"):
            self._tell("failure", cause=reason)
        if self._ending is None:
            self._ending = _Ending(reason, outcome, self.now)
            self._until(self.limits.stop_seconds)
        elif self._ending.outcome == "done" and outcome != "done":
            self._ending = _Ending(reason, outcome, self._ending.until)

    def _until(self, seconds: float) -> None:
        assert self._ending is not None
        self._ending.until = self.now + seconds
        self._after(seconds, lambda: None)

    def _is_done(self) -> bool:
        return (
            self.is_ready
            and self.is_idle
            and self.counts.frames >= self.plan.total_frames
            and self.updates >= self._updates_allowed()
        )

    def _can_save(self) -> bool:
        return self.is_ready and (self.asked > self.plan.frames or self.updates > self.plan.updates)

    def _finish(self) -> None:
        if self._ending is None and self._is_done():
            self._end(FINISHED, "done")
        if self._ending is None or self.is_over:
            return
        overdue = self.now >= self._ending.until
        if self._saving is not None and self.is_ready:
            if overdue:
                part = "the learner" if self._saving is Method.STATE else "the replay"
                self._close(f"{part} did not answer, so nothing was saved after the last checkpoint")
        elif not self.is_ready:
            self._close()
        elif (self.is_idle or overdue) and self._can_save():
            self._is_final = True
            self._save()
        elif self.is_idle or overdue:
            self._close()

    def _close(self, failure: str | None = None) -> None:
        """End the run; a failure to save counts unless something else went wrong before."""
        assert self._ending is not None
        ending = self._ending
        self.is_over = True
        self._timers.clear()
        if failure is not None:
            self._tell("unsaved", warning=True, cause=failure)
            if ending.outcome == "done":
                ending = _Ending(failure, "failed", self.now)
        self._tell("end", cause=ending.reason)
        self._give(End(ending.reason, ending.outcome))
