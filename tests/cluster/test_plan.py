"""Pacing over the grid of settings: what is taken never stops both sides, what is not is refused with what would do."""

import dataclasses
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtray.cluster.control.free import Control
from mtray.cluster.control.lockstep import Lockstep
from mtray.cluster.control.plan import Plan
from mtray.cluster.control.protocol import Answered, Call, Counts, End, Method, Place, Restored
from mtray.cluster.plan import make_pacing
from mtray.config.learner import LearnerConfig
from mtray.config.presets import fill
from mtray.config.settings import CollectorConfig, Config
from mtray.errors import UsageError
from tests.makers import make_spec

# Ends of calls after which a run that is not over is taken to be stuck.
MOST = 20_000


class World:
    """Parts that do what they are asked for; whose call ends next is chosen at random."""

    def __init__(self, plan, pacing, kind, seed):
        self.plan, self.pacing = plan, pacing
        self.control = kind(plan, pacing, 0.0)
        self.random = random.Random(seed)
        self.frames = self.updates = 0
        self.stored = dict.fromkeys(range(len(plan.places)), 0)
        self.now = 0.0

    def play(self):
        """Return how the run ended."""
        calls, commands = [], self.control.start()
        for _ in range(MOST):
            for command in commands:
                if isinstance(command, End):
                    return command.reason
                if isinstance(command, Call):
                    calls.append(command)
            tick = self.control.next_tick()
            # Time passes between answers, but nobody hangs.
            if calls and (tick is None or tick > self.now + 1.0 or self.random.random() < 0.9):
                # A part works in order.
                parts = {call.part: call for call in reversed(calls)}
                call = self.random.choice(list(parts.values()))
                calls.remove(call)
                commands = self.control.handle(Answered(call.id, self.answer(call)), self.now)
            else:
                assert tick is not None, "nothing is under way and nothing is planned"
                self.now = max(self.now, tick)
                commands = self.control.tick(self.now)
        return f"stuck at {self.frames} frames and {self.updates} updates"

    def counts(self):
        return Counts(self.frames, self.frames >= self.pacing.start_frames)

    def answer(self, call):
        kind = None if call.part is None else call.part.kind
        match call.method:
            case Method.COLLECT | Method.PUSH:
                frames = sum(self.plan.places[call.part.place].task_frames.values())
                self.frames += frames
                self.stored[call.part.place] += frames
            case Method.FLUSH | Method.CONNECT if kind == "collector":
                return self.stored[call.part.place]
            case Method.BUILD | Method.CONNECT if kind == "replay":
                return Restored(self.counts())
            case Method.TRAIN:
                least = call.amount if isinstance(self.control, Lockstep) else 1
                self.updates += self.random.randint(least, call.amount)
                return self.updates
            case Method.COUNT | Method.SNAPSHOT:
                return self.counts()
            case _ if kind == "learner":
                return self.updates
        return None


@st.composite
def configs(draw, kind):
    most = draw(st.sampled_from([0.0, 0.01, 0.1, 1 / 3, 0.7, 1.0, 4.0, 50.0]))
    slack = draw(st.one_of(st.none(), st.integers(0, 300)))
    config = Config(
        tasks=("a", "b"),
        workers=draw(st.integers(1, 4)),
        envs_per_task=draw(st.integers(1, 3)),
        collector=CollectorConfig(rollout_steps=draw(st.integers(1, 8)), pushes_in_flight=draw(st.integers(1, 3))),
        learner=LearnerConfig(
            updates_per_step=most,
            least_updates_per_step=most if kind is Lockstep else most * draw(st.sampled_from([1.0, 0.5, 0.01])),
            warmup_steps=draw(st.integers(0, 40)),
            slack_steps=slack,
            n_step=1,
        ),
    )
    return fill(config, 2)


def specs_of(repeats):
    return [make_spec(name, action_repeat=repeat) for name, repeat in zip("ab", repeats, strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.sampled_from([Control, Lockstep]), st.integers(0))
def test_a_run_with_any_settings_that_are_taken_ends_with_all_it_was_to_make(data, repeats, kind, seed):
    config = data.draw(configs(kind))
    specs = specs_of(repeats)
    try:
        pacing = make_pacing(config, specs)
    except UsageError as error:
        # The figure that is named is taken, and one less is not.
        least = int(re.search(r"at least (\d+) is needed", str(error))[1])
        assert config.learner.slack_steps < least
        make_pacing(with_slack(config, least), specs)
        with pytest.raises(UsageError, match=f"--learner.slack-steps {least - 1}: .* at least {least} is needed"):
            make_pacing(with_slack(config, least - 1), specs)
        return
    steps = config.collector.rollout_steps * config.copies(2)
    place = Place(task_frames={spec.name: steps * spec.action_repeat for spec in specs})
    total = pacing.start_frames + min(2 * pacing.slack_frames, 20 * pacing.round_frames)
    plan = Plan(places=[place] * config.workers, total_frames=total, checkpoint_frames=10**9)
    world = World(plan, pacing, kind, seed)
    assert world.play() == "finished"
    assert world.frames >= total
    assert pacing.updates_owed(world.frames) <= world.updates <= pacing.updates_allowed(world.frames)


def with_slack(config, steps):

    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, slack_steps=steps))


@pytest.mark.parametrize("value", [1e-320, 1e-7, 2e6, float("inf"), float("nan")])
def test_a_ratio_at_which_one_side_would_wait_for_years_is_refused(value):
    with pytest.raises(UsageError, match=r"--learner.updates-per-step .*: must be"):
        LearnerConfig(updates_per_step=value)
