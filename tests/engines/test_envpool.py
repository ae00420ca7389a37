"""Engine envpool against the reference: the same interface, episode rules and distributions.

Two engines agree on a task if, under a uniformly random policy, the means over an episode's first steps of every
observation entry and of the reward differ by less than five standard errors (copies are independent samples), or by
less than a hundredth of the entry's standard deviation.
"""

import numpy as np
import pytest

pytest.importorskip("envpool")

from mtray.engines import envpool as envpool_engine
from mtray.engines.dm_control import task_names
from mtray.tasks.plan import Task
from tests.makers import started

COPIES, STEPS = 48, 40
QUICK = ["cartpole-swingup", "cheetah-run", "humanoid-walk"]
SUITE = sorted(set(envpool_engine.task_names()) & set(task_names()))


def sim_of(engine, name, copies, seed=0):
    return Task(name, engine).make_sim(copies, seed)


def random_means(engine, name, copies=COPIES, steps=STEPS):
    """Return each copy's mean observation and reward over the first steps of random actions, [copies, obs + 1]."""
    sim = sim_of(engine, name, copies, seed=17)
    out = started(sim)
    low, high = (np.clip(bound, -1, 1) for bound in (sim.spec.action_low, sim.spec.action_high))
    random = np.random.default_rng(3)
    total = np.zeros((copies, sim.spec.observation_size + 1))
    for _ in range(steps):
        sim.step(random.uniform(low, high, (copies, sim.spec.action_size)).astype(np.float32), out)
        total[:, :-1] += out.observation
        total[:, -1] += out.reward
    sim.close()
    return total / steps


def agree(name, **sizes):
    ours, theirs = (random_means(engine, name, **sizes) for engine in ("envpool", "dm_control"))
    error = np.sqrt(ours.var(0, ddof=1) / len(ours) + theirs.var(0, ddof=1) / len(theirs))
    difference = np.abs(ours.mean(0) - theirs.mean(0))
    spread = np.concatenate([ours, theirs]).std(0)
    return difference <= np.maximum(5 * error, 0.01 * spread + 1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "cheetah-run" else pytest.mark.slow) for name in SUITE]
)
def test_distributions_agree_with_dm_control(name):
    good = agree(name)
    assert good.all(), np.flatnonzero(~good)


def test_the_comparison_can_fail():
    ours, theirs = random_means("envpool", "walker-walk"), random_means("dm_control", "walker-run")
    assert ours.shape == theirs.shape
    assert abs(ours[:, -1].mean() - theirs[:, -1].mean()) > 5 * theirs[:, -1].std() / np.sqrt(COPIES)


@pytest.mark.parametrize("name", QUICK)
def test_spec_is_dm_controls(name):
    ours, theirs = sim_of("envpool", name, 1).spec, sim_of("dm_control", name, 1).spec
    for field in ("name", "observation", "action_low", "action_high", "horizon", "time_step_seconds"):
        assert getattr(ours, field) == getattr(theirs, field)


@pytest.mark.parametrize("name", ["cartpole-balance", "reacher-easy"])
def test_an_episode_is_truncated_at_the_horizon_and_a_reset_starts_another(name):
    sim = sim_of("envpool", name, 3)
    out = started(sim)
    action = np.zeros((3, sim.spec.action_size), np.float32)
    for step in range(1, 1001):
        sim.step(action, out)
        assert out.truncated.tolist() == [step == 1000] * 3
        assert not out.terminated.any()
    last = out.observation.copy()
    sim.reset(np.array([True, False, True]), out.observation)
    assert np.array_equal(out.observation[1], last[1])
    assert not np.array_equal(out.observation[0], last[0])
    sim.reset(np.array([False, True, False]), out.observation)
    sim.step(action, out)
    assert not out.truncated.any()


def test_each_copy_takes_its_action():
    sim = sim_of("envpool", "walker-walk", 4)
    out = started(sim)
    action = np.zeros((4, 6), np.float32)
    action[2] = 1.0
    before = out.observation.copy()
    for _ in range(3):
        sim.step(action, out)
    moved = np.abs(out.observation - before).sum(1)
    assert np.argmax(moved) == 2


def test_same_seed_same_episode():
    states = []
    for seed in (1, 1, 2):
        sim = sim_of("envpool", "cartpole-swingup", 2, seed)
        states.append(started(sim).observation)
        sim.close()
    assert np.array_equal(states[0], states[1])
    assert not np.array_equal(states[0], states[2])


