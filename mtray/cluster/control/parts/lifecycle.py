"""How the processes of a run start, die, hang, and are replaced: the half of control that knows nothing of its work.

A place (`Actor`) is filled by one process after another. The first replacement is immediate; starts that fail back off,
doubling up to a minute; after a minute of health all is forgiven. A process that waits for room in a cluster has not
died. Each call has a deadline, counted from when the process was last heard of.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from mtray.cluster.control.parts.actor import Actor, Limits, Phase
from mtray.cluster.control.parts.calls import Calls
from mtray.cluster.control.protocol import Call, Failed, Failure, Kill, Kind, Method, Place, Start, Tell

# Time after which a call that did not reach its process, and does no harm when run twice, is made again.
RETRY_SECONDS = 1.0
# A call is stuck once it takes `Limits.stuck_seconds` longer than this many times the longest of its kind so far.
STUCK_TIMES = 10
# Longest pause between two starts that fail, and the health after which earlier failures are forgotten.
LONGEST_PAUSE_SECONDS = 60.0
HEALTHY_SECONDS = 60.0

# Running these twice does the same as running them once.
_REPEATABLE = {
    Method.HELLO,
    Method.BUILD,
    Method.CONNECT,
    Method.CUT,
    Method.FLUSH,
    Method.STATUS,
    Method.STATE,
    Method.COUNT,
    Method.FENCE,
    Method.SNAPSHOT,
}


class Lifecycle(Calls):
    """Places and their processes."""

    def __init__(self, actors: Iterable[Actor], limits: Limits, now: float) -> None:
        """Take the places, all of them empty."""
        super().__init__(now)
        self.actors = list(actors)
        self.limits = limits
        self.restarts = 0
        # The longest that a call of each kind has run, once one has.
        self._longest: dict[tuple[Kind, Method], float] = {}

    # What control decides.

    def _placed(self, actor: Actor) -> None:
        """Take that a process is there, not yet ready."""

    @abstractmethod
    def _came_up(self, actor: Actor, value: Any) -> None:
        """Put a process that became ready to work; ``value`` is its answer to BUILD."""

    @abstractmethod
    def _reaches_replay(self, actor: Actor) -> bool:
        """Return whether a part should be able to reach the replay."""

    @abstractmethod
    def _replay_life(self) -> int:
        """Return which process of the replay a part that is started now will talk to."""

    @abstractmethod
    def _went_down(self, actor: Actor, text: str) -> bool:
        """Settle what a process that died was asked for; whether its place is filled again."""

    def _recovered(self, actor: Actor) -> None:
        """Take that a process works whose place could not be filled before."""

    @abstractmethod
    def _can_not_start(self, actor: Actor, text: str) -> None:
        """Go on without a place that could not be filled for long, or end the run."""

    @abstractmethod
    def _raised(self, actor: Actor, call: Call, failure: Failed) -> None:
        """Decide on a call that raised."""

    @abstractmethod
    def _unreached(self, actor: Actor, call: Call, failure: Failed) -> None:
        """Find out whether a call that may have run did."""

    # Starting.

    def _start(self, actor: Actor) -> None:
        actor.phase, actor.since, actor.heard = Phase.PLACING, self.now, self.now
        actor.has_worked = actor.is_told = actor.is_excused = False
        actor.builds = 0
        actor.replay_life = self._replay_life()
        actor.suspect = None
        self._give(Start(actor.part))
        self._call(actor, Method.HELLO)

    def _answered_start(self, actor: Actor, call: Call, value: Any) -> None:
        if call.method is Method.HELLO and actor.phase is Phase.PLACING:
            actor.phase, actor.since = Phase.BUILDING, self.now
            self._tell("placed", part=actor.part.name, life=actor.life)
            self._placed(actor)
            self._call(actor, Method.BUILD)
        elif call.method is Method.BUILD and actor.phase is Phase.BUILDING:
            actor.phase, actor.since = Phase.UP, self.now
            if not actor.builds:
                self._tell("up", part=actor.part.name, life=actor.life)
            self._came_up(actor, value)

    def _build_anew(self, actor: Actor, place: Place) -> None:
        """Have a collector without a call step something else."""
        actor.place, actor.next_place = place, None
        actor.phase, actor.since = Phase.BUILDING, self.now
        actor.builds += 1
        self._call(actor, Method.BUILD, actor.builds)

    def _worked(self, actor: Actor) -> None:
        actor.has_worked = True
        if actor.failing_since is not None:
            actor.failing_since = None
            self._recovered(actor)

    # Deadlines.

    def _watch(self, actor: Actor) -> None:
        actor.is_watched = True
        # Not later than that, since a deadline comes nearer once calls of its kind are known to be short.
        life, deadline = actor.life, min(actor.heard + self._limit(actor), self.now + self.limits.stuck_seconds)

        def check() -> None:
            actor.is_watched = False
            if actor.life == life:
                self._find_lost_answers(actor)
            if not actor.calls or actor.is_watched:
                return
            # A new life has new deadlines; so has a process that was heard of since.
            if actor.life != life or self.now < actor.heard + self._limit(actor):
                self._watch(actor)
            else:
                self._overdue(actor)

        self._after(max(0.0, deadline - self.now), check)

    def _find_lost_answers(self, actor: Actor) -> None:
        """Ask again, or find out, where later calls were answered long since: a part works in order."""
        limit = self._limit(actor)
        for id in [id for id in actor.calls if id < actor.answered and self.now - self._calls[id][2] >= limit]:
            if id in self._calls:
                self._failed(Failed(id, Failure.UNAVAILABLE, "its answer has not come, though later ones have"))

    def _limit(self, actor: Actor) -> float:
        if not actor.is_up:
            return self.limits.start_seconds
        call = next(iter(actor.calls.values()), None)
        longest = None if call is None else self._longest.get((actor.kind, call.method))
        if longest is None:
            return self.limits.call_seconds
        # A step may reset every copy, as a build does.
        build = self._longest.get((actor.kind, Method.BUILD), 0.0) if actor.kind == "collector" else 0.0
        return min(self.limits.call_seconds, self.limits.stuck_seconds + STUCK_TIMES * longest + build)

    def _measure(self, actor: Actor, call: Call, asked: float) -> None:
        """Note how long a call has run that was answered now: not longer than since the answer before."""
        seconds, kind = self.now - max(asked, actor.heard), (actor.kind, call.method)
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))

    def _heard(self, actor: Actor) -> None:
        """Note that a process has answered; what waited for a replay that was silent has all its time again, once."""
        if actor.kind == "replay" and self.now - actor.heard >= self.limits.stuck_seconds / 2:
            for other in self.actors:
                if other.is_up and not other.is_excused:
                    other.heard, other.is_excused = self.now, True
        actor.heard, actor.is_excused = self.now, False

    def _overdue(self, actor: Actor) -> None:
        seconds = self.now - actor.heard
        if actor.phase is Phase.PLACING and self.limits.shares_cluster:
            self._tell_waiting(actor)
        elif actor.phase is Phase.PLACING:
            self._die(actor, f"its process did not come up within {seconds:.0f} s")
        elif actor.phase is Phase.BUILDING:
            self._die(actor, f"it was not ready within {seconds:.0f} s")
        else:
            method = next(iter(actor.calls.values())).method.value
            self._die(actor, f"it has not answered for {seconds:.0f} s (asked to {method})")

    def _tell_waiting(self, actor: Actor) -> None:
        text = f"no process for {self.now - actor.since:.0f} s: `ray status` tells whether the cluster has room"
        if not actor.is_told:
            actor.is_told = True
            self._tell("waiting", f"{actor.part.name} is waited for: {text}", part=actor.part.name, cause=text)
        if self.now - actor.since >= self.limits.give_up_seconds:
            self._can_not_start(actor, text)
        actor.heard = self.now
        self._watch(actor)

    # Failures.

    def _failed(self, failure: Failed) -> None:
        call, actor, _ = self._calls.pop(failure.call, (None, None, 0.0))
        if call is None or actor is None:
            return
        actor.calls.pop(call.id, None)
        if failure.kind is Failure.DIED:
            self._die(actor, failure.text)
        elif failure.kind not in (Failure.UNAVAILABLE, Failure.PEER):
            self._raised(actor, call, failure)
        elif self.now - actor.heard > self._limit(actor):
            self._die(actor, f"it could not be reached for {self.now - actor.heard:.0f} s: {failure.text}")
        else:
            if failure.kind is Failure.PEER and not self._reaches_replay(actor):
                # It has answered, and can do no more before it is connected to the replay's next process.
                actor.heard = self.now
            elif call.method in _REPEATABLE:
                self._again(actor, call)
            self._unreached(actor, call, failure)

    def _again(self, actor: Actor, call: Call) -> None:
        life, heard = actor.life, actor.heard
        actor.retries += 1

        def again() -> None:
            actor.retries -= 1
            if actor.life == life and actor.phase is not Phase.PAUSING:
                was_idle = not actor.calls
                self._call(actor, call.method, call.amount, call.of)
                # Not heard of yet: the deadline goes on.
                if was_idle and actor.heard == self.now:
                    actor.heard = heard

        self._after(RETRY_SECONDS, again)

    def _die(self, actor: Actor, text: str) -> None:
        """End a process and, if control says so, plan the next one of its place."""
        if actor.is_leaving:
            self._leave(actor, text)
            return
        part, place = actor.part, len(self._out) + 1
        self._forget(actor)
        is_healthy = actor.is_up and self.now - actor.since >= HEALTHY_SECONDS
        started, actor.phase = actor.since, Phase.PAUSING
        is_replaced = self._went_down(actor, text)
        self._empty_place(actor)
        actor.failures = 1 if is_healthy else actor.failures + 1
        pause = 0.0 if actor.failures == 1 else min(LONGEST_PAUSE_SECONDS, 2.0 ** (actor.failures - 2))
        then = f"replaced {f'in {pause:.0f} s' if pause else 'now'}" if is_replaced else "not replaced"
        fields = {"part": part.name, "life": part.life, "cause": text}
        # Told before what came of it, among which may be the run's end.
        self._out.insert(place, Tell("death", fields, f"{part.name} died and is {then}: {text}"))
        if not is_replaced:
            return
        if not actor.has_worked and actor.failing_since is None:
            actor.failing_since = started
        self.restarts += 1
        if actor.failing_since is not None and self.now - actor.failing_since >= self.limits.give_up_seconds:
            self._can_not_start(actor, text)
        self._tell("replacement", part=actor.part.name, life=actor.life, pause_seconds=pause)
        if not pause:
            self._start(actor)
            return
        life = actor.life

        def start() -> None:
            # It may have been started meanwhile, with other tasks.
            if actor.life == life and actor.phase is Phase.PAUSING:
                self._start(actor)

        self._after(pause, start)

    def _leave(self, actor: Actor, text: str) -> None:
        """End a process that is not wanted where it is, which is no death, and start the next one of its place."""
        self._forget(actor)
        self._tell("left", part=actor.part.name, life=actor.life, cause=text)
        actor.phase, actor.is_leaving = Phase.PAUSING, False
        is_replaced = self._went_down(actor, text)
        self._empty_place(actor)
        if is_replaced:
            self._start(actor)

    def _forget(self, actor: Actor) -> None:
        for call in actor.calls:
            self._calls.pop(call, None)
        actor.calls.clear()
        self._give(Kill(actor.part))

    def _empty_place(self, actor: Actor) -> None:
        actor.life += 1
        actor.requested = actor.lost = 0
        if actor.next_place is not None:
            actor.place, actor.next_place = actor.next_place, None
