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

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from mtray.cluster.control.actor import Actor, Phase
from mtray.cluster.control.ledger import STALL_SECONDS
from mtray.cluster.control.levels import Levels
from mtray.cluster.control.lifecycle import HEALTHY_SECONDS
from mtray.cluster.control.plan import CALLS, Plan
from mtray.cluster.control.protocol import Call, Failed, Failure, Method, SetAside
from mtray.cluster.control.run import FINISHED, Run
from mtray.replay.pacing import Pacing
from mtray.replay.waiting import COLLECTORS, LEARNER

# Time between two of the learner's states that are kept: what is made after the last one is lost with its process.
KEEP_SECONDS = 20.0
# Time after which a replay or learner that is to be replaced and finds no room is given a collector's, and how often.
ROOM_SECONDS, MADE_ROOMS = 15.0, 2


class Control(Run):
    """A free-running run: collectors and learner work at once, each as far as pacing allows."""

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; `start` begins it."""
        super().__init__(plan, pacing, now)
        # Collectors with no call under way, and with one, in the order in which they came free. An entry that no
        # longer holds is passed over.
        self._free: tuple[deque[tuple[Actor, int]], ...] = (deque(), deque())
        self._levels = Levels() if len({place.tasks for place in plan.places}) > 1 else None
        # Those with nothing to do and nothing to flush, until there is something to ask for again.
        self._parked: list[Actor] = []
        # Places that could not be filled for long.
        self._without: set[int] = set()
        self._task_errors: dict[str, tuple[int, float]] = {}
        self._next_keep = now + KEEP_SECONDS
        # Collectors' places that are not filled for now: the run is ending, or replay or learner are given the room.
        self._empty: list[Actor] = []
        self._is_making_room = False
        # What a collector that is ended steps in its next life.
        self._restarts_with: dict[int, Mapping[str, int]] = {}

    # Asking.

    def _proceed(self) -> None:
        self._has_begun |= self.is_ready
        if self._ending is None and self._has_begun and self.replay.is_up:
            # Collectors go on with the weights they have where the learner is being replaced.
            self._ask_collectors()
        if self._ending is None and self.is_ready:
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
        if self.wanted > 0 and self._parked:
            parked, self._parked = self._parked, []
            self._release(parked)
        while self.wanted > 0:
            actor = self._next_free()
            if actor is None:
                self._held_by = COLLECTORS
                return
            if self.asked - self.lost + actor.rollout_frames > allowed:
                self._held_by = LEARNER
                self._put_free(actor, first=True)
                return
            self._collect(actor, Method.COLLECT)
            self._put_free(actor)

    def _ask_learner(self) -> None:
        calls = [call for call in self.learner.calls.values() if call.method is Method.TRAIN]
        owed = self._updates_allowed() - self.updates - sum(call.amount for call in calls)
        if owed > 0 and len(calls) < CALLS and self.learner.suspect is None:
            self._call(self.learner, Method.TRAIN, owed)

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
            or (self._ending is None and self.wanted > 0 and not is_stalled)
        ):
            return
        if is_stalled:
            self._moved = self.now
        if self._levels is not None:
            self._release(self._levels.release())
        while (actor := self._next_free(idle_only=True)) is not None:
            if actor.index in self._unflushed:
                self._call(actor, Method.FLUSH)
            else:
                self._parked.append(actor)

    # Who is free.

    def _finished_work(self, actor: Actor, call: Call) -> None:
        self._is_stale = True
        if self._levels is not None:
            self._release(self._levels.put(actor, self._levels.of(actor) + 1))
        self._put_free(actor)

    def _settled(self, actor: Actor) -> None:
        self._put_free(actor)

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

    def _came_up(self, actor: Actor, value: Any) -> None:
        self._moved = self.now
        if actor.kind == "collector":
            self._without.discard(actor.index)
            if self._levels is not None:
                # It goes on beside the others, not from where its place was left.
                self._release(self._levels.put(actor, self._levels.lowest))
            self._put_free(actor)
        elif actor.life:
            took_over = self._replay_came_up if actor.kind == "replay" else self._learner_came_up
            if took_over(value):
                self._resume_after_loss()
        self._connect(actor)

    def _went_down(self, actor: Actor, text: str) -> bool:
        if actor.kind == "learner":
            self._break_off_save(Method.STATE)
            return True
        if actor.kind == "replay":
            self._break_off_save(Method.SNAPSHOT)
            self._replay_went_down()
            return True
        if self._levels is not None:
            self._release(self._levels.drop(actor))
        self._fence(actor)
        actor.task_frames = self._restarts_with.pop(actor.index, actor.task_frames)
        if not actor.task_frames:
            # All that it stepped is set aside.
            return False
        if self._ending is not None:
            self._empty.append(actor)
        return self._ending is None

    def _start(self, actor: Actor) -> None:
        if actor.kind == "collector" and not actor.task_frames:
            return
        if actor.kind == "collector" and self._is_making_room:
            self._empty.append(actor)
            return
        super()._start(actor)
        if actor.kind != "collector" and actor.life and self.limits.shares_cluster:
            self._make_room(actor, actor.life, MADE_ROOMS)

    def _answered_start(self, actor: Actor, call: Call, value: Any) -> None:
        super()._answered_start(actor, call, value)
        if actor.kind != "collector" and self._is_making_room:
            self._is_making_room = False
            self._fill_empty()

    def _fill_empty(self) -> None:
        empty, self._empty = self._empty, []
        for actor in empty:
            self._start(actor)

    def _make_room(self, actor: Actor, life: int, times: int) -> None:
        """Give a collector's room to a replay or learner that finds none, since nothing goes on without it."""

        def check() -> None:
            if actor.life != life or actor.phase is not Phase.PLACING:
                return
            self._is_making_room = True
            # Collectors that wait came first, and would take the room.
            waiting = [other for other in self.collectors if other.phase is Phase.PLACING]
            placed = [other for other in self.collectors if other.phase in (Phase.BUILDING, Phase.UP)]
            for other in waiting + placed[-1:]:
                self._die(other, f"its room is given to {actor.part.name}")
            if times > 1:
                self._make_room(actor, life, times - 1)

        self._after(ROOM_SECONDS, check)

    def _resume_after_loss(self) -> None:
        """Go on with a run that had made everything and has lost some of it."""
        if self._ending is not None and self._ending.reason == FINISHED:
            self._ending, self._is_final = None, False
        if self._ending is None:
            self._fill_empty()

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
        self._decide(actor, failure)
        if actor.kind == "collector" and actor.is_up:
            # It has not ended: what else it was asked for is flushed.
            self._put_free(actor)

    def _decide(self, actor: Actor, failure: Failed) -> None:
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
        if task not in self._stepped:
            self._end(failure.text, "input")
        elif count > self.plan.task_errors and self.plan.sets_aside and self._has_other(task):
            self._set_aside(task, failure.text)
        elif count > self.plan.task_errors:
            self._end(failure.text + (f" ({count} times in a row)" if count > 1 else ""), "failed")
        else:
            self._die(actor, failure.text)

    def _has_other(self, task: str) -> bool:
        return any(actor.tasks - {task} for actor in self.collectors)

    def _set_aside(self, task: str, text: str) -> None:
        """Go on without a task: its collectors are started anew without it, the learner keeps the rows there are."""
        self._aside[task] = text
        self._tell("set_aside", warning=True, part=task, cause=text)
        self._give(SetAside(task))
        step = self.plan.step_frames.get(task, 0)
        if 0 < step < self.pacing.step_frames:
            # As many updates as before per step of every task that is left. Nothing owed is forgotten.
            frames, owed = self.counts.frames, self.pacing.updates_allowed(self.counts.frames)
            start = {"start_frames": frames, "start_updates": owed} if self.counts.is_warm else {}
            self.pacing = dataclasses.replace(self.pacing, step_frames=self.pacing.step_frames - step, **start)
        for actor in self.collectors:
            if task in actor.tasks:
                rest = {name: count for name, count in actor.task_frames.items() if name != task}
                if actor.phase is Phase.PAUSING:
                    actor.task_frames = rest
                else:
                    # What it has under way has the task's frames still.
                    self._restarts_with[actor.index] = rest
                    self._die(actor, f"{task} is set aside")

    def _unreached(self, actor: Actor, call: Call, failure: Failed) -> None:
        self._tell("unreached", part=actor.part.name, call=call.method.value, cause=failure.text)
        if failure.kind is Failure.PEER:
            # Whoever could not be reached is probably the replay.
            self._is_stale, self._next_count = True, self.now
        method = {Method.COLLECT: Method.FLUSH, Method.TRAIN: Method.STATUS}.get(call.method)
        if method is None:
            return
        was_suspect, actor.suspect = actor.suspect is not None, max(call.id, actor.suspect or 0)
        waits = False
        if failure.kind is Failure.PEER:
            # It says the same, and the part may talk to a process of the replay that is gone.
            method = Method.CONNECT
            # A collector that does not reach the replay is connected to its next process, which settles the call.
            waits = actor.kind == "collector" and not self._reaches_replay(actor)
        if not was_suspect and not waits:
            self._again(actor, Call(-1, actor.part, method))
