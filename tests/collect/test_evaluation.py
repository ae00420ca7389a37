"""Evaluation in Python."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

import mtray
from mtray.collect import evaluation
from mtray.config.learner import NetworkConfig
from mtray.engines.mujoco import MujocoSim
from mtray.engines.torchrl import TorchrlSim
from mtray.errors import TaskError, UsageError
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import snapshot
from mtray.tasks import registry
from mtray.tasks.plan import Task
from mtray.testing import CountingEnv, CountingMaker
from tests.failing import FailingMaker
from tests.makers import Drawing, point, reporting

COUNT = CountingMaker(truncate_after=4)


def play(policy, task, episodes, **options):
    return evaluation.play(policy.layout, snapshot(policy, 0), task, episodes, **options)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.fixture
def policy():
    specs = [Task("count", "torchrl", COUNT).spec, Task("lqr-lqr_2_1", "mujoco", action_repeat=2).spec]
    return MultiTaskPolicy(specs, NetworkConfig(actor_width=16)).requires_grad_(False)


def test_tasks_that_were_registered_are_evaluated(policy):
    mtray.register_task("count", COUNT)
    found = mtray.evaluate_policy(policy, ["count"], episodes=3)
    assert found["count"]["episodes"] == len(found["count"]["returns"]) == 3
    # All episodes are equal, but for a product's rounding: four steps with rewards of at most one.
    assert max(found["count"]["returns"]) <= 4
    assert found["count"]["return_std"] == pytest.approx(0, abs=1e-6)
    assert not policy.deterministic


def test_the_callers_exploration_type_adds_no_noise(policy):
    mtray.register_task("count", COUNT)

    def returns():
        return mtray.evaluate_policy(policy, ["count"], episodes=2)["count"]["returns"]

    expected = returns()
    with set_exploration_type(ExplorationType.RANDOM):
        assert returns() == expected


def test_returns_are_those_of_the_policy_in_torchrl_environments(monkeypatch):
    """The oracle: TorchRL's rollout of the policy itself, as long as rounding has not grown."""
    monkeypatch.setattr(evaluation, "_MOST_STEPS", 60)
    tasks = registry.resolve(["cartpole-balance", "walker-walk"], action_repeat=2)
    torch.manual_seed(0)
    policy = MultiTaskPolicy([task.spec for task in tasks], NetworkConfig(actor_width=16)).requires_grad_(False)
    for task in tasks:
        env = mtray.make_task_env(task.name, num_envs=3, seed=5)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            data = env.rollout(60, policy)
        env.close()
        expected = data["next", "reward"].sum(1)[:, 0].tolist()
        returns, _ = play(policy, task, 3, seed=5)
        assert returns == pytest.approx(expected, rel=1e-4)
        assert len(set(returns)) == 3


def test_a_task_registered_in_another_process_has_a_remedy(policy):
    with pytest.raises(UsageError, match=r"'count' was made by a maker.*mtray\.evaluate_policy.*mtray\.register_task"):
        mtray.evaluate_policy(policy)


def test_a_task_is_evaluated_by_its_makers_path():
    alone = MultiTaskPolicy([Task("point", "torchrl", point).spec], NetworkConfig(actor_width=16))
    assert list(mtray.evaluate_policy(alone, ["tests.makers:point"], episodes=1)) == ["point"]


def test_a_task_that_has_changed_is_refused(policy):
    mtray.register_task("count", CountingMaker(observation_size=3))
    with pytest.raises(UsageError, match=r"task 'count': observation is .*3.* but was .*2.* when the policy"):
        mtray.evaluate_policy(policy, ["count"])


def test_other_tasks_and_no_episodes_are_refused(policy):
    with pytest.raises(UsageError, match="'walker-walk' was not learned by this policy: it has count, lqr-lqr_2_1"):
        mtray.evaluate_policy(policy, ["walker-walk"])
    with pytest.raises(UsageError, match="episodes 0: at least 1"):
        mtray.evaluate_policy(policy, episodes=0)
    for episodes in (1.0, "3", True):
        with pytest.raises(UsageError, match=f"episodes {episodes!r}: at least 1 is needed, a whole number"):
            mtray.evaluate_policy(policy, episodes=episodes)
    for seed in (-1, 2**32, 0.5):
        with pytest.raises(UsageError, match=rf"seed {seed}: must be a whole number between 0 and 2\*\*32 - 1"):
            mtray.evaluate_policy(policy, seed=seed)


def test_a_policy_of_another_class_is_refused_since_only_its_weights_would_act(policy):
    class Mine(MultiTaskPolicy):
        pass

    mine = Mine(policy.specs, policy.config)
    with pytest.raises(UsageError, match=r"is no policy of mtray's: pass the result of mtray\.load_policy"):
        mtray.evaluate_policy(mine)


