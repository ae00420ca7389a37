"""Every task of the suite, bit for bit against torchrl's DMControlEnv, and the rules that all engines share."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from dm_control import suite
from dm_control.mujoco import Physics
from torchrl.envs import CatTensors, Compose, DoubleToFloat, FlattenObservation, TransformedEnv
from torchrl.envs.libs.dm_control import DMControlEnv

from mtray.engines.base import copy_seed
from mtray.engines.dm_control import task_names
from mtray.tasks.env import TaskEnv, make_task_env
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve
from tests.makers import started

STEPS = 12
# lqr draws its model at construction from the task's random state.
RANDOM_MODEL = ("lqr",)


def tutorial_env(domain, task, name, seed):
    """Return torchrl's DMControlEnv with the tutorial's transforms, entries in dm_control's order."""
    options = {"random": seed} if domain in RANDOM_MODEL else {}
    env = DMControlEnv(domain, task, **options)
    keys = list(env.observation_spec.keys())
    # CatTensors needs vectors; the arms of manipulator and stacker are matrices.
    tables = [key for key in keys if env.observation_spec[key].ndim == 2]
    flat = [FlattenObservation(-2, -1, in_keys=tables)] if tables else []
    exclusive = f"observation_{name}"
    return TransformedEnv(
        env,
        Compose(
            *flat,
            CatTensors(keys, exclusive, del_keys=False, sort=False),
            CatTensors(keys, "observation", sort=False),
            DoubleToFloat(in_keys=[exclusive, "observation", "reward"], in_keys_inv=["action"]),
        ),
    )


@pytest.fixture
def no_renderer(monkeypatch):
    # quadruped-escape uploads its terrain to a renderer at every reset; tests have none.
    monkeypatch.setattr(Physics, "contexts", property(lambda self: None))


@pytest.mark.usefixtures("no_renderer")
@pytest.mark.parametrize("engine", ["mujoco", "dm_control"])
@pytest.mark.parametrize("name", sorted(task_names()))
def test_one_copy_equals_dm_control_env_bit_for_bit(name, engine):
    domain, task = task_names()[name]
    theirs = tutorial_env(domain, task, name, seed=7)
    ours = make_task_env(name, engine=engine, num_envs=1, seed=7, action_repeat=1)
    theirs.set_seed(3)
    ours.set_seed(3)
    low, high = (np.clip(bound, -1, 1) for bound in (ours.task_spec.action_low, ours.task_spec.action_high))
    random = np.random.default_rng(0)
    for episode in range(2):
        expected, got = theirs.reset(), ours.reset()
        for _ in range(STEPS):
            for key in ("observation", f"observation_{name}"):
                assert torch.equal(got[key][0].view(torch.int32), expected[key].view(torch.int32)), (episode, key)
            action = torch.from_numpy(random.uniform(low, high).astype(np.float32))
            expected.set("action", action)
            got.set("action", action.unsqueeze(0))
            reached, expected = theirs.step_and_maybe_reset(expected)
            stepped, got = ours.step_and_maybe_reset(got)
            for key in ("observation", f"observation_{name}", "reward", "done", "terminated", "truncated"):
                assert torch.equal(stepped["next", key][0], reached["next", key]), (episode, key)
    theirs.close()
    ours.close()


@pytest.mark.parametrize("name", sorted(task_names()))
def test_task_spec_is_dm_controls(name):
    domain, task = task_names()[name]
    env = suite.load(domain, task)
    spec = Task(name, "dm_control").spec
    assert [entry for entry, _ in spec.observation] == list(env.observation_spec())
    assert spec.observation_size == sum(int(np.prod(part.shape)) for part in env.observation_spec().values())
    assert spec.action_low == tuple(np.broadcast_to(env.action_spec().minimum, env.action_spec().shape))
    assert spec.action_high == tuple(np.broadcast_to(env.action_spec().maximum, env.action_spec().shape))
    assert spec.time_step_seconds == env.control_timestep()
    assert spec.horizon == (None if domain == "lqr" else 1000)
    env.close()


def sim_of(name, copies, seed=0):
    return Task(name, "dm_control").make_sim(copies, seed)


def test_a_copy_does_not_depend_on_the_number_of_copies():
    few, many = sim_of("walker-walk", 2, seed=5), sim_of("walker-walk", 4, seed=5)
    first, second = started(few), started(many)
    assert np.array_equal(first.observation, second.observation[:2])
    assert len(np.unique(second.observation, axis=0)) == 4
    action = np.full((4, 6), 0.3, np.float32)
    few.step(action[:2], first)
    many.step(action, second)
    assert np.array_equal(first.observation, second.observation[:2])


@pytest.mark.parametrize("name", ["walker-walk", "lqr-lqr_6_2", "reacher-hard", "swimmer-swimmer6"])
def test_a_copy_equals_a_simulator_with_its_seed(name):
    # Copies are made from one compiled model; a task that writes to its model at a reset must not change the others.
    many, alone = sim_of(name, 3, seed=5), sim_of(name, 1, seed=copy_seed(5, 2))
    first, second = started(many), started(alone)
    for _ in range(20):
        assert np.array_equal(first.observation[2:], second.observation)
        many.step(np.full((3, many.spec.action_size), 0.3, np.float32), first)
        alone.step(np.full((1, many.spec.action_size), 0.3, np.float32), second)
        assert np.array_equal(first.reward[2:], second.reward)