def test_a_repeated_action_equals_single_steps_with_summed_rewards():
    once, twice = (
        sim_of("envpool", "walker-walk", 3, seed=2),
        Task("walker-walk", "envpool", action_repeat=2).make_sim(3, 2),
    )
    single, double = started(once), started(twice)
    random = np.random.default_rng(0)
    for _ in range(20):
        action = random.uniform(-1, 1, (3, 6)).astype(np.float32)
        reward = np.zeros(3, np.float32)
        for _ in range(2):
            once.step(action, single)
            reward += single.reward
        twice.step(action, double)
        assert np.array_equal(single.observation, double.observation)
        assert np.array_equal(reward, double.reward)


def test_an_episode_that_ends_within_an_action_repeat_is_not_stepped_further():
    sim = Task("cartpole-balance", "envpool", action_repeat=3).make_sim(2)
    out = started(sim)
    action = np.zeros((2, 1), np.float32)
    for step in range(1, 335):
        # The second copy restarts after a hundred steps, so only the first ends here.
        if step == 101:
            sim.reset(np.array([False, True]), out.observation)
        sim.step(action, out)
        assert out.truncated.tolist() == [step == 334, False]


@pytest.mark.parametrize(
    ("name", "steps"), [("Pendulum-v1", 200), ("HalfCheetah-v5", 1000), ("metaworld-drawer-open", 500)]
)
def test_other_tasks_by_name_end_at_their_horizon(name, steps):
    sim = Task(name, "envpool", action_repeat=2).make_sim(2, seed=1)
    # Tasks outside the suite ignore the action repeat.
    assert (sim.spec.horizon, sim.spec.action_repeat) == (steps, 1)
    out = started(sim)
    first = out.observation.copy()
    low, high = np.array(sim.spec.action_low), np.array(sim.spec.action_high)
    random = np.random.default_rng(0)
    for step in range(1, steps + 1):
        sim.step(random.uniform(low, high, (2, len(low))).astype(np.float32), out)
        assert out.truncated.tolist() == [step == steps] * 2
        assert np.isfinite(out.observation).all()
        assert np.isfinite(out.reward).all()
    assert not np.array_equal(out.observation, first)
    assert not np.array_equal(out.observation[0], out.observation[1])
    last = out.observation.copy()
    sim.reset(np.array([True, False]), out.observation)
    assert np.array_equal(out.observation[1], last[1])
    assert not np.array_equal(out.observation[0], last[0])


def test_a_hopper_that_falls_is_terminated_not_truncated():
    sim = sim_of("envpool", "Hopper-v5", 4)
    out = started(sim)
    for _ in range(200):
        sim.step(np.ones((4, 3), np.float32), out)
        if out.terminated.any():
            break
    assert out.terminated.any()
    assert not out.truncated.any()


def test_the_sets_of_other_tasks():
    sets = envpool_engine.task_sets()
    assert len(sets["metaworld"]) == 50
    assert {"metaworld-reach", "metaworld-button-press-topdown-wall"} <= set(sets["metaworld"])
    assert "Ant-v5" in sets["gymnasium"]
    for name in sets["gymnasium"]:
        assert envpool_engine.spec_of(name, 1).observation_size > 0


def test_no_dm_control_task_is_missing():
    import envpool

    assert set(envpool_engine.task_names().values()) <= set(envpool.list_all_envs())
    assert set(task_names()) - set(SUITE) == set(envpool_engine._DIFFERENT)


@pytest.mark.slow
@pytest.mark.parametrize("name", envpool_engine._DIFFERENT)
def test_tasks_that_are_not_offered_still_differ(name, monkeypatch):
    monkeypatch.setattr(envpool_engine, "_DIFFERENT", ())
    monkeypatch.setattr(envpool_engine, "task_names", envpool_engine.task_names.__wrapped__)
    assert not agree(name).all()


def test_meta_world_reports_whether_it_succeeded():
    sim = Task("metaworld-drawer-open", "envpool").make_sim(2, seed=0)
    spec = sim.spec
    assert {"success", "obj_to_target"} <= set(spec.info)
    assert not any("id" in name.split("_") for name in spec.info)
    out = started(sim)
    sim.step(np.zeros((2, spec.action_size), np.float32), out)
    values = dict(zip(spec.info, out.info.T, strict=True))
    assert (values["success"] == 0).all()
    assert (values["obj_to_target"] > 0).all()
    sim.close()
