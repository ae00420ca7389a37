"""A run from its start to its end: events are taken, checkpoints made, and every way it can end.

However a run ends, what replay and learner have is saved if they can still be reached: first what is under way has a
while to end, then both are asked for their state. The first failure is the reason that is told.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mtray.cluster.control.ledger import Ledger
from mtray.cluster.control.parts.actor import Actor
from mtray.cluster.control.parts.lifecycle import RETRY_SECONDS
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import Answered, Call, Command, End, Event, Failed, Failure, Method, Stop
from mtray.replay.pacing import Pacing

Outcome: TypeAlias = Literal["done", "failed", "input"]
# The reason of a run that made all it was to make.
FINISHED = "finished"
# Saves in a row that may fail since the replay could not be reached, before the next failure ends a run that is ending.
BROKEN_SAVES = 3


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
        self._next_save = now + plan.checkpoint_seconds
        # The call that the checkpoint waits for; a retry has a later id.
        self._save_call = -1
        # Frames and updates of the last checkpoint.
        self._last_saved = plan.frames, plan.updates
        # Whether replay and learner were up at the same time.
        self._has_begun = False
        # Saves in a row that failed since the replay could not be reached.
        self._broken_saves = 0
        self._ending: _Ending | None = None
        self.is_over = False
        # Whether a resume from the checkpoint that is written goes on bit for bit as this run does.
        self.is_at_cut = False
        # Whether it holds the collectors' states, and of how many they have not come.
        self.has_states = False
        self._states_due = 0
        # Tasks of which a rollout was stepped, and those that were set aside, each with its error.
        self._stepped: set[str] = set()
        self._aside: dict[str, str] = {}

    @abstractmethod
    def _proceed(self) -> None:
        """Ask for what can be asked for now."""

    def _rebuilt(self, actor: Actor, task: str, text: str) -> None:
        """Take that a collector built a task's simulator anew, since it had failed."""

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
                    self._save_failed(event)
                else:
                    self._failed(event)
            case Stop():
                self._tell("stop", cause=event.reason)
                self._end(event.reason, "done")
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
        actor.heard, actor.answered = self.now, max(actor.answered, call.id)
        if call.method in (Method.HELLO, Method.BUILD):
            self._answered_start(actor, call, event.value)
            return
        self._worked(actor)
        match call.method:
            case Method.COLLECT | Method.ACT | Method.PUSH:
                if not actor.tasks <= self._stepped:
                    self._stepped |= actor.tasks
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
        if self._ending is not None and self._is_final:
            # A slow disk is waited for: nothing else is left to be done. A second signal ends the run at once.
            is_patient = self._ending.reason == FINISHED or method is Method.WRITE
            self._until(self.limits.call_seconds if is_patient else self.limits.stop_seconds)
        self._save_call = self._call(actor, method).id

    def _saved(self) -> None:
        self._saving, self._broken_saves = None, 0
        self._tell("save", frames=self.counts.frames, updates=self.updates)
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

    def _end(self, reason: str, outcome: Outcome) -> None:
        """Ask for nothing more; save once what is under way has ended, then end. The first failure counts."""
        if outcome != "done" and (self._ending is None or self._ending.outcome == "done"):
            self._tell("failure", cause=reason)
        if self._ending is None:
            self._ending = _Ending(reason, outcome, self.now)
            is_writing = self._saving is Method.WRITE
            self._until(self.limits.call_seconds if is_writing else self.limits.stop_seconds)
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

    def has_made(self) -> bool:
        """Return whether there is anything to save that the run did not begin with, or will be in a moment."""
        return self.asked > self.plan.frames or self.updates > self.plan.updates

    def _can_save(self) -> bool:
        return self.is_ready and self.has_made()

    def _comes_back(self) -> bool:
        """Return whether a replay or learner that is down is being replaced, and had anything to save."""
        return self._has_begun and self.has_made()

    def _finish(self) -> None:
        if self._ending is None and self._is_done():
            self._end(FINISHED, "done")
        if self._ending is None or self.is_over:
            return
        overdue = self.now >= self._ending.until
        if self._saving is not None:
            if overdue:
                part = "the learner" if self._saving is Method.STATE else "the replay"
                part = "a collector" if self._states_due else part
                self._close(f"{part} did not answer, so nothing was saved after the last checkpoint")
        elif not self.is_ready:
            if not self._comes_back():
                self._close()
            elif overdue:
                part = "the learner" if self.replay.is_up else "the replay"
                self._close(f"{part} was not back in time, so nothing was saved after the last checkpoint")
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
            self._tell("unsaved", f"the run ends unsaved: {failure}", cause=failure)
            if ending.outcome == "done":
                ending = _Ending(failure, "failed", self.now)
        if self._aside and ending.reason == FINISHED:
            texts = "; ".join(f"without {task}, which failed: {text}" for task, text in self._aside.items())
            ending = _Ending(f"{FINISHED} {texts}", "failed", self.now)
        self._tell("end", cause=ending.reason)
        self._give(End(ending.reason, ending.outcome))
