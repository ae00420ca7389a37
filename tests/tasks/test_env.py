"""Tasks as TorchRL environments: action repeat as in training, autograd, float32."""

import pytest
import torch
from tensordict import LazyStackedTensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torchrl.envs import EnvBase

import mtray
from mtray.config.learner import NetworkConfig
from mtray.config.settings import CollectorConfig
from mtray.engines.base import copy_seed
from mtray.errors import UsageError
from mtray.policy.policy import MultiTaskPolicy
from mtray.tasks import registry
from mtray.tasks.env import TaskEnv, make_task_env
from mtray.tasks.makers import make_makers
from mtray.tasks.parallel import MultiTaskEnv, make_multi_task_env
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve_like
from mtray.testing import CountingEnv, CountingMaker
from tests.makers import Drawing, drawing, point


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {"point": point, "count": CountingMaker(truncate_after=4)})


class ExtraAtReset(CountingEnv):
    def _reset(self, tensordict=None, **kwargs):
        return super()._reset(tensordict, **kwargs).set("extra", torch.ones(*self.batch_size, 1))


def policy_of(*tasks):
    return MultiTaskPolicy([task.spec for task in tasks], NetworkConfig(actor_width=16), deterministic=True)


def test_the_default_action_repeat_is_that_of_training():
    assert make_task_env("cartpole-swingup").task_spec.action_repeat == CollectorConfig().action_repeat == 2
    assert make_task_env("cartpole-swingup", action_repeat=1).task_spec.action_repeat == 1


