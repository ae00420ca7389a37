"""Calls under way, timers on a clock that is given, and the commands that come of it."""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from mtray.cluster.control.parts.actor import Actor
from mtray.cluster.control.protocol import Call, Command, End, Method, Part, Tell
from mtray.replay.waiting import Waits


class Calls(ABC):
    """What was asked for and is not answered, and what is planned."""

    def __init__(self, now: float) -> None:
        """Begin with nothing."""
        self.now = now
        self._ids = itertools.count()
        # Calls under way, who was asked, and when.
        self._calls: dict[int, tuple[Call, Actor | None, float]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._out: list[Command] = []
        self.waits = Waits(now)

    @abstractmethod
    def _watch(self, actor: Actor) -> None:
        """Plan a deadline for a part's calls."""

    def _give(self, command: Command) -> None:
        self._out.append(command)

    def _tell(self, event: str, sentence: str = "", **fields: Any) -> None:
        self._give(Tell(event, fields, sentence))

    def _take(self) -> list[Command]:
        out, self._out = self._out, []
        # Nothing follows the end.
        for index, command in enumerate(out):
            if isinstance(command, End):
                return out[: index + 1]
        return out

    def _call(self, actor: Actor | None, method: Method, amount: int = 0, of: Part | None = None) -> Call:
        place = actor.place if actor is not None and actor.kind == "collector" and method is Method.BUILD else None
        call = Call(next(self._ids), actor.part if actor else None, method, amount, of, place)
        self._calls[call.id] = call, actor, self.now
        if actor is not None:
            if not actor.calls:
                if actor.kind == "collector" and actor.is_up:
                    self.waits.end(max(actor.heard, actor.since), self.now)
                actor.heard = self.now
            actor.calls[call.id] = call
            if not actor.is_watched:
                self._watch(actor)
        self._give(call)
        return call

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + seconds, next(self._ids), action))

    def next_tick(self) -> float | None:
        """When `Control.tick` has something to do; None if nothing is planned."""
        return self._timers[0][0] if self._timers else None

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