def test_same_seed_same_episode_other_seed_another():
    runs = [started(sim_of("cartpole-swingup", 1, seed)).observation for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_copy_seeds_keep_the_first_and_differ():
    seeds = [copy_seed(11, copy) for copy in range(50)]
    assert seeds[0] == 11
    assert len(set(seeds)) == 50


def test_partial_reset_touches_only_the_masked_copies():
    env = make_task_env("reacher-easy", num_envs=3)
    state = env.reset()
    state["action"] = torch.full((3, 2), 0.5)
    reached = env.step(state)["next"]
    # torchrl writes the result of a reset into its argument.
    after = env.reset(reached.clone().set("_reset", torch.tensor([[False], [True], [False]])))
    kept = torch.tensor([True, False, True])
    assert torch.equal(after["observation"][kept], reached["observation"][kept])
    assert not torch.equal(after["observation"][1], reached["observation"][1])


def test_a_time_limit_truncates_and_next_is_the_last_state_not_the_reset_one():
    env = make_task_env("cartpole-balance", num_envs=2, action_repeat=1)
    state = env.reset()
    for step in range(1000):
        state["action"] = torch.zeros(2, 1)
        stepped, state = env.step_and_maybe_reset(state)
        ended = step == 999
        assert bool(stepped["next", "truncated"].all()) is ended
        assert bool(stepped["next", "done"].any()) is ended
        assert not stepped["next", "terminated"].any()
        if not ended:
            assert torch.equal(state["observation"], stepped["next", "observation"])
    assert not torch.isclose(state["observation"], stepped["next", "observation"]).all()
    assert not state["done"].any()


def test_a_tasks_own_end_is_termination():
    env = make_task_env("lqr-lqr_2_1", num_envs=1, action_repeat=1)
    sim = env.sim._envs[0]
    state = env.reset()
    with sim.physics.reset_context():
        sim.physics.data.qpos[:] = 0
        sim.physics.data.qvel[:] = 0
    state["action"] = torch.zeros(1, 1)
    reached = env.step(state)["next"]
    assert reached["terminated"].item()
    assert not reached["truncated"].item()
    assert reached["done"].item()


@pytest.mark.parametrize("name", ["humanoid-walk", "finger-turn_easy", "quadruped-escape"])
@pytest.mark.parametrize("num_envs", [None, 3])
def test_task_env_passes_torchrls_own_check(name, num_envs):
    from torchrl.envs.utils import check_env_specs

    env = make_task_env(name, num_envs=num_envs)
    assert env.batch_size == torch.Size([] if num_envs is None else [num_envs])
    check_env_specs(env, seed=0)


def test_step_and_maybe_reset_equals_torchrls_implementation():
    from torchrl.envs import EnvBase

    lean = make_task_env("cartpole-swingup", num_envs=2, seed=4, observation_width=9)
    generic = make_task_env("cartpole-swingup", num_envs=2, seed=4, observation_width=9)
    ours, theirs = lean.reset(), generic.reset()
    for step in range(1003):
        action = torch.full((2, 1), float(np.sin(step)))
        ours["action"], theirs["action"] = action, action.clone()
        stepped, ours = lean.step_and_maybe_reset(ours)
        expected, theirs = EnvBase.step_and_maybe_reset(generic, theirs)
        assert set(stepped["next"].keys()) == set(expected["next"].keys())
        assert (stepped["next"] == expected["next"]).all()
        assert set(ours.keys()) == set(theirs.keys())
        assert (ours == theirs).all()
    assert not ours["done"].any()


def test_padding_is_zero_and_exclusive_is_unpadded():
    env = make_task_env("cartpole-swingup", num_envs=2, observation_width=12)
    state = env.reset()
    assert state["observation"].shape == (2, 12)
    assert state["observation_cartpole-swingup"].shape == (2, 5)
    assert torch.equal(state["observation"][:, :5], state["observation_cartpole-swingup"])
    assert not state["observation"][:, 5:].any()


def test_simulators_are_not_built_for_the_specs():
    env = TaskEnv(resolve(["dog-run"])[0], num_envs=64)
    assert env._sim is None
    assert env.observation_spec["observation"].shape == (64, 223)


def test_models_and_the_lack_of_a_display_bring_no_warnings():
    """A model of each kind, in a process of a user's without a display and in those that it starts."""
    program = (
        "import mtray\n"
        "for name in ('cheetah-run', 'humanoid-walk', 'quadruped-walk', 'fish-swim'):\n"
        "    mtray.make_task_env(name, engine='mujoco', num_envs=2).reset()\n"
        "    mtray.make_task_env(name, engine='dm_control', num_envs=2).reset()\n"
        "env = mtray.make_multi_task_env(['cheetah-run', 'fish-swim'], num_envs=2, seed=0)\n"
        "env.reset()\n"
        "env.close()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MUJOCO_GL")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
