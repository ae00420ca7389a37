"""Control driven by hand: answer this call, fail that one, let time pass."""

import math

from mtray.cluster.control.free import Control
from mtray.cluster.control.parts.actor import Limits
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import (
    Answered,
    Call,
    Counts,
    End,
    Failed,
    Failure,
    Kill,
    Method,
    Part,
    Place,
    SetAside,
    Start,
    Tell,
)
from mtray.replay.pacing import Pacing

REPLAY, LEARNER = Part("replay"), Part("learner")


def collector(place=0, life=0):
    return Part("collector", place, life)


def counts(frames, warm=True):
    return Counts(frames, warm)


class Script:
    """A run of collectors that bring 10 frames a rollout each; commands are kept until a test looks at them."""

    def __init__(
        self,
        *,
        tasks=({"a"},),
        total=100,
        checkpoint=10**9,
        checkpoint_seconds=math.inf,
        ratio=0.0,
        least=None,
        warmup=0,
        slack=1000,
        frames=0,
        sets_aside=False,
        kind=Control,
        spread=None,
        **limits,
    ):
        # All collectors start at once, where nothing else is asked for.
        limits = {"call_seconds": 1e6, "stuck_seconds": 1e6, "first_seconds": 0.0, **limits}
        places = [Place(task_frames={task: 10 // len(each) for task in sorted(each)}) for each in tasks]
        pacing = Pacing(
            updates_per_step=ratio,
            step_frames=len(set().union(*tasks)),
            start_frames=warmup,
            slack_frames=slack,
            round_frames=30,
            least_updates_per_step=least,
        )
        plan = Plan(
            places=places,
            total_frames=total,
            checkpoint_frames=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            frames=frames,
            warmup_frames=warmup,
            sets_aside=sets_aside,
            step_frames=dict.fromkeys("ab", 1),
            spread=spread,
            limits=Limits(**limits),
        )
        self.now = 0.0
        self.control = kind(plan, pacing, 0.0)
        self.open: dict[int, Call] = {}
        self.started, self.killed, self.told, self.aside = [], [], [], []
        self.end = None
        self._take(self.control.start())

    def _take(self, commands):
        for command in commands:
            match command:
                case Call():
                    self.open[command.id] = command
                case Start():
                    self.started.append((self.now, command.part))
                case Kill():
                    self.killed.append(command.part)
                    self.open = {id: call for id, call in self.open.items() if call.part != command.part}
                case SetAside():
                    self.aside.append(command.task)
                case Tell():
                    self.told.append(command)
                case End():
                    assert self.end is None
                    self.end = command

    def find(self, method, part=None):
        """The oldest open call of a kind; None if there is none."""
        found = [c for c in self.open.values() if c.method is method and part in (None, c.part)]
        return found[0] if found else None

    def answer(self, method, value=None, part=None, call=None):
        """Answer the oldest open call of a kind, or this one; return it."""
        call = call or self.find(method, part)
        assert call is not None, f"nobody was asked to {method.value}"
        self.open.pop(call.id, None)
        if value is None and method in (Method.STATE, Method.STATUS):
            value = self.control.updates
        self._take(self.control.handle(Answered(call.id, value), self.now))
        return call

    def fail(self, method, kind=Failure.UNAVAILABLE, part=None, text="it failed", task=None):
        call = self.find(method, part)
        assert call is not None, f"nobody was asked to {method.value}"
        del self.open[call.id]
        self._take(self.control.handle(Failed(call.id, kind, text, task), self.now))
        return call

    def event(self, event):
        self._take(self.control.handle(event, self.now))

    def wait(self, seconds):
        """Let time pass, with all that is planned in it."""
        until = self.now + seconds
        while (tick := self.control.next_tick()) is not None and tick <= until:
            self.now = max(self.now, tick)
            self._take(self.control.tick(self.now))
        self.now = until

    def up(self, *parts):
        """Bring parts up."""
        for part in parts:
            self.answer(Method.HELLO, part=part)
            self.answer(Method.BUILD, part=part)

    def all_up(self):
        self.up(REPLAY, LEARNER, *(collector(i) for i in range(len(self.control.collectors))))
        return self

    def events(self):
        return [told.event for told in self.told]