def test_a_single_task_needs_no_list(policy):
    mtray.register_task("count", COUNT)
    assert list(mtray.evaluate_policy(policy, "count", episodes=np.int64(1))) == ["count"]


class Glitch(CountingEnv):
    """Copy 0 ends after 2 steps; from step 3 on its reward is NaN."""

    def __init__(self, num_envs):
        super().__init__(num_envs)
        self._limits[1] = torch.tensor([[2.0], *[[5.0]] * (num_envs - 1)])
        self.count = 0

    def _step(self, data):
        self.count += 1
        data = super()._step(data)
        data["reward"] = torch.ones_like(data["reward"])
        if self.count > 2:
            data["reward"][0] = math.nan
        return data


def test_what_a_copy_gives_after_its_episode_does_not_count():
    task = Task("mine", "torchrl", lambda num_envs, seed: Glitch(num_envs))
    policy = MultiTaskPolicy([task.spec], NetworkConfig(actor_width=16))
    returns, _ = play(policy, task, 3)
    assert returns == [2, 5, 5]


def test_an_episode_whose_physics_diverges_does_not_count(monkeypatch):
    task = Task("cheetah-run", "mujoco", action_repeat=10)
    policy = MultiTaskPolicy([task.spec], NetworkConfig(actor_width=16)).requires_grad_(False)
    (first, _, third), _ = play(policy, task, 3)
    steps, send = itertools.count(), MujocoSim.send

    def diverging(sim, action):
        if next(steps) == 4:
            sim._sims.bind("qvel")[1 : sim.num_envs : 2] = 1e12
        send(sim, action)

    monkeypatch.setattr(MujocoSim, "send", diverging)
    returns, _ = play(policy, task, 3)
    assert returns == pytest.approx([first, third])
    monkeypatch.setattr(MujocoSim, "send", lambda sim, action: sim._sims.bind("qvel").fill(1e12) or send(sim, action))
    with pytest.raises(TaskError, match=r"'cheetah-run': the physics diverged in every episode \(of 2\)") as caught:
        play(policy, task, 2)
    assert caught.value.task == "cheetah-run"


def test_nor_does_what_was_reported_of_it(monkeypatch):
    def recv(sim, out, recv=TorchrlSim.recv):
        recv(sim, out)
        out.broken[0] = out.truncated[0] = True

    task = Task("mine", "torchrl", reporting)
    policy = MultiTaskPolicy([task.spec], NetworkConfig(actor_width=16))
    monkeypatch.setattr(TorchrlSim, "recv", recv)
    returns, infos = play(policy, task, 3)
    assert len(returns) == len(infos["steps"]) == len(infos["success"]) == 2
    assert min(infos["steps"]) >= 2


class Longer(FailingMaker):
    """The episodes of all copies but the first have nine steps."""

    def __call__(self, num_envs, seed):
        env = super().__call__(num_envs, seed)
        env._limits[1] = torch.tensor([[3.0], *[[9.0]] * (num_envs - 1)])
        return env


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("bad_reward", "its step gave the reward nan: an environment must give finite numbers"),
        ("bad_observation", r"its step gave the observation inf \(entry 0\)"),
    ],
)
def test_a_number_that_is_not_finite_is_an_error_as_in_training(what, message):
    task = Task("mine", "torchrl", Longer(what))
    policy = MultiTaskPolicy([task.spec], NetworkConfig(actor_width=16))
    with pytest.raises(TaskError, match=f"task 'mine': {message}") as caught:
        play(policy, task, 2)
    assert caught.value.task == "mine"


class StartIsReward(Drawing):
    def _step(self, data):
        return super()._step(data).set("reward", self._start.sum(-1, keepdim=True))


def test_episodes_are_the_same_and_the_processs_generators_go_on():
    task = Task("mine", "torchrl", lambda num_envs, seed: StartIsReward(num_envs))
    policy = MultiTaskPolicy([task.spec], NetworkConfig(actor_width=16))
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = torch.rand(()).item(), np.random.rand(), random.random()
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    first, _ = play(policy, task, 2, seed=1)
    assert (torch.rand(()).item(), np.random.rand(), random.random()) == expected
    again, other = play(policy, task, 2, seed=1)[0], play(policy, task, 2, seed=2)[0]
    assert first == again
    assert len({*first, *other}) == 4


def test_a_task_that_raises_is_named():
    task = Task("mine", "torchrl", Longer("reset_raises"))
    policy = MultiTaskPolicy([task.spec], NetworkConfig(actor_width=16))
    mtray.register_task("mine", Longer("reset_raises"))
    with pytest.raises(TaskError, match="task 'mine': its reset raised OSError: no licence left"):
        mtray.evaluate_policy(policy)
