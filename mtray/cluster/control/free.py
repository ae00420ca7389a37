"""Control: what the parts of a run are asked for, and when. A state machine without Ray, threads or a clock of its own.

Enters: events (`mtray.cluster.control.protocol`) and the time they came at. Leaves: commands. The driver carries them
out; a simulation plays whole runs with faults of every kind (`tests/cluster/control/simulation.py`). After every event:

- ``asked == acknowledged + in flight + lost``, in frames. The replay's counts are the truth. What a process that died
  was asked for and has not pushed is lost, and asked for again; its source is fenced first, so that nothing of it comes
  later. What may or may not have run is settled by a flush.
- No more frames are asked for, and no more updates, than pacing allows.
- Unless the run is over, something is under way or a timer runs.

No step takes longer with more collectors: those that can be asked stand in queues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mtray.cluster.control.levels import Levels
from mtray.cluster.control.lifecycle import HEALTHY_SECONDS, Actor, Lifecycle, Limits
from mtray.cluster.control.protocol import (
    Answered,
    Call,
    Command,
    Counts,
    End,
    Event,
    Failed,
    Failure,
    Method,
    Part,
    Stop,
)
from mtray.replay.pacing import Pacing

# Calls under way to one part: one runs, one waits, so that the part never waits for the driver.
CALLS = 2
# Time between two counts while frames are under way.
COUNT_SECONDS = 0.1
# Errors of one task's own code in a row that are taken for accidents.
TASK_ERRORS = 3


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one collector steps.

    Attributes:
        rollout_frames: frames of one rollout, over its tasks.
        tasks: names.
    """

    rollout_frames: int
    tasks: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run as control sees it.

    Attributes:
        places: of the collectors.
        total_frames: after which the run is finished.
        checkpoint_frames: between two checkpoints.
        frames: acknowledged before this run began.
        updates: made before it began.
        limits: how long things may take.
    """

    places: Sequence[Place]
    total_frames: int
    checkpoint_frames: int
    frames: int = 0
    updates: int = 0
    limits: Limits = field(default_factory=Limits)


Outcome: TypeAlias = Literal["done", "failed", "input"]
# The reason of a run that made all it was to make.
FINISHED = "finished"


@dataclass
class _Ending:
    reason: str
    outcome: Outcome
    until: float


class Control(Lifecycle):
    """A free-running run. `Lockstep` asks in another order."""

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; `start` begins it."""
        self.replay, self.learner = Actor("replay"), Actor("learner")
        self.collectors = [
            Actor("collector", index, place.tasks, place.rollout_frames) for index, place in enumerate(plan.places)
        ]
        super().__init__([self.replay, self.learner, *self.collectors], plan.limits, now)
        self.plan = plan
        self.pacing = pacing
        self.asked, self.lost = plan.frames, 0
        self.counts = Counts(plan.frames)
        self.updates = plan.updates
        # Collectors with no call under way, and with one, in the order in which they came free. An entry that no
        # longer holds is passed over.
        self._free: tuple[deque[tuple[Actor, int]], ...] = (deque(), deque())
        self._levels = Levels() if len({place.tasks for place in plan.places}) > 1 else None
        # Collectors with frames that a flush has not confirmed, and processes that are gone and not yet fenced.
        self._unflushed: set[int] = set()
        self._fencing: dict[Part, tuple[int, int]] = {}
        # Frames asked of a collector when its flush was.
        self._flushes: dict[int, int] = {}
        # Places that could not be filled for long.
        self._without: set[int] = set()
        self._is_counting, self._is_stale, self._next_count = False, True, now
        self._saving: Method | None = None
        self._is_final = False
        self._next_checkpoint = plan.frames + plan.checkpoint_frames
        self._task_errors: dict[str, tuple[int, float]] = {}
        self._ending: _Ending | None = None
        self.is_over = False

    # What enters.

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

    # Answers.

    def _answered(self, event: Answered) -> None:
        call, actor = self._calls.pop(event.call, (None, None))
        if call is None:
            return
        if actor is None:
            self._saved()
            return
        actor.calls.pop(call.id, None)
        actor.heard = self.now
        if call.method in (Method.HELLO, Method.BUILD):
            self._answered_start(actor, call)
            return
        self._worked(actor)
        match call.method:
            case Method.COLLECT:
                self._is_stale = True
                self._finish_rollout(actor)
            case Method.FLUSH:
                self._flushed(actor, call, event.value)
            case Method.TRAIN | Method.STATUS:
                # Answers may come out of order; updates only grow.
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
            case _:
                self._answered_lockstep(actor, call)

    def _answered_lockstep(self, actor: Actor, call: Call) -> None:
        raise NotImplementedError(call.method)

    def _finish_rollout(self, actor: Actor) -> None:
        if self._levels is not None:
            self._release(self._levels.put(actor, self._levels.of(actor) + 1))
        self._put_free(actor)

    def _flushed(self, actor: Actor, call: Call, acknowledged: int) -> None:
        """Settle what was asked for before a flush: it is acknowledged by now, or lost."""
        self._cleared(actor, call)
        requested = self._flushes.pop(call.id)
        lost = requested - acknowledged
        self.lost += lost - actor.lost
        actor.lost = lost
        self._is_stale = True
        if actor.requested == requested:
            self._unflushed.discard(actor.index)
        self._put_free(actor)

    def _cleared(self, actor: Actor, call: Call) -> None:
        """Forget calls made before one that was answered: a part works in order, so they have ended."""
        for earlier in [id for id in actor.calls if id < call.id]:
            del actor.calls[earlier]
            del self._calls[earlier]
            self._flushes.pop(earlier, None)
        if actor.suspect is not None and actor.suspect < call.id:
            actor.suspect = None

    def _counted(self, counts: Counts) -> None:
        self._is_counting = False
        self._learn_counts(counts)

    def _learn_counts(self, counts: Counts) -> None:
        # Answers may come out of order; counts only grow.
        if counts.frames < self.counts.frames:
            return
        if counts.is_warm and not self.counts.is_warm:
            self._tell("warm", frames=counts.frames)
        self.counts = counts

    def _fenced(self, part: Part, acknowledged: int) -> None:
        requested, lost = self._fencing.pop(part)
        self.lost += requested - acknowledged - lost
        self._is_stale = True

    # Asking.

    @property
    def is_ready(self) -> bool:
        """Whether replay and learner work, so that collectors may."""
        return self.replay.is_up and self.learner.is_up

    @property
    def wanted(self) -> int:
        """Frames still to be asked for; not above zero if none."""
        return self.plan.total_frames - (self.asked - self.lost)

    def _proceed(self) -> None:
        if self.is_ready and self._ending is None:
            self._ask_collectors()
            self._ask_learner()
            if self._saving is None and self.counts.frames >= self._next_checkpoint:
                self._save()
        self._flush_idle()
        self._ask_count()
        self._finish()

    def _allowed(self) -> float:
        allowed = self.pacing.frames_allowed(self.updates)
        if not self.counts.is_warm:
            # The learner waits until every task is warm: collectors must not wait for it meanwhile.
            allowed = max(allowed, self.counts.frames + self.pacing.slack_frames)
        return allowed

    def _ask_collectors(self) -> None:
        allowed = self._allowed()
        while self.wanted > 0:
            actor = self._next_free()
            if actor is None:
                return
            if self.asked - self.lost + actor.rollout_frames > allowed:
                self._put_free(actor, first=True)
                return
            self._collect(actor, Method.COLLECT)
            self._put_free(actor)

    def _collect(self, actor: Actor, method: Method) -> None:
        self._call(actor, method)
        self.asked += actor.rollout_frames
        actor.requested += actor.rollout_frames
        self._unflushed.add(actor.index)

    def _ask_learner(self) -> None:
        calls = [call for call in self.learner.calls.values() if call.method is Method.TRAIN]
        owed = self._updates_allowed() - self.updates - sum(call.amount for call in calls)
        if owed > 0 and len(calls) < CALLS and self.learner.suspect is None:
            self._call(self.learner, Method.TRAIN, owed)

    def _updates_allowed(self) -> int:
        return self.pacing.updates_allowed(self.counts.frames) if self.counts.is_warm else self.updates

    def _flush_idle(self) -> None:
        if not self._unflushed or (self._ending is None and self.wanted > 0):
            return
        if self._levels is not None:
            self._release(self._levels.release())
        while (actor := self._next_free(idle_only=True)) is not None:
            if actor.index in self._unflushed:
                self._call(actor, Method.FLUSH)

    def _call(self, actor: Actor | None, method: Method, amount: int = 0, of: Part | None = None) -> Call:
        call = super()._call(actor, method, amount, of)
        if actor is not None and method is Method.FLUSH:
            self._flushes[call.id] = actor.requested
        return call

    def _ask_count(self) -> None:
        if self._is_counting or not self.replay.is_up or not self._is_stale:
            return
        is_idle = not self._unflushed and not self._fencing
        if is_idle or self.now >= self._next_count:
            self._is_counting = True
            # What was acknowledged before this is asked is in the answer; what comes later is not.
            self._is_stale = not is_idle
            self._next_count = self.now + COUNT_SECONDS
            self._call(self.replay, Method.COUNT)
            self._after(COUNT_SECONDS, lambda: None)

    # Who is free.

    def _put_free(self, actor: Actor, *, first: bool = False) -> None:
        calls = len(actor.calls)
        if calls < CALLS:
            (self._free[calls].appendleft if first else self._free[calls].append)((actor, actor.life))

    def _next_free(self, *, idle_only: bool = False) -> Actor | None:
        """Take the collector that has been free for longest, those without any call first."""
        for calls, queue in enumerate(self._free[:1] if idle_only else self._free):
            while queue:
                actor, life = queue.popleft()
                if life != actor.life or not actor.is_up or actor.suspect is not None or len(actor.calls) != calls:
                    continue
                if not idle_only and self._levels is not None and self._levels.holds_back(actor, calls):
                    continue
                return actor
        return None

    def _release(self, actors: Iterable[Actor]) -> None:
        for actor in actors:
            self._put_free(actor)

    # Parts that come and go.

    def _came_up(self, actor: Actor) -> None:
        if actor.kind == "collector":
            self._without.discard(actor.index)
            if self._levels is not None:
                # It goes on beside the others, not from where its place was left.
                self._release(self._levels.put(actor, self._levels.lowest))
            self._put_free(actor)

    def _went_down(self, actor: Actor, text: str) -> bool:
        if actor.kind != "collector":
            self._end(f"{actor.part.name} died: {text}", "failed")
            return False
        if self._levels is not None:
            self._release(self._levels.drop(actor))
        self._fence(actor)
        return self._ending is None

    def _fence(self, actor: Actor) -> None:
        """Find out what a process that is gone has pushed, and have nothing more come of it."""
        self._unflushed.discard(actor.index)
        if actor.requested:
            self._fencing[actor.part] = actor.requested, actor.lost
            if self.replay.is_up:
                self._call(self.replay, Method.FENCE, of=actor.part)

    def _can_not_start(self, actor: Actor, text: str) -> None:
        minutes = self.limits.give_up_seconds / 60
        text = f"{actor.part.name} could not be started for {minutes:.0f} minutes: {text}"
        if not self._can_do_without(actor):
            self._end(text, "failed")
        elif actor.index not in self._without:
            self._without.add(actor.index)
            self._tell("without", warning=True, part=actor.part.name, cause=text)

    def _can_do_without(self, actor: Actor) -> bool:
        """Return whether other collectors step all of a collector's tasks."""
        others = [other.tasks for other in self.collectors if other is not actor and other.is_up]
        return actor.kind == "collector" and actor.tasks <= frozenset().union(*others)

    def _raised(self, actor: Actor, call: Call, failure: Failed) -> None:
        if failure.kind is Failure.INPUT:
            self._end(failure.text, "input")
        elif failure.kind is Failure.TASK:
            self._task_raised(actor, failure)
        elif actor.kind != "collector" or not any(other.has_worked or other.life for other in self.collectors):
            # What a part raises before any of its kind has worked, the next one would raise as well.
            self._end(f"{actor.part.name} failed: {failure.text}", "failed")
        else:
            self._die(actor, failure.text)

    def _task_raised(self, actor: Actor, failure: Failed) -> None:
        task = failure.task or ""
        count, last = self._task_errors.get(task, (0, self.now))
        count = 1 if self.now - last > HEALTHY_SECONDS else count + 1
        self._task_errors[task] = count, self.now
        if task not in self.counts.tasks:
            self._end(failure.text, "input")
        elif count > TASK_ERRORS:
            self._end(f"{failure.text} ({count} times in a row)", "failed")
        else:
            self._die(actor, failure.text)

    def _unreached(self, actor: Actor, call: Call, failure: Failed) -> None:
        self._tell("unreached", part=actor.part.name, call=call.method.value, cause=failure.text)
        if failure.kind is Failure.PEER:
            # Whoever could not be reached is probably the replay.
            self._is_stale, self._next_count = True, self.now
        method = {Method.COLLECT: Method.FLUSH, Method.TRAIN: Method.STATUS}.get(call.method)
        if method is not None:
            was_suspect, actor.suspect = actor.suspect is not None, max(call.id, actor.suspect or 0)
            if was_suspect:
                return
            self._again(actor, Call(-1, actor.part, method))

    # Saving and ending.

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
        if self._ending is None:
            self._ending = _Ending(reason, outcome, self.now)
            self._until(self.limits.stop_seconds)
        elif self._ending.outcome == "done" and outcome != "done":
            self._ending = _Ending(reason, outcome, self._ending.until)

    def _until(self, seconds: float) -> None:
        assert self._ending is not None
        self._ending.until = self.now + seconds
        self._after(seconds, lambda: None)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way that could change what a checkpoint holds."""
        is_training = self.learner.suspect is not None or any(
            call.method is Method.TRAIN for call in self.learner.calls.values()
        )
        waits = self._is_counting or self._is_stale
        return not (self._unflushed or self._fencing or is_training or waits)

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
        self._give(End(ending.reason, ending.outcome))
