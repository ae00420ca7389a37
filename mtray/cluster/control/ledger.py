"""What was asked for, and what became of it, in frames.

``asked == acknowledged + in flight + lost`` holds after every event. The replay's counts are the truth. What a process
that died was asked for and has not pushed is lost, and asked for again; its source is fenced first, so that nothing of
it comes later. What may or may not have run is settled by a flush.

A replay that died comes back with what its new process could restore. Every collector is then connected to it, which
is a flush: it sends again what has no receipt, and the replay's answer says what it holds. What it held before and
holds no longer is lost like anything else.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod

from mtray.cluster.control.parts.actor import Actor, Phase
from mtray.cluster.control.parts.lifecycle import Lifecycle
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import Call, Counts, Method, Part, Restored
from mtray.replay.pacing import Pacing
from mtray.replay.waiting import COLLECTORS, DONE, FRAMES, REPLAY, SAVE, START, WARM_UP

# Time between two counts while frames are under way.
COUNT_SECONDS = 0.1
# Time without a new frame or update after which collectors without a call are asked what became of their frames: one
# may have died with its last push, which nobody would notice while pacing holds it back.
STALL_SECONDS = 5.0


class Ledger(Lifecycle):
    """The parts of a run, and the account of its frames and updates.

    Attributes:
        asked: frames that the run began with and that were asked for since.
        lost: of these those that are known not to come, or that the replay lost.
        frames_lost: acknowledged frames that a new process of the replay could not restore, over the run.
        updates_lost: updates that a new process of the learner could not restore, over the run.
        counts: the replay's, as far as they are known.
        updates: the learner's, as far as they are known.
    """

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; nothing is asked for yet."""
        self.replay, self.learner = Actor("replay"), Actor("learner")
        self.collectors = [Actor("collector", index, place) for index, place in enumerate(plan.places)]
        super().__init__([self.replay, self.learner, *self.collectors], plan.limits, now)
        self.plan = plan
        self.pacing = pacing
        self.asked, self.lost = plan.frames, 0
        self.counts = Counts(plan.frames)
        self.updates = plan.updates
        # Collectors with frames that a flush has not confirmed, and processes that are gone and not yet fenced.
        self._unflushed: set[int] = set()
        self._fencing: dict[Part, tuple[int, int]] = {}
        # Frames acknowledged of each process that is gone and fenced.
        self._gone: dict[Part, int] = {}
        # Updates of the learner's last state that was kept.
        self._kept_updates = plan.updates
        self.frames_lost = self.updates_lost = 0
        # Frames asked of a collector when its flush was.
        self._flushes: dict[int, int] = {}
        self._is_counting, self._is_stale, self._next_count = False, True, now
        self._moved = now
        # Updates in all that the learner was asked for, at most.
        self._updates_asked = 0
        # What collectors without a call wait for while there is something to ask for.
        self._held_by: str = COLLECTORS

    @abstractmethod
    def _settled(self, actor: Actor) -> None:
        """Take a collector whose flush was answered."""

    @property
    def waiting(self) -> int:
        """Collectors that have no process yet."""
        return sum(actor.phase is Phase.PLACING for actor in self.collectors)

    @property
    def is_starting(self) -> bool:
        """Whether a collector is being started."""
        return any(actor.phase in (Phase.PLACING, Phase.BUILDING) for actor in self.collectors)

    @property
    def is_ready(self) -> bool:
        """Whether replay and learner work."""
        return self.replay.is_up and self.learner.is_up

    @property
    def wanted(self) -> int:
        """Frames still to be asked for; not above zero if none."""
        return self.plan.total_frames - (self.asked - self.lost)

    @property
    def updates_owed(self) -> int:
        """Updates that the run would still make if no more frames came."""
        return max(0, self._updates_owed() - self.updates)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way that could change what a checkpoint holds."""
        is_training = self.learner.suspect is not None or any(
            call.method is Method.TRAIN for call in self.learner.calls.values()
        )
        waits = self._is_counting or self._is_stale
        return not (self._unflushed or self._fencing or is_training or waits)

    def _updates_allowed(self) -> int:
        return self.pacing.updates_allowed(self.counts.frames) if self.counts.is_warm else self.updates

    def _updates_owed(self) -> int:
        return self.pacing.updates_owed(self.counts.frames) if self.counts.is_warm else self.updates

    def _collect(self, actor: Actor, method: Method) -> None:
        self._call(actor, method)
        self.asked += actor.rollout_frames
        actor.requested += actor.rollout_frames
        self._unflushed.add(actor.index)

    def _call(self, actor: Actor | None, method: Method, amount: int = 0, of: Part | None = None) -> Call:
        call = super()._call(actor, method, amount, of)
        if actor is not None and actor.kind == "collector" and method in (Method.FLUSH, Method.CONNECT):
            self._flushes[call.id] = actor.requested
        return call

    def _lose(self, actor: Actor, frames: int) -> None:
        """Count frames that a collector was asked for and will not push; a flush counts them again."""
        actor.lost += frames
        self.lost += frames

    def _flushed(self, actor: Actor, call: Call, acknowledged: int) -> None:
        """Settle what was asked for before a flush: it is acknowledged by now, or lost."""
        self._cleared(actor, call)
        requested = self._flushes.pop(call.id)
        if call.id > actor.settled:
            # An earlier one that is answered later knows less: a replay that has lost rows since may have told it.
            actor.settled = call.id
            lost = requested - acknowledged
            self.lost += lost - actor.lost
            actor.lost = lost
        self._is_stale = True
        if actor.requested == requested and self._is_connected(actor):
            self._unflushed.discard(actor.index)
        self._settled(actor)

    def _cleared(self, actor: Actor, call: Call) -> None:
        """Forget calls made before one that was answered: a part works in order, so they have run, or never will."""
        # One that connects has to run, and a checkpoint waits for a state.
        kept = (Method.CONNECT, Method.STATE)
        earlier_calls = [id for id, made in actor.calls.items() if id < call.id and made.method not in kept]
        for earlier in earlier_calls:
            del actor.calls[earlier]
            del self._calls[earlier]
            self._flushes.pop(earlier, None)
        if actor.suspect is not None and actor.suspect < call.id:
            actor.suspect = None

    def _fence(self, actor: Actor) -> None:
        """Find out what a process that is gone has pushed, and have nothing more come of it."""
        self._unflushed.discard(actor.index)
        if actor.requested:
            self._fencing[actor.part] = actor.requested, actor.lost
            if self.replay.is_up:
                self._call(self.replay, Method.FENCE, of=actor.part)

    def _fenced(self, part: Part, acknowledged: int) -> None:
        requested, lost = self._fencing.pop(part)
        self.lost += requested - acknowledged - lost
        self._gone[part] = acknowledged
        self._is_stale = True

    # A replay or a learner that was replaced.

    def _replay_life(self) -> int:
        return self.replay.life if self.replay.phase is not Phase.PAUSING else -1

    def _reaches_replay(self, actor: Actor) -> bool:
        return self.replay.is_up and actor.replay_life == self.replay.life

    def _is_connected(self, actor: Actor) -> bool:
        """Return whether a part talks to the replay's newest process and has settled what it sent before."""
        is_asked = any(call.method is Method.CONNECT for call in actor.calls.values())
        return self._reaches_replay(actor) and not is_asked

    def _connect(self, actor: Actor) -> None:
        if actor.is_up and self.replay.is_up and actor.replay_life != self.replay.life:
            actor.replay_life = self.replay.life
            self._call(actor, Method.CONNECT)

    def _replay_went_down(self) -> None:
        self._is_counting, self._is_stale = False, True
        self._unflushed |= {actor.index for actor in self.collectors if actor.requested}

    def _replay_came_up(self, restored: Restored) -> int:
        """Take the counts of the replay's new process, and connect every part to it; return the frames it lost."""
        lost = max(0, self.counts.frames - restored.counts.frames)
        self.counts = restored.counts
        for part, acknowledged in self._gone.items():
            self._gone[part] = restored.stored.get(part, 0)
            self.lost += acknowledged - self._gone[part]
        if not restored.has_rows:
            # As for a run that is resumed without its rows: the warm-up is repeated, without updates.
            start = restored.counts.frames + self.plan.warmup_frames
            self.pacing = dataclasses.replace(self.pacing, start_frames=start, start_updates=self.updates)
        self.frames_lost += lost
        sentence = f"the replay is back from {restored.source}: {lost:,} frames are lost and collected again"
        cause = f"{lost} frames lost"
        if not restored.has_rows:
            sentence += "; it has no rows, so that the warm-up is repeated"
            cause += ", without rows"
        is_loss = lost > 0 or not restored.has_rows
        self._tell("restored", sentence if is_loss else "", part="the replay", source=restored.source, cause=cause)
        for part in self._fencing:
            self._call(self.replay, Method.FENCE, of=part)
        for actor in (self.learner, *self.collectors):
            self._connect(actor)
        return lost

    def _learner_came_up(self, updates: int) -> int:
        """Take the updates of the learner's new process; return those it lost."""
        lost = max(0, self.updates - updates)
        self.updates = self._kept_updates = updates
        self.updates_lost += lost
        sentence = f"the learner is back from its last state: {lost:,} updates are lost and made again"
        self._tell("restored", sentence if lost else "", part="the learner", cause=f"{lost} updates lost")
        return lost

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

    def _counted(self, counts: Counts) -> None:
        self._is_counting = False
        self._learn_counts(counts)

    def _learn_counts(self, counts: Counts) -> None:
        # Answers may come out of order; counts only grow.
        if counts.frames < self.counts.frames:
            return
        if counts.is_warm and not self.counts.is_warm:
            self._tell("warm", frames=counts.frames)
        if counts.frames > self.counts.frames:
            self._moved = self.now
        self.counts = counts

    def _note_waits(self, *, has_begun: bool, is_ending: bool) -> None:
        """Note what the learner, and collectors without a call, wait for from now on."""
        reason: str | None = FRAMES if self.counts.is_warm else WARM_UP
        if not self.learner.is_up:
            reason = START
        elif self.learner.calls:
            is_saving = all(call.method is Method.STATE for call in self.learner.calls.values())
            reason = SAVE if is_saving else None
        elif not self.replay.is_up:
            reason = REPLAY
        elif is_ending:
            reason = DONE
        self.waits.learner(reason, self.now)
        if not has_begun:
            self.waits.collectors_reason = START
        elif not self.replay.is_up:
            self.waits.collectors_reason = REPLAY
        else:
            self.waits.collectors_reason = DONE if is_ending or self.wanted <= 0 else self._held_by

    def take_waits(self, now: float, replay_seconds: tuple[float, float] = (0.0, 0.0)) -> dict[str, dict[str, float]]:
        """Return the share of the time since the last call that each side waited, by reason: see `Waits.take`."""
        idle = (max(actor.heard, actor.since) for actor in self.collectors if actor.is_up and not actor.calls)
        count = sum(not actor.is_closed for actor in self.collectors)
        return self.waits.take(idle, max(1, count), now, replay_seconds)
