"""Cost of control per rollout as the number of collectors grows.

Control runs here without Ray, and every call is answered at once, so that only control's work is timed.

    python benchmarks/control.py --json control.json --plot control.png
"""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable
from typing import Any

import harness

from mtray.cluster.control.free import Control
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import Answered, Call, Counts, Method, Place
from mtray.replay.pacing import Pacing

COLLECTORS = (8, 100, 1000)
FRAMES = 512
TASKS = frozenset({"a", "b"})
UNIT = "us of control per rollout"


class Driven:
    """A run in which every call is answered at once, in the order of the calls."""

    def __init__(self, collectors: int, partitioned: bool) -> None:
        """Start all collectors; ``partitioned``: each steps another task, so that none may run ahead."""
        places = [
            Place(task_frames={str(index): FRAMES} if partitioned else dict.fromkeys(TASKS, FRAMES // len(TASKS)))
            for index in range(collectors)
        ]
        pacing = Pacing(
            updates_per_step=0.25,
            step_frames=2,
            start_frames=1000,
            slack_frames=8 * FRAMES * collectors,
            round_frames=3 * FRAMES * collectors,
        )
        plan = Plan(places=places, total_frames=10**12, checkpoint_frames=10**12)
        self.control = Control(plan, pacing, 0.0)
        self.now = 0.0
        self.calls: collections.deque[Call] = collections.deque()
        self.frames = self.updates = self.rollouts = 0
        self.seconds = 0.0
        self._take(self.control.start())
        while any(not actor.is_up for actor in self.control.actors):
            self.answer()

    def _take(self, commands: list[Any]) -> None:
        self.calls.extend(command for command in commands if isinstance(command, Call))

    def answer(self) -> None:
        """Answer the oldest call, or advance to the next tick if there is none; only control's work is timed."""
        if not self.calls:
            self.now = self.control.next_tick() or self.now
            self._timed(lambda: self.control.tick(self.now))
            return
        call = self.calls.popleft()
        value: Any = None
        if call.method is Method.COLLECT:
            self.frames += FRAMES
            self.rollouts += 1
        elif call.method is Method.TRAIN:
            self.updates += min(call.amount, 40)
            value = self.updates
        elif call.method is Method.STATE:
            value = self.updates
        elif call.method is Method.COUNT:
            value = Counts(self.frames, True)
        # As with a thousand collectors that finish a rollout per second each.
        self.now += 1e-3
        self._timed(lambda: self.control.handle(Answered(call.id, value), self.now))
        tick = self.control.next_tick()
        if tick is not None and tick <= self.now:
            self._timed(lambda: self.control.tick(self.now))

    def _timed(self, turn: Callable[[], list[Any]]) -> None:
        begin = time.perf_counter()
        commands = turn()
        self.seconds += time.perf_counter() - begin
        self._take(commands)


def measure(collectors: int, partitioned: bool, seconds: float) -> float:
    """Return microseconds of control per rollout, after five rollouts of every collector."""
    run = Driven(collectors, partitioned)
    while run.rollouts < 5 * collectors:
        run.answer()
    run.rollouts, run.seconds = 0, 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        run.answer()
    return 1e6 * run.seconds / run.rollouts


def main() -> None:
    """Run the benchmark."""
    options = harness.make_parser(__doc__).parse_args()
    seconds, repeats = (0.5, 3) if options.quick else (3.0, 7)

    contenders = {
        f"{collectors} collectors{', a task each' if partitioned else ''}": functools.partial(
            measure, collectors, partitioned, seconds
        )
        for partitioned in (False, True)
        for collectors in COLLECTORS
    }
    measured = harness.interleave(contenders, repeats)
    rows = harness.compare(measured.rates, next(iter(contenders)), list(contenders), UNIT)
    harness.report(rows, options.json, measured.left_out)
    if options.plot:
        harness.plot(rows, options.plot, "Control's cost per rollout, ratio to 8 collectors")
    harness.finish(rows, measured.left_out)


if __name__ == "__main__":
    main()
