"""Collectors that come and go with the room there is, and nodes that are left before they go.

Who waits for room has no process and no part in the work: tasks are spread over the others. Tasks are spread anew some
seconds after somebody came or went, at most twice a minute, but at once where a task would be stepped by nobody. A
collector that is to step something else ends what it was asked for first, and is then built anew in its process.

On a node that will go soon, collectors end their calls, flush, and start elsewhere. Before replay or learner leave, the
run pauses and saves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from mtray.cluster.control.parts.actor import Actor, Phase
from mtray.cluster.control.plan import Plan, Spread
from mtray.cluster.control.protocol import Failed, Failure, Method, Part, Place
from mtray.cluster.control.recovery import Recovery
from mtray.cluster.control.saving import BROKEN_SAVES
from mtray.replay.pacing import Pacing, least_slack

# Time after which a collector that has no process waits for room.
ABSENT_SECONDS = 10.0
# For which starts may fail before others step what the collector was to step.
UNFIT_SECONDS = 30.0
# Time from a change to a new spread, and from one spread to the next where no task is without a collector.
SETTLE_SECONDS, SPREAD_SECONDS = 5.0, 30.0
# Least time after which a collector without a process is waited for no longer, if there is no room for it.
CLOSE_SECONDS = 60.0
# How long what is under way may take before the node that it is on is left.
LEAVE_SECONDS = 15.0


class Elastic(Recovery):
    """Recovery, and collectors that come and go."""

    def __init__(self, plan: Plan, pacing: Pacing, now: float) -> None:
        """Plan a run; `start` begins it."""
        super().__init__(plan, pacing, now)
        # Places with a process, or whose process was there a moment ago, but not those where every one fails. And those
        # that the last spread was made for.
        self._present = {actor.index for actor in self.collectors}
        self._spread_over = frozenset(self._present)
        self._next_spread = now
        self._is_spread_planned = False
        # Collectors that are not started, since they have nothing to step: all of it was set aside.
        self._vacant: set[int] = set()
        # Collectors that get no more work before they step something else, or leave.
        self._held: list[Actor] = []
        # Replay and learner that will leave once the run is saved; when it is, at the latest.
        self._moving: dict[Part, Actor] = {}
        self._is_move_saving = self._is_move_saved = False
        self._move_until = 0.0

    # Who is there.

    def _start(self, actor: Actor) -> None:
        super()._start(actor)
        if self.plan.spread is None or actor.kind != "collector" or actor.is_closed:
            return
        if not actor.tasks:
            self._vacate(actor)
        if actor.phase is not Phase.PLACING:
            return
        life = actor.life

        def check() -> None:
            if actor.life == life and actor.phase is Phase.PLACING:
                self._set_present(actor, is_present=False)

        self._after(ABSENT_SECONDS, check)

    def _placed(self, actor: Actor) -> None:
        if actor.kind == "collector" and not self._is_unfit(actor):
            self._set_present(actor, is_present=True)

    def _recovered(self, actor: Actor) -> None:
        super()._recovered(actor)
        if actor.kind == "collector":
            self._set_present(actor, is_present=True)

    def _die(self, actor: Actor, text: str) -> None:
        super()._die(actor, text)
        if actor.kind == "collector" and self._is_unfit(actor):
            self._set_present(actor, is_present=False)

    def _is_unfit(self, actor: Actor) -> bool:
        """Return whether a collector's processes have failed for some time, and none has worked since."""
        return actor.failing_since is not None and self.now - actor.failing_since >= UNFIT_SECONDS

    def _vacate(self, actor: Actor) -> None:
        """Have a collector that has nothing to step take its part of the other tasks."""
        self._vacant.add(actor.index)
        self._spread_over = frozenset()
        self._plan_spread(SETTLE_SECONDS)

    def _went_down(self, actor: Actor, text: str) -> bool:
        is_replaced = super()._went_down(actor, text)
        if self.plan.spread is not None and actor.kind == "collector" and not (actor.next_place or actor.place).tasks:
            self._vacate(actor)
        return is_replaced

    def _resume_after_loss(self) -> None:
        super()._resume_after_loss()
        if self._ending is None and self._present != self._spread_over:
            self._plan_spread(SETTLE_SECONDS)

    def _set_present(self, actor: Actor, *, is_present: bool) -> None:
        if self.plan.spread is None or (actor.index in self._present) == is_present:
            return
        (self._present.add if is_present else self._present.discard)(actor.index)
        self._plan_spread(SETTLE_SECONDS)

    def _plan_spread(self, seconds: float) -> None:
        if not self._is_spread_planned:
            self._is_spread_planned = True
            self._after(seconds, self._spread)

    def _tell_waiting(self, actor: Actor) -> None:
        # That others work and some wait for room is told once for all, with the spread.
        if actor.index not in self._present and self._present:
            actor.is_told = True
        super()._tell_waiting(actor)

    def _can_do_without(self, actor: Actor) -> bool:
        return super()._can_do_without(actor) or (
            self.plan.spread is not None and actor.kind == "collector" and bool(self._present - {actor.index})
        )

    # Tasks, spread.

    def _spread(self) -> None:
        self._is_spread_planned = False
        if self._ending is not None or not self._present or self._present == self._spread_over:
            return
        assert self.plan.spread is not None
        there = [self.collectors[index] for index in sorted(self._present)]
        wanted = {task for place in self.plan.places for task in place.tasks} - self._aside.keys()
        is_starving = not wanted <= {task for actor in there for task in (actor.next_place or actor.place).tasks}
        if self.now < self._next_spread and not is_starving:
            self._plan_spread(self._next_spread - self.now)
            return
        self._next_spread = self.now + SPREAD_SECONDS
        self._spread_over = frozenset(self._present)
        spread = self.plan.spread(len(there), self._aside.keys())
        for place, actor in zip(spread.places, there, strict=True):
            self._assign(actor, place)
        for actor in self.collectors:
            if actor.index not in self._present:
                # What it begins with, should it come.
                self._assign(actor, spread.places[actor.index % len(there)])
        self.free.forget()
        self._pace(spread)
        count = sum(not actor.is_closed for actor in self.collectors)
        self._tell("spread", collectors=len(there), waiting=count - len(there))

    def _pace(self, spread: Spread) -> None:
        """Let collectors be ahead as far as this many need."""
        pacing = self.pacing
        slack = max(spread.slack_frames, least_slack(pacing.least, pacing.step_frames, spread.round_frames))
        self.pacing = dataclasses.replace(pacing, round_frames=spread.round_frames, slack_frames=slack)
        self.free.unpark()

    def _assign(self, actor: Actor, place: Place) -> None:
        if place == (actor.next_place or actor.place):
            return
        if actor.phase in (Phase.PLACING, Phase.PAUSING):
            actor.place, actor.next_place = place, None
            if actor.index in self._vacant and place.tasks:
                self._vacant.discard(actor.index)
                self._start(actor)
        else:
            actor.next_place = place
            self._hold(actor)

    def _hold(self, actor: Actor) -> None:
        if actor not in self._held:
            self._held.append(actor)

    def _settle_held(self) -> None:
        """Build anew, or let leave, who has ended what it was asked for."""
        if not self._held:
            return
        held, self._held = self._held, []
        for actor in held:
            if not actor.is_held or actor.phase in (Phase.PLACING, Phase.PAUSING):
                continue
            if self._ending is not None:
                actor.next_place, actor.is_leaving = None, False
                if actor.is_up:
                    self.free.put(actor)
            elif not actor.is_up or actor.is_busy or actor.suspect is not None:
                self._held.append(actor)
            elif actor.next_place is not None and not actor.is_leaving:
                self.free.leave(actor)
                self._build_anew(actor, actor.next_place)
            elif actor.index in self._unflushed and self.replay.is_up:
                self._held.append(actor)
                self._call(actor, Method.FLUSH)
            else:
                self._leave(actor, "its node is drained")

    # Room.

    def _fit(self, count: int) -> None:
        """Have so many collectors, as far as those that run allow."""
        if self.plan.spread is None or self._ending is not None:
            return
        # One waits for room that may come.
        count = max(1, count)
        filled = [actor for actor in self.collectors if not actor.is_closed]
        # A process takes its core some time before it can say that it is there.
        limit = max(CLOSE_SECONDS, self.limits.start_seconds)
        waiting = [
            actor
            for actor in filled
            if actor.phase is Phase.PLACING and actor.index not in self._present and self.now - actor.since >= limit
        ]
        for actor in waiting[: max(0, len(filled) - count)]:
            actor.is_closed = True
            self._leave(actor, "there is no room for it")
        for actor in [actor for actor in self.collectors if actor.is_closed][: max(0, count - len(filled))]:
            actor.is_closed = False
            self._start(actor)
            filled.append(actor)
        while len(filled) < count:
            place = self.collectors[len(self.collectors) % len(self.plan.places)].place
            actor = Actor("collector", len(self.collectors), place)
            self.collectors.append(actor)
            self.actors.append(actor)
            filled.append(actor)
            self._start(actor)

    # Nodes that will go.

    def _drain(self, parts: Collection[Part]) -> None:
        """Leave the node that these are on."""
        for actor in [actor for actor in self.actors if actor.part in parts and not actor.is_leaving]:
            if self._ending is not None or actor.phase in (Phase.PLACING, Phase.PAUSING):
                continue
            if actor.kind == "collector":
                actor.is_leaving = True
                self._hold(actor)
                self._after(LEAVE_SECONDS, self._leaving_in_time(actor))
            elif actor.part not in self._moving:
                if not self._moving:
                    self._is_move_saving = self._is_move_saved = False
                    self._move_until = self.now + LEAVE_SECONDS
                    self._after(LEAVE_SECONDS, lambda: None)
                self._moving[actor.part] = actor
            self._tell("draining", f"{actor.part.name} leaves its node, which is drained", part=actor.part.name)

    def _leaving_in_time(self, actor: Actor) -> Any:
        life = actor.life

        def leave() -> None:
            if actor.life == life and actor.is_leaving:
                self._leave(actor, "its node is drained")

        return leave

    @property
    def is_paused(self) -> bool:
        """Whether nothing is asked for, since replay or learner will leave their node."""
        return bool(self._moving)

    def _saved(self) -> None:
        super()._saved()
        self._is_move_saved |= self._is_move_saving

    def _save_failed(self, failure: Failed) -> None:
        is_last = failure.kind is not Failure.PEER or self._broken_saves >= BROKEN_SAVES
        super()._save_failed(failure)
        # A disk that is full stays so.
        self._is_move_saved |= self._is_move_saving and is_last

    def _step_move(self) -> None:
        """Save, then end replay and learner on a node that is drained; they start elsewhere."""
        self._moving = {part: actor for part, actor in self._moving.items() if actor.part == part}
        if not self._moving or self._ending is not None:
            self._moving.clear()
            return
        if self._saving is not None:
            return
        # One that was broken off is made again.
        self._is_move_saving = False
        if not self._is_move_saved and self.has_made():
            # Where the other of the two is not up nothing can be saved: who left now would lose what it has.
            if self.is_ready and (self.is_idle or self.now >= self._move_until):
                self._is_move_saving = True
                self._save()
        else:
            moving, self._moving = self._moving, {}
            for actor in moving.values():
                self._leave(actor, "its node is drained")
