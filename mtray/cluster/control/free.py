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

from mtray.cluster.control.elastic import Elastic
from mtray.cluster.control.ledger import STALL_SECONDS
from mtray.cluster.control.parts.actor import Actor
from mtray.cluster.control.plan import CALLS, Plan
from mtray.cluster.control.protocol import Call, Method
from mtray.replay.pacing import Pacing
from mtray.replay.waiting import COLLECTORS, LEARNER

# Time between two of the learner's states that are kept: what is made after the last one is lost with its process.
KEEP_SECONDS = 20.0
# Updates of a call, at most: where pacing changes, those of two calls that are under way may still be made.
MOST_UPDATES = 500


class Control(Elastic):
    """A free-running run: collectors and learner work at once, each as far as pacing allows."""

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; `start` begins it."""
        super().__init__(plan, pacing, now)
        self._is_new = plan.frames == plan.updates == 0
        # The first state is kept as soon as there is one.
        self._next_keep = now

    # Asking.

    def _proceed(self) -> None:
        self._has_begun |= self.is_ready
        self._settle_held()
        self._step_move()
        is_asking = self._ending is None and not self.is_paused
        if is_asking and (self._has_begun or self._is_new) and self.replay.is_up:
            # Collectors go on with the weights they have where the learner is being replaced, and a new run's have none
            # before its first update: their actions are random.
            self._ask_collectors()
        if is_asking and self.is_ready:
            self._ask_learner()
            if self._saving is None and self._is_save_due():
                self._save()
            self._keep_state()
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
        if self.wanted > 0:
            self.free.unpark()
        while self.wanted > 0:
            actor = self.free.take()
            if actor is None:
                self._held_by = COLLECTORS
                return
            if self.asked - self.lost + actor.rollout_frames > allowed:
                self._held_by = LEARNER
                self.free.put(actor, first=True)
                return
            self._collect(actor, Method.COLLECT)
            self.free.put(actor)

    def _ask_learner(self) -> None:
        calls = [call for call in self.learner.calls.values() if call.method is Method.TRAIN]
        # Once all frames are there the run makes what it owes, and ends.
        allowed = self._updates_allowed() if self.wanted > 0 else self._updates_owed()
        asked = self.updates + sum(call.amount for call in calls)
        amount = min(allowed - asked, MOST_UPDATES)
        if amount > 0 and len(calls) < CALLS and self.learner.suspect is None:
            self._updates_asked = max(self._updates_asked, asked + amount)
            self._call(self.learner, Method.TRAIN, amount)

    def _keep_state(self) -> None:
        """Ask for the learner's state now and then: its next process would go on from it."""
        if self._saving is None and self.updates > self._kept_updates and self.now >= self._next_keep:
            self._next_keep = self.now + KEEP_SECONDS
            if self.learner.suspect is None:
                self._call(self.learner, Method.STATE)

    def _flush_idle(self) -> None:
        is_stalled = self.now - self._moved >= STALL_SECONDS
        if (
            not self.replay.is_up
            or not self._unflushed
            or (self._ending is None and not self.is_paused and self.wanted > 0 and not is_stalled)
        ):
            return
        if is_stalled:
            self._moved = self.now
        self.free.release()
        while (actor := self.free.take(idle_only=True)) is not None:
            if actor.index in self._unflushed:
                self._call(actor, Method.FLUSH)
            else:
                self.free.park(actor)

    def _comes_back(self) -> bool:
        assert self._ending is not None
        # A new run's frames are there before its learner is ready, which may be what has failed.
        return super()._comes_back() or (self._is_new and self.has_made() and self._ending.outcome == "done")

    def _finished_work(self, actor: Actor, call: Call) -> None:
        self._is_stale = True
        self.free.advance(actor)
        self._start_later()

    def _settled(self, actor: Actor) -> None:
        self.free.put(actor)
