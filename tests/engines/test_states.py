"""States of engines mujoco and dm_control: a simulator that loads one goes on bit for bit as the one that gave it."""

import numpy as np
import pytest

from mtray.engines import states
from mtray.engines.base import StepArrays
from mtray.engines.dm_control import task_names
from mtray.tasks.plan import Task
from tests.engines.test_mujoco import FIELDS

COPIES = 2


class Walk:
    """A simulator that is stepped as a host steps it, with actions from a stream that all walks share."""

    def __init__(self, name, engine, seed, repeat):
        self.sim = Task(name, engine, action_repeat=repeat).make_sim(COPIES, seed)
        self.out = StepArrays.empty(COPIES, self.sim.spec)
        self.reset(np.ones(COPIES, bool))

    def reset(self, mask):
        self.sim.reset(mask, self.out.observation)

    def step(self, random):
        low, high = np.array(self.sim.spec.action_low), np.array(self.sim.spec.action_high)
        self.sim.step(random.uniform(low, high, (COPIES, len(low))).astype(np.float32), self.out)
        seen = [getattr(self.out, field).tobytes() for field in FIELDS]
        ended = self.out.terminated | self.out.truncated
        if ended.any():
            self.reset(ended)
        return [*seen, self.out.observation.tobytes()], ended


def assert_goes_on(name, engine, before, after, repeat=2, early=()):
    """Compare two walks from a state on: over ``after`` steps, with a reset of one copy and then of all."""
    one = Walk(name, engine, 3, repeat)
    random, ends = np.random.default_rng(1), 0
    for step in range(before):
        ends += one.step(random)[1].sum()
        if step in early:
            one.reset(np.array([True, False]))
    state = states.from_bytes(states.to_bytes(one.sim.state()))
    other = Walk(name, engine, 4, repeat)
    other.sim.load_state(state)
    for step in range(after):
        seeds = [np.random.default_rng([2, step]) for _ in range(2)]
        assert one.step(seeds[0])[0] == other.step(seeds[1])[0], (name, step)
        if step in (after // 2, after - 5):
            for walk in (one, other):
                walk.reset(np.array([True, step == after - 5]))
            assert one.out.observation.tobytes() == other.out.observation.tobytes()
    one.sim.close()
    other.sim.close()
    return ends


# One that writes its model at resets, and one with objects, always; all others with the marker.
QUICK = {"reacher-easy", "manipulator-bring_ball"}
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(task_names())]


@pytest.mark.parametrize("engine", ["mujoco", "dm_control"])
@pytest.mark.parametrize("name", ALL)
def test_every_task_goes_on_from_a_state_bit_for_bit(name, engine):
    # The state has one copy right after a reset and one in the middle of its episode.
    assert_goes_on(name, engine, before=25, after=30, early=(24,))


@pytest.mark.parametrize("engine", ["mujoco", "dm_control"])
@pytest.mark.parametrize("name", ["cartpole-swingup", "reacher-easy", "manipulator-bring_ball"])
def test_the_state_knows_when_the_episode_ends(name, engine):
    assert assert_goes_on(name, engine, before=1020, after=1000, repeat=1, early=(9,)) > 0