@pytest.mark.parametrize("repeat", [1, 3])
def test_an_environment_like_a_policy_has_its_action_repeat_and_engine(repeat):
    policy = policy_of(Task("cartpole-swingup", "dm_control", action_repeat=repeat), Task("point", "torchrl", point))
    env = make_task_env("cartpole-swingup", num_envs=2, seed=3, like=policy)
    assert (env.task.engine, env.task.action_repeat) == ("dm_control", repeat)
    assert make_task_env("point", like=policy).task.maker is point
    # The returns of an evaluation.
    expected = mtray.evaluate_policy(policy, ["cartpole-swingup"], episodes=2, seed=3)["cartpole-swingup"]["returns"]
    with torch.no_grad():
        rollout = env.rollout(-(-1000 // repeat), policy, break_when_any_done=False)
    assert rollout["next", "done"][:, -1].all()
    torch.testing.assert_close(rollout["next", "reward"].double().sum((1, 2)), torch.tensor(expected).double())


def test_a_task_that_differs_from_what_the_policy_learned_is_refused():
    policy = policy_of(Task("cartpole-swingup", "mujoco", action_repeat=2), Task("point", "torchrl", CountingMaker()))
    with pytest.raises(UsageError, match="'walker-walk' was not learned by this policy: it has cartpole"):
        make_task_env("walker-walk", like=policy)
    with pytest.raises(UsageError, match="'cartpole-swingup': action_repeat is 1, but was 2 when the policy was tra"):
        make_task_env("cartpole-swingup", like=policy, action_repeat=1)
    with pytest.raises(UsageError, match=r"'point': action_low is \(-0\.5,\), but was \(-1\.0,\) when the policy was"):
        make_task_env("point", like=policy)


def test_a_path_is_no_policy():
    for call in (lambda: make_task_env("count", like="runs/a"), lambda: mtray.evaluate_policy("runs/a")):
        with pytest.raises(
            UsageError, match=r"'runs/a' is no policy of mtray's: pass the result of mtray\.load_policy"
        ):
            call()


@pytest.mark.parametrize("is_like_a_policy", [False, True])
def test_an_action_repeat_that_has_no_effect_is_refused(is_like_a_policy):
    policy = policy_of(Task("cartpole-swingup", "mujoco", action_repeat=2), Task("point", "torchrl", point))
    like = policy if is_like_a_policy else None
    with pytest.raises(UsageError, match="task 'point' sets its action repeat itself: omit action_repeat=3"):
        make_task_env("point", action_repeat=3, like=like)
    with pytest.raises(UsageError, match="task 'point' sets its action repeat itself: omit action_repeat=3"):
        resolve_like(["point"], policy.specs, action_repeat=3)
    for repeat in (0, -1):
        with pytest.raises(UsageError, match=f"action_repeat {repeat}: at least 1 is needed"):
            make_task_env("cartpole-swingup", action_repeat=repeat, like=like)


@pytest.mark.parametrize("name", ["cartpole-swingup", "point"])
@pytest.mark.parametrize("num_envs", [None, 2])
def test_a_policy_in_training_can_act(name, num_envs):
    env = make_task_env(name, num_envs=num_envs)
    size = env.task_spec.observation_size
    linear = TensorDictModule(torch.nn.Linear(size, 1), ["observation"], ["action"])
    multi_task = policy_of(env.task)
    for policy in (linear, multi_task):
        rollout = env.rollout(3, policy, break_when_any_done=False)
        rollout["action"].sum().backward()
        assert not rollout["next", "reward"].requires_grad
    assert linear.module.weight.grad is not None
    assert any(parameter.grad is not None for parameter in multi_task.parameters())
    with torch.inference_mode():
        assert env.rollout(3, multi_task, break_when_any_done=False)["action"].shape[-1] == 1


def test_data_is_float32_whatever_torchs_default_is():
    torch.set_default_dtype(torch.float64)
    try:
        for name in ("cartpole-swingup", "count"):
            env = make_task_env(name, num_envs=2)
            rollout = env.rollout(3, policy_of(env.task))
            for key in ("observation", ("next", "observation"), ("next", "reward"), f"observation_{name}"):
                assert rollout[key].dtype == torch.float32
                assert env.observation_spec["observation"].dtype == env.reward_spec.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_extra_entry_at_reset_is_ignored():
    registry._REGISTERED["extra"] = lambda num_envs, seed: ExtraAtReset(num_envs, truncate_after=2)
    rollout = make_task_env("extra", num_envs=2).rollout(5, break_when_any_done=False)
    assert rollout["observation_extra"][0, :, 0].tolist() == [0, 1, 0, 1, 0]
    assert "extra" not in rollout.keys()


def test_several_tasks_like_a_policy():
    policy = policy_of(Task("cartpole-swingup", "mujoco", action_repeat=3), Task("count", "torchrl", CountingMaker()))
    env = make_multi_task_env(["count", "cartpole-swingup"], num_envs=2, seed=4, like=policy)
    try:
        rollout = env.rollout(6, policy, break_when_any_done=False, return_contiguous=False)
        assert rollout[0]["observation_count"][0, :, 0].tolist() == [0, 1, 2, 3, 0, 1]
        assert rollout[1]["observation_cartpole-swingup"].shape == (2, 6, 5)
        assert [maker.task.action_repeat for maker in env.makers] == [1, 3]
        seeds = [maker.seed for maker in env.makers]
        assert seeds[0] == 4
        # Of every copy of both tasks.
        assert len({copy_seed(seed, copy) for seed in seeds for copy in range(9)}) == 18
    finally:
        env.close()


def test_one_task_has_the_layout_of_several():
    env = make_multi_task_env("count", num_envs=2)
    try:
        data = env.reset()
        assert isinstance(data, LazyStackedTensorDict)
        rollout = env.rollout(3, return_contiguous=False)
        assert isinstance(rollout, LazyStackedTensorDict)
        assert rollout[0]["observation_count"][0, :, 0].tolist() == [0, 1, 2]
    finally:
        env.close()


def test_several_tasks_without_shared_buffers():
    tasks = [Task(name, "torchrl", CountingMaker(truncate_after=4)) for name in ("a", "b")]
    env = MultiTaskEnv(make_makers(tasks, 2, [0, 1]), use_buffers=False)
    try:
        rollout = env.rollout(3, return_contiguous=False)
        assert rollout[1]["observation_b"][0, :, 0].tolist() == [0, 1, 2]
    finally:
        env.close()


class Unhashable(CountingMaker):
    __hash__ = None


def test_a_maker_of_one_of_several_tasks_need_not_be_hashable():
    registry._REGISTERED["mine"] = Unhashable(truncate_after=4)
    env = make_multi_task_env(["count", "mine"], num_envs=2)
    try:
        assert "observation_mine" in env.reset()[1].keys()
    finally:
        env.close()


def test_several_tasks_draw_numbers_of_their_own_from_their_processs_generators():
    registry._REGISTERED.update({"a": drawing, "b": lambda num_envs, seed: Drawing(num_envs)})
    env = make_multi_task_env(["a", "b"], num_envs=2, seed=4)
    try:
        data = env.reset()
        starts = [*data[0]["observation_a"].flatten().tolist(), *data[1]["observation_b"].flatten().tolist()]
    finally:
        env.close()
    assert len(set(starts)) == 12


def test_a_common_observation_that_is_too_narrow_is_refused():
    with pytest.raises(UsageError, match="'count' has 2 observation entries, more than the common"):
        TaskEnv(Task("count", "torchrl", CountingMaker()), observation_width=1)


class CallCounter(TensorDictModuleBase):
    """Acts, counts its calls in the root, and writes an entry under ``next``."""

    in_keys = ("observation",)
    out_keys = ("action",)

    def forward(self, data):
        for part in data.tensordicts if isinstance(data, LazyStackedTensorDict) else [data]:
            part["calls"] = part.get("calls", torch.zeros(*part.batch_size, 1)) + 1
            part["next", "calls_after"] = part["calls"] * 10
            part["action"] = torch.zeros(*part.batch_size, 1)
        return data


class EndsOneByOne(CountingEnv):
    """Copy 0 ends after 2 steps, copy 1 after 3."""

    def __init__(self, num_envs, seed=0):
        super().__init__(num_envs)
        self._limits[1] = torch.tensor([[2.0], [3.0]])


def test_entries_that_a_policy_carries_are_kept_as_by_torchrl():
    registry._REGISTERED["uneven"] = EndsOneByOne
    lean, generic = (make_task_env("uneven", num_envs=2) for _ in range(2))
    ours, theirs = lean.reset(), generic.reset()
    policy, calls = CallCounter(), []
    for _ in range(7):
        stepped, ours = lean.step_and_maybe_reset(policy(ours))
        expected, theirs = EnvBase.step_and_maybe_reset(generic, policy(theirs))
        for got, wanted in ((stepped, expected), (ours, theirs)):
            assert set(got.keys(True, True)) == set(wanted.keys(True, True))
            assert (got == wanted).all()
        calls.append(stepped["calls"][:, 0].tolist())
    # torchrl sets them to zero in the copies of a partial reset, and keeps them if all copies are reset.
    assert calls == [[1, 1], [2, 2], [1, 3], [2, 1], [1, 2], [2, 3], [3, 4]]


def test_entries_that_a_policy_carries_are_kept_over_several_tasks():
    env = make_multi_task_env(["count", "point"], num_envs=2)
    try:
        rollout = env.rollout(3, CallCounter(), return_contiguous=False)
        for part in rollout[0], rollout[1]:
            assert part["calls"][0, :, 0].tolist() == [1, 2, 3]
            assert part["next", "calls_after"][0, :, 0].tolist() == [10, 20, 30]
        assert rollout[0]["observation_count"][0, :, 0].tolist() == [0, 1, 2]
    finally:
        env.close()


@pytest.mark.parametrize("make", [make_task_env, make_multi_task_env])
def test_copies_and_seeds_out_of_range_are_refused(make):
    for copies in (0, -1, 2.0, True):
        with pytest.raises(UsageError, match=f"num_envs {copies}: at least 1 is needed, a whole number"):
            make("count", num_envs=copies)
    for seed in (-1, 2**32, 0.5):
        with pytest.raises(UsageError, match=rf"seed {seed}: must be a whole number between 0 and 2\*\*32 - 1"):
            make("count", seed=seed)


def test_a_single_name_needs_no_list():
    policy = policy_of(Task("count", "torchrl", CountingMaker(truncate_after=4)))
    for like in (None, policy):
        env = make_multi_task_env("count", like=like)
        assert [maker.task.name for maker in env.makers] == ["count"]
