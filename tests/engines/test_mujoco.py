"""Engine mujoco: equal to dm_control bit for bit, for any number of copies, action repeat and time of resets."""

import numpy as np
import pytest

from mtray.engines import mujoco
from mtray.engines.base import StepArrays
from mtray.engines.dm_control import DmControlSim, task_names
from mtray.tasks.plan import Task

VIEWED = sorted(filter(mujoco.has_view, task_names()))
FIELDS = ("observation", "reward", "terminated", "truncated")


class Pair:
    """The same task in both engines, with equal actions and resets, compared at every step."""

    def __init__(self, name, copies, repeat=1):
        self.sims = [
            Task(name, engine, action_repeat=repeat).make_sim(copies, 7) for engine in ("mujoco", "dm_control")
        ]
        assert isinstance(self.sims[0], mujoco.MujocoSim)
        assert isinstance(self.sims[1], DmControlSim)
        self.spec = self.sims[1].spec
        self.outs = [StepArrays.empty(copies, self.spec) for _ in self.sims]
        self.random = np.random.default_rng(1)
        self.reset(np.ones(copies, bool))

    def reset(self, mask):
        for sim, out in zip(self.sims, self.outs, strict=True):
            sim.reset(mask, out.observation)
        self.compare("after a reset")

    def step(self, scale=1.0):
        low, high = np.array(self.spec.action_low), np.array(self.spec.action_high)
        action = self.random.uniform(low, high, (self.sims[0].num_envs, len(low))).astype(np.float32) * scale
        for sim, out in zip(self.sims, self.outs, strict=True):
            sim.step(action.astype(np.float32), out)
        self.compare("after a step")

    def compare(self, when):
        for field in FIELDS:
            ours, theirs = (getattr(out, field) for out in self.outs)
            assert np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)), (field, when)


@pytest.mark.parametrize("name", VIEWED)
def test_every_task_equals_dm_control_bit_for_bit(name):
    pair = Pair(name, copies=3, repeat=2)
    for step in range(40):
        # Beyond the bounds too: dm_control passes actions on as they are.
        pair.step(scale=1.0 if step % 4 else 1.5)
        if step in (15, 16):
            pair.reset(np.array([True, False, step == 16]))


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWED)
def test_every_task_equals_dm_control_over_whole_episodes(name):
    pair = Pair(name, copies=2)
    for _ in range(2):
        for step in range(1000):
            pair.step()
            assert pair.outs[0].truncated.all() == (step == 999)
        pair.reset(np.ones(2, bool))


def test_an_episode_that_ends_within_an_action_repeat_is_not_stepped_further():
    pair = Pair("pendulum-swingup", copies=3, repeat=3)
    for _ in range(100):
        pair.step()
    # The first copy restarts after 300 control steps; the others end at 1000, within an action repeat.
    pair.reset(np.array([True, False, False]))
    for _ in range(234):
        pair.step()
    assert pair.outs[0].truncated.tolist() == [False, True, True]


def test_the_same_seed_gives_the_same_episodes():
    pair = Pair("reacher-easy", copies=3)
    for sim in pair.sims:
        sim.seed(11)
    pair.reset(np.ones(3, bool))
    for _ in range(5):
        pair.step()


@pytest.mark.parametrize("name", ["lqr-lqr_2_1", "quadruped-escape"])
def test_tasks_without_a_view_use_the_reference_engine(name):
    sim = Task(name, "mujoco").make_sim(2)
    assert isinstance(sim, DmControlSim)
    assert sim.spec.engine == "mujoco"


def test_all_but_three_tasks_have_views():
    assert sorted(set(task_names()) - set(VIEWED)) == ["lqr-lqr_2_1", "lqr-lqr_6_2", "quadruped-escape"]


@pytest.mark.parametrize("repeat", [1, 3])
def test_a_copy_whose_physics_diverges_is_truncated_at_its_last_observation(repeat, caplog):
    pair = Pair("cheetah-run", copies=3, repeat=repeat)
    pair.step()
    # Twice, since MuJoCo counts a simulation's warnings from its reset on.
    for _ in range(2):
        before = pair.outs[0].observation.copy()
        pair.sims[0]._sims.bind("qvel")[1] = 1e12
        pair.sims[1]._envs[1].physics.data.qvel[:] = 1e12
        pair.step()
        ours = pair.outs[0]
        assert ours.truncated.tolist() == [False, True, False]
        for out in pair.outs:
            assert out.broken.tolist() == [False, True, False]
            out.broken[:] = False
        assert not ours.terminated.any()
        assert (ours.observation[1] == before[1]).all()
        assert ours.reward[1] == 0
        pair.reset(np.array([False, True, False]))
        pair.step()
        assert not pair.outs[0].truncated.any()
    assert "cheetah-run', copy 1" in caplog.text
    assert "mjWARN_BAD" in caplog.text
