"""What a free-running run does about parts that come and go, tasks that fail, and calls that may have run."""

from __future__ import annotations

import dataclasses
from typing import Any

from mtray.cluster.control.parts.actor import Actor, Phase
from mtray.cluster.control.parts.lifecycle import HEALTHY_SECONDS
from mtray.cluster.control.parts.queues import FreeCollectors, Levels
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import Call, Command, Failed, Failure, Method, SetAside
from mtray.cluster.control.run import Run
from mtray.cluster.control.saving import FINISHED
from mtray.replay.pacing import Pacing

# Time after which a replay or learner that is to be replaced and finds no room is given a collector's, again and again:
# both need room on one node, and each collector may be on another.
ROOM_SECONDS = 15.0


class Recovery(Run):
    """Replacements, and the tasks that are set aside.

    Attributes:
        free: collectors that can be asked for work.
    """

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; `start` begins it."""
        super().__init__(plan, pacing, now)
        self.free = FreeCollectors(Levels() if _differ(plan) else None)
        # Places that could not be filled for long.
        self._without: set[int] = set()
        # Failures in a row of each task in each collector, and when the last one was: a machine that stands still for a
        # while has every collector's simulator fail at once.
        self._task_errors: dict[tuple[str, int], tuple[int, float]] = {}
        # Collectors' places that are not filled for now: the run is ending, or replay or learner are given the room.
        self._empty: list[Actor] = []
        self._is_making_room = False
        # Collectors that are started once the first has brought frames.
        self._later: list[Actor] = []

    def start(self) -> list[Command]:
        """Begin. On one machine the first collector has the cores until its first rollout, so that frames come early.

        Where collectors step different tasks all begin at once: those of the first alone would be ahead.
        """
        if not self.limits.shares_cluster and self.limits.first_seconds and not _differ(self.plan):
            self._later = self.collectors[1:]
            self._after(self.limits.first_seconds, self._start_later)
        for actor in self.actors:
            if actor not in self._later:
                self._start(actor)
        return self._take()

    def _start_later(self) -> None:
        later, self._later = self._later, []
        for actor in later:
            if self._ending is None:
                self._start(actor)
            else:
                self._empty.append(actor)

    def _came_up(self, actor: Actor, value: Any) -> None:
        self._moved = self.now
        if actor.kind == "collector":
            self._without.discard(actor.index)
            self.free.enter(actor)
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
        self.free.leave(actor)
        self._fence(actor)
        if not (actor.next_place or actor.place).tasks:
            # All that it stepped is set aside.
            return False
        if self._ending is not None:
            self._empty.append(actor)
        return self._ending is None

    def _start(self, actor: Actor) -> None:
        if actor.kind == "collector" and (not actor.tasks or actor.is_closed):
            return
        if actor.kind == "collector" and self._is_making_room:
            self._empty.append(actor)
            return
        super()._start(actor)
        if actor.kind != "collector" and actor.life and self.limits.shares_cluster:
            self._make_room(actor, actor.life)

    def _answered_start(self, actor: Actor, call: Call, value: Any) -> None:
        super()._answered_start(actor, call, value)
        if actor.kind != "collector" and self._is_making_room:
            self._is_making_room = False
            self._fill_empty()

    def _resume_after_loss(self) -> None:
        """Go on with a run that had made everything and has lost some of it."""
        if self._ending is not None and self._ending.reason == FINISHED:
            self._ending, self._is_final = None, False
            if self._stop is not None:
                # What is left is not made again.
                self._follow(self._stop)
        if self._ending is None:
            self._fill_empty()

    def _can_not_start(self, actor: Actor, text: str) -> None:
        minutes = self.limits.give_up_seconds / 60
        text = f"{actor.part.name} could not be started for {minutes:.0f} minutes: {text}"
        if not self._can_do_without(actor):
            self._end(text, "failed")
        elif actor.index not in self._without:
            self._without.add(actor.index)
            sentence = f"{text}; the run goes on without it until it starts"
            self._tell("without", sentence, part=actor.part.name, cause=text)

    def _can_do_without(self, actor: Actor) -> bool:
        """Return whether other collectors step all of a collector's tasks."""
        others = [other.tasks for other in self.collectors if other is not actor and other.is_up]
        return actor.kind == "collector" and actor.tasks <= frozenset().union(*others)

    # Room for a replay or a learner.

    def _fill_empty(self) -> None:
        empty, self._empty = self._empty, []
        for actor in empty:
            self._start(actor)

    def _make_room(self, actor: Actor, life: int) -> None:
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
            self._make_room(actor, life)

        self._after(ROOM_SECONDS, check)

    # What a part raised, and what may have run.

    def _raised(self, actor: Actor, call: Call, failure: Failed) -> None:
        super()._raised(actor, call, failure)
        if actor.kind == "collector" and actor.is_up:
            # It has not ended: what else it was asked for is flushed.
            self.free.put(actor)

    def _decide(self, actor: Actor, failure: Failed) -> None:
        if failure.kind is Failure.INPUT and self.plan.spread is not None and self._works_elsewhere(actor):
            # A node on which something is missing.
            self._die(actor, failure.text)
        elif failure.kind is Failure.INPUT:
            self._end(failure.text, "input")
        elif failure.kind is Failure.TASK:
            self._task_raised(actor, failure)
        elif actor.kind != "collector" or not any(other.has_worked or other.life for other in self.collectors):
            # What a part raises before any of its kind has worked, the next one would raise as well.
            self._end(f"{actor.part.name} failed: {failure.text}", "failed")
        else:
            self._die(actor, failure.text)

    def _works_elsewhere(self, actor: Actor) -> bool:
        if actor.kind != "collector":
            # It did, before it came to this node.
            return actor.life > 0
        return any(other.has_worked for other in self.collectors if other is not actor)

    def _task_raised(self, actor: Actor, failure: Failed) -> None:
        task = failure.task or ""
        if task not in self._stepped:
            self._end(failure.text, "input")
        elif not self._count_failure(actor, task, failure.text):
            self._die(actor, failure.text)

    def _rebuilt(self, actor: Actor, task: str, text: str) -> None:
        if task not in self._aside:
            sentence = f"{actor.part.name} built a simulator of {task!r} anew and goes on: {text}"
            self._tell("rebuilt", sentence, part=actor.part.name, task=task, cause=text)
            self._count_failure(actor, task, text)

    def _count_failure(self, actor: Actor, task: str, text: str) -> bool:
        """Set a task aside, or end the run, if it fails too often; return whether it was set aside."""
        place = task, actor.index
        count, last = self._task_errors.get(place, (0, self.now))
        count = 1 if self.now - last > HEALTHY_SECONDS else count + 1
        self._task_errors[place] = count, self.now
        if count <= self.plan.task_errors:
            return False
        if task not in self._stepped:
            self._end(text, "input")
            return False
        if self.plan.sets_aside and self._has_other(task):
            self._set_aside(task, text, count)
            return True
        self._end(text + (f" ({count} times in a row)" if count > 1 else ""), "failed")
        return False

    def _has_other(self, task: str) -> bool:
        return any(actor.tasks - {task} for actor in self.collectors)

    def _set_aside(self, task: str, text: str, count: int) -> None:
        """Go on without a task: its collectors are started anew without it, the learner keeps the rows there are."""
        self._aside[task] = text
        times = f"failed {count} times in a row" if count > 1 else "failed"
        self._tell("set_aside", f"task {task!r} {times} and the run goes on without it: {text}", part=task, cause=text)
        self._give(SetAside(task))
        step = self.plan.step_frames.get(task, 0)
        if 0 < step < self.pacing.step_frames:
            # As many updates as before per step of every task that is left. Nothing owed is forgotten.
            frames = self.counts.frames
            owed, allowed = self.pacing.updates_owed(frames), self.pacing.updates_allowed(frames)
            # What was asked of the learner may still be made.
            start_updates = min(max(self._updates_asked, self.updates, owed), allowed)
            start = {"start_frames": frames, "start_updates": start_updates} if self.counts.is_warm else {}
            self.pacing = dataclasses.replace(self.pacing, step_frames=self.pacing.step_frames - step, **start)
        for actor in self.collectors:
            if task in actor.tasks:
                rest = (actor.next_place or actor.place).without({task})
                if actor.phase is Phase.PAUSING:
                    actor.place = rest
                else:
                    # What it has under way has the task's frames still.
                    actor.next_place = rest
                    self._leave(actor, f"{task} is set aside")
            elif actor.next_place is not None and task in actor.next_place.tasks:
                actor.next_place = actor.next_place.without({task})

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


def _differ(plan: Plan) -> bool:
    """Return whether collectors step different tasks, now or once there are more."""
    places = plan.places if plan.spread is None else plan.spread(max(2, len(plan.places)), frozenset()).places
    return len({frozenset(place.tasks) for place in places}) > 1
