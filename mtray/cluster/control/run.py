"""A run from its start to its end: events are taken, checkpoints made, and every way it can end.

However a run ends, what replay and learner have is saved if they can still be reached: first what is under way has a
while to end, then both are asked for their state. The first failure is the reason that is told.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import replace

from mtray.cluster.control.parts.actor import Actor
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import (
    Answered,
    Call,
    Command,
    Draining,
    End,
    Event,
    Failed,
    Method,
    Part,
    Room,
    Stop,
)
from mtray.cluster.control.saving import FINISHED, Ending, Outcome, Saving
from mtray.replay.pacing import Pacing

# What keeps a part of a checkpoint from being made in time.
_LATE = {
    Method.STATE: "the learner did not answer",
    Method.SNAPSHOT: "the replay did not answer",
    Method.WRITE: "the checkpoint was not written in time",
}


class Run(Saving):
    """What free-running runs and runs in lockstep share."""

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; `start` begins it."""
        super().__init__(plan, pacing, now)
        # Whether replay and learner were up at the same time.
        self._has_begun = False
        self.is_over = False
        self._is_interrupted = False
        # Whether learner or replay raised as they were asked for their part of a checkpoint.
        self._has_save_raised = False
        # The first request to end the run.
        self._stop: Stop | None = None
        # Tasks of which a rollout was stepped without a failure, and those that were set aside, each with its error.
        self._stepped: set[str] = set()
        self._aside: dict[str, str] = {}

    @abstractmethod
    def _proceed(self) -> None:
        """Ask for what can be asked for now."""

    def _rebuilt(self, actor: Actor, task: str, text: str) -> None:
        """Take that a collector built a task's simulator anew, since it had failed."""

    def _fit(self, count: int) -> None:
        """Take that there is room for so many collectors."""

    def _drain(self, parts: Collection[Part]) -> None:
        """Take that the node of these will go soon."""

    @abstractmethod
    def _decide(self, actor: Actor, failure: Failed) -> None:
        """Replace a part that raised, go on without a task, or end the run."""

    @abstractmethod
    def _finished_work(self, actor: Actor, call: Call) -> None:
        """Take a collector's answer: a rollout was stepped or pushed."""

    def start(self) -> list[Command]:
        """Begin: every part is started."""
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
                    self._save_failed(event)
                else:
                    self._failed(event)
            case Stop():
                self._tell("stop", cause=event.reason)
                self._stop = self._stop or event
                self._follow(self._stop)
            case Room():
                self._fit(event.collectors)
            case Draining():
                self._drain(event.parts)
        self._proceed()
        self._note_waits(has_begun=self._has_begun or self.is_ready, is_ending=self._ending is not None)
        return self._take()

    def tick(self, now: float) -> list[Command]:
        """Do what was planned for this time; return what to do."""
        self.now = max(now, self.now)
        if self.is_over:
            return []
        self._run_timers()
        self._proceed()
        self._note_waits(has_begun=self._has_begun or self.is_ready, is_ending=self._ending is not None)
        return self._take()

    def _answered(self, event: Answered) -> None:
        call, actor, asked = self._calls.pop(event.call, (None, None, 0.0))
        if call is None:
            return
        if actor is None:
            self._saved()
            return
        self._measure(actor, call, asked)
        actor.calls.pop(call.id, None)
        actor.answered = max(actor.answered, call.id)
        self._heard(actor)
        if call.method in (Method.HELLO, Method.BUILD):
            self._answered_start(actor, call, event.value)
            return
        self._worked(actor)
        match call.method:
            case Method.COLLECT | Method.ACT | Method.PUSH:
                if not actor.tasks <= self._stepped:
                    failures = () if event.value is None else event.value.failures
                    self._stepped |= actor.tasks - {task for task, _ in failures}
                self._finished_work(actor, call)
                if event.value is not None:
                    self._lose(actor, event.value.missing)
                    # Last: it may end the process.
                    for task, text in event.value.failures:
                        self._rebuilt(actor, task, text)
            case Method.FLUSH | Method.CONNECT if actor.kind == "collector":
                self._flushed(actor, call, event.value)
            case Method.TRAIN | Method.STATUS | Method.CONNECT | Method.CUT if actor.kind == "learner":
                # Answers may come out of order; updates only grow.
                self._moved = self.now
                self.updates = max(self.updates, event.value)
                if call.method is not Method.TRAIN:
                    self._cleared(actor, call)
            case Method.COUNT:
                self._counted(event.value)
            case Method.FENCE:
                assert call.of is not None
                self._fenced(call.of, event.value)
            case Method.STATE if actor.kind == "collector":
                self.has_states &= bool(event.value)
                self._states_due -= 1
                if not self._states_due:
                    self._save_step(Method.STATE, self.learner)
            case Method.STATE:
                self._kept_updates = max(self._kept_updates, event.value)
                # An earlier call, made to keep the state, says nothing of what was learned since.
                if call.id < self._save_call:
                    return
                if self._saving is Method.STATE and self.replay.is_up:
                    self._save_step(Method.SNAPSHOT, self.replay)
                else:
                    self._break_off_save(Method.STATE)
            case Method.SNAPSHOT:
                self._learn_counts(event.value)
                if self._saving is Method.SNAPSHOT:
                    self._last_saved = event.value.frames, self._kept_updates
                    self._save_step(Method.WRITE, None)

    def _raised(self, actor: Actor, call: Call, failure: Failed) -> None:
        self._decide(actor, failure)
        if self.is_over or self._saving is not call.method or call.id < self._save_call:
            return
        # A part of a checkpoint: it is asked for once more, as a failure of updates is raised once.
        if self._has_save_raised:
            self._close(f"{actor.part.name} failed as it was to be saved: {failure.text}")
            return
        self._has_save_raised = True
        self._break_off_save(call.method)

    def _follow(self, stop: Stop) -> None:
        """End as asked; where the run has finished, and is being saved, that changes nothing."""
        self._is_interrupted |= not stop.is_due and self._ending is None
        self._end(stop.reason, "done", is_due=stop.is_due)

    def _end(self, reason: str, outcome: Outcome, *, is_due: bool = False) -> None:
        """Ask for nothing more; save once what is under way has ended, then end. The first failure counts."""
        if outcome != "done" and (self._ending is None or self._ending.outcome == "done"):
            self._tell("failure", cause=reason)
        if self._ending is None:
            self._ending = Ending(reason, outcome, self.now, is_due)
            self._until(self._patience(self._ending))
        elif self._ending.outcome == "done" and outcome != "done":
            self._ending = replace(self._ending, reason=reason, outcome=outcome)

    def _is_done(self) -> bool:
        return (
            self.is_ready
            and self.is_idle
            and self.counts.frames >= self.plan.total_frames
            and self.updates >= self._updates_owed()
        )

    def has_made(self) -> bool:
        """Return whether there is anything to save that the run did not begin with, or will be in a moment."""
        return self.asked > self.plan.frames or self.updates > self.plan.updates

    def _can_save(self) -> bool:
        return self.is_ready and self.has_made()

    def _comes_back(self) -> bool:
        """Return whether replay and learner are waited for at the end, since there is something to save."""
        return self._has_begun and self.has_made()

    def _finish(self) -> None:
        if self._ending is None and self._is_done():
            self._end(FINISHED, "done", is_due=True)
        if self._ending is None or self.is_over:
            return
        overdue = self.now >= self._ending.until
        if self._saving is not None:
            if overdue:
                late = "a collector did not answer" if self._states_due else _LATE[self._saving]
                self._close(f"{late}, so nothing was saved after the last checkpoint")
        elif not self.is_ready:
            if not self._comes_back():
                self._close()
            elif overdue:
                part = "the learner" if self.replay.is_up else "the replay"
                if self._has_begun:
                    self._close(f"{part} was not back in time, so nothing was saved after the last checkpoint")
                else:
                    self._tell("unsaved", f"the run ends unsaved: {part} was not ready", cause=f"{part} was not ready")
                    self._close()
        elif (self.is_idle or overdue) and self._can_save():
            self._is_final = True
            self._save()
        elif self.is_idle or overdue:
            unsaved = "a round did not end in time, so nothing was saved after the last checkpoint"
            self._close(unsaved if self.has_made() else None)

    def _close(self, failure: str | None = None) -> None:
        """End the run; a failure to save counts unless something else went wrong before."""
        assert self._ending is not None
        ending = self._ending
        self.is_over = True
        self._timers.clear()
        if failure is not None:
            self._tell("unsaved", f"the run ends unsaved: {failure}", cause=failure)
            if ending.outcome == "done":
                ending = replace(ending, reason=failure, outcome="failed")
        has_finished = ending.outcome == "done" and not self._is_interrupted
        was_ready = self.is_ready and self.counts.frames > 0
        if has_finished and not was_ready:
            what = "the learner was ready" if self.counts.frames else "anything was collected"
            text = f"before {what}, since starting took all of the time: give more"
            ending = replace(ending, reason=f"{ending.reason}, {text}", outcome="failed")
        if self._aside and ending.outcome == "done":
            texts = "; ".join(f"without {task}, which failed: {text}" for task, text in self._aside.items())
            outcome: Outcome = "done" if self._is_interrupted else "failed"
            ending = replace(ending, reason=f"{ending.reason} {texts}", outcome=outcome)
        self._give(End(ending.reason, ending.outcome, has_finished and was_ready))
