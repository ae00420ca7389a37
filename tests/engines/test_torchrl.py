"""TorchRL environments: stepped as TorchRL steps them, or refused in one line that names the fault."""

import logging
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import (
    CatFrames,
    CatTensors,
    Compose,
    DoubleToFloat,
    ExcludeTransform,
    FrameSkipTransform,
    GymEnv,
    GymWrapper,
    InitTracker,
    NoopResetEnv,
    ObservationNorm,
    PendulumEnv,
    RenameTransform,
    RewardScaling,
    RewardSum,
    SerialEnv,
    StepCounter,
    TimeMaxPool,
    Timer,
    TransformedEnv,
    UnsqueezeTransform,
    VecNorm,
    VecNormV2,
)

from mtray.engines.base import copy_seed
from mtray.errors import UsageError
from mtray.tasks.plan import Task
from mtray.testing import CountingEnv
from tests.makers import PointEnv, ReportingEnv, drawing, observing, started, vector

COPIES, STEPS = 3, 40


def transformed(*transforms):
    return lambda num_envs, seed: TransformedEnv(PointEnv(num_envs, seed), Compose(*(make() for make in transforms)))


def single(*transforms):
    def maker(num_envs, seed):
        env = TransformedEnv(PointEnv(1, seed, batched=False), Compose(*(make() for make in transforms)))
        env.set_seed(seed)
        return env

    return maker


def gym_env(num_envs, seed):
    env = TransformedEnv(GymEnv("Pendulum-v1"), Compose(StepCounter(9), RewardSum(), DoubleToFloat()))
    env.set_seed(seed)
    return env


def stateless(num_envs, seed):
    """An environment that keeps its state in the TensorDict."""
    keys = ["th", "thdot"]
    joined = CatTensors(keys, "observation", del_keys=False)
    unsqueeze = UnsqueezeTransform(-1, in_keys=keys, in_keys_inv=keys)
    env = TransformedEnv(PendulumEnv(), Compose(unsqueeze, joined, StepCounter(7)))
    env.set_seed(seed)
    return env


def serial(num_envs, seed):
    members = [lambda copy=copy: single(lambda: StepCounter(4))(1, copy_seed(seed, copy)) for copy in range(num_envs)]
    return SerialEnv(num_envs, members)


MAKERS = {
    "plain": transformed(),
    "counter": transformed(lambda: StepCounter(3)),
    "counter, single": single(lambda: StepCounter(3)),
    "sum": transformed(RewardSum),
    "init": transformed(InitTracker),
    "frames": transformed(lambda: CatFrames(N=3, dim=-1, in_keys=["observation"])),
    "frames, single": single(lambda: CatFrames(N=3, dim=-1, in_keys=["observation"])),
    "pool": transformed(
        lambda: TimeMaxPool(["observation"], ["most"], T=2), lambda: RenameTransform(["most"], ["observation"])
    ),
    "scaled": transformed(lambda: RewardScaling(1.0, 2.0), lambda: ObservationNorm(0.5, 2.0, ["observation"])),
    "skip": transformed(lambda: FrameSkipTransform(2), lambda: StepCounter(3)),
    "noop": single(lambda: NoopResetEnv(noops=2)),
    "several": transformed(lambda: StepCounter(4), RewardSum, InitTracker, lambda: CatFrames(2, -1, ["observation"])),
    "stateless": stateless,
    "gymnasium": gym_env,
    "serial": serial,
}


def torchrl_steps(envs, actions):
    """Yield (observation, next observation, reward, done) of each of TorchRL's step_and_maybe_reset."""
    roots = [env.reset() for env in envs]
    for action in actions:
        before, reached = [root["observation"] for root in roots], []
        for index, env in enumerate(envs):
            part = action if env.batch_size else action[index]
            roots[index]["action"] = torch.from_numpy(part).to(env.action_spec.dtype)
            stepped, roots[index] = env.step_and_maybe_reset(roots[index])
            reached.append(stepped["next"])
        yield tuple(
            torch.stack(values).reshape(COPIES, -1).float().numpy()
            for values in (before, *([part[key] for part in reached] for key in ("observation", "reward", "done")))
        )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_copies_are_stepped_as_torchrl_steps_them(name):
    maker = MAKERS[name]
    torch.manual_seed(0)
    sim = Task("mine", "torchrl", maker).make_sim(COPIES, seed=5)
    first = maker(COPIES, 5)
    envs = [first] if first.batch_size else [first, *(maker(1, copy_seed(5, copy)) for copy in range(1, COPIES))]
    random = np.random.default_rng(1)
    actions = random.uniform(-0.5, 0.5, (STEPS, COPIES, sim.spec.action_size)).astype(np.float32)
    torch.manual_seed(7)
    out = started(sim)
    observation = out.observation.copy()
    ours, episodes = [], 0
    for action in actions:
        before = observation
        sim.step(action, out)
        ended = out.terminated | out.truncated
        assert not (out.terminated & out.truncated).any()
        ours.append((before, out.observation.copy(), out.reward[:, None].copy(), ended[:, None].astype(np.float32)))
        observation = out.observation.copy()
        if ended.any():
            sim.reset(ended, observation)
            episodes += ended.sum()
    torch.manual_seed(7)
    for step, (mine, theirs) in enumerate(zip(ours, torchrl_steps(envs, actions), strict=True)):
        for field, a, b in zip(("before", "reached", "reward", "ended"), mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{field} at step {step}")
    assert episodes >= COPIES
    sim.close()


def test_a_step_counter_truncates():
    sim = Task("mine", "torchrl", lambda n, seed: TransformedEnv(CountingEnv(n), StepCounter(5))).make_sim(2)
    out = started(sim)
    ends = []
    for _ in range(5):
        sim.step(np.zeros((2, 1), np.float32), out)
        ends.append((out.terminated.any(), out.truncated.all()))
    assert ends == [(False, False)] * 4 + [(False, True)]
    assert out.observation[0, 0] == 5


def test_a_reset_of_one_copy_does_not_change_the_state_of_the_others():
    sim = Task("mine", "torchrl", lambda n, seed: TransformedEnv(CountingEnv(n), StepCounter(5))).make_sim(3)
    out, action = started(sim), np.zeros((3, 1), np.float32)
    for _ in range(2):
        sim.step(action, out)
    sim.reset(np.array([False, True, False]), out.observation)
    truncated = []
    for _ in range(5):
        sim.step(action, out)
        truncated.append(out.truncated.tolist())
        if out.truncated.any():
            sim.reset(out.truncated, out.observation)
    assert truncated[2] == [True, False, True]
    assert truncated[4] == [False, True, False]


class OnlyTruncates(CountingEnv):
    """Sets truncated, but not done."""

    def _step(self, data):
        reached = super()._step(data)
        return reached.set("done", torch.zeros_like(reached["done"]))


def test_truncated_without_done_ends_an_episode():
    sim = Task("mine", "torchrl", lambda n, seed: OnlyTruncates(n, truncate_after=1)).make_sim(2)
    out = started(sim)
    sim.step(np.zeros((2, 1), np.float32), out)
    assert out.truncated.all()


class Modelled(CountingEnv):
    """Its state is computed with a parameter."""

    def __init__(self, num_envs):
        super().__init__(num_envs, truncate_after=3)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def _reset(self, data=None, **kwargs):
        self._steps = self._steps.detach()
        return super()._reset(data, **kwargs)

    def _step(self, data):
        self._steps = self._steps * self.weight
        return super()._step(data)


def test_an_environment_with_parameters_records_no_graph():
    sim = Task("mine", "torchrl", lambda n, seed: Modelled(n)).make_sim(2)
    out = started(sim)
    sim.step(np.zeros((2, 1), np.float32), out)
    sim.reset(np.array([True, False]), out.observation)
    sim.step(np.zeros((2, 1), np.float32), out)
    (part,) = sim._parts
    assert not part.env._steps.requires_grad
    assert not any(value.requires_grad for value in part.root.values(True, True))
    assert torch.is_grad_enabled()


class EndsWith(CountingEnv):
    """Declares and gives only some of the flags that end an episode."""

    def __init__(self, num_envs, *keys, width=1):
        super().__init__(num_envs, truncate_after=1)
        self.keys = keys
        flags = {key: Binary(width, (num_envs, width), dtype=torch.bool) for key in keys}
        self.full_done_spec = Composite(flags, shape=[num_envs])

    def _reset(self, data=None, **kwargs):
        return super()._reset(data, **kwargs).select("observation", *self.keys)

    def _step(self, data):
        return super()._step(data).select("observation", "reward", *self.keys)


@pytest.mark.parametrize(
    ("keys", "ends"), [(("done",), "terminated"), (("done", "terminated"), "truncated"), (("terminated",), None)]
)
def test_done_alone_terminates_and_without_terminated_truncates(keys, ends):
    sim = Task("mine", "torchrl", lambda n, seed: EndsWith(n, *keys)).make_sim(2)
    out = started(sim)
    sim.step(np.zeros((2, 1), np.float32), out)
    assert [key for key in ("terminated", "truncated") if getattr(out, key).all()] == ([ends] if ends else [])


# Refused specs and data


def refused(maker):
    with pytest.raises(UsageError) as caught:
        _ = Task("mine", "torchrl", maker).spec
    message = str(caught.value)
    assert "task 'mine'" in message
    assert "\n" not in message
    return message


GOAL = {"observation": vector(2), "goal": vector(3)}


def test_observations_that_would_be_ignored_are_refused_with_both_remedies():
    message = refused(observing(**GOAL))
    assert "'goal' of shape (2, 3) torch.float32" in message
    assert "CatTensors(['observation', 'goal'], 'observation')" in message
    assert "ExcludeTransform" in message
    assert "'image' of shape (2, 4) torch.uint8" in refused(observing(**GOAL, image=vector(4, dtype=torch.uint8)))


class Goal(PointEnv):
    def __init__(self, num_envs, seed):
        super().__init__(num_envs, seed, observation={key: spec(num_envs) for key, spec in GOAL.items()})

    def _reset(self, data=None):
        return super()._reset(data).set("goal", torch.ones(*self.batch_size, 3))

    def _step(self, data):
        return super()._step(data).set("goal", torch.ones(*self.batch_size, 3))


def test_both_remedies_work():
    def joined(num_envs, seed):
        return TransformedEnv(Goal(num_envs, seed), CatTensors(["observation", "goal"], "observation"))

    def dropped(num_envs, seed):
        return TransformedEnv(Goal(num_envs, seed), ExcludeTransform("goal"))

    assert Task("mine", "torchrl", joined).spec.observation_size == 5
    assert Task("mine", "torchrl", dropped).spec.observation_size == 2


def bounded(low, high):
    return lambda num_envs, seed: PointEnv(num_envs, seed, action=bounds(num_envs, low, high))


def bounds(num_envs, low, high):
    low, high = (torch.tensor(value, dtype=torch.float64).expand(num_envs, -1) for value in (low, high))
    spec = Bounded(low, high.maximum(low), (num_envs, low.shape[-1]), dtype=torch.float64)
    spec.space.low, spec.space.high = low, high
    return spec


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([0.0], [math.inf], "entry 0 of its action has the bounds [0, inf], a limit on one side only"),
        ([-1.0, -math.inf], [1.0, 3.0], "entry 1 of its action has the bounds [-inf, 3], a limit on one side only"),
        ([0.0], [3e38], "entry 0 of its action has the bounds [0, 3e+38], a limit on one side only"),
        ([1.0], [-1.0], "entry 0 of its action has the bounds [1, -1], which no value satisfies"),
        ([math.nan], [1.0], "entry 0 of its action has the bounds [nan, 1], which no value satisfies"),
    ],
)
def test_invalid_and_one_sided_bounds_are_refused(low, high, message):
    assert message in refused(bounded(low, high))


def test_bounds_that_differ_between_copies_are_refused():
    def maker(num_envs, seed):
        spec = bounds(num_envs, [-1.0], [1.0])
        spec.space.high = torch.arange(1.0, num_envs + 1, dtype=torch.float64).unsqueeze(-1)
        return PointEnv(num_envs, seed, action=spec)

    assert "copies have different action bounds (high: [[1.0], [2.0]])" in refused(maker)


def test_bounds_beyond_a_million_and_equal_bounds_are_accepted():
    spec = Task("mine", "torchrl", bounded([-3e38, 0.5], [math.inf, 0.5])).spec
    assert spec.action_low == (-3e38, 0.5)
    assert spec.action_high == (math.inf, 0.5)


class BreaksSpec(CountingEnv):
    """Returns data that differs from its specs in one way."""

    def __init__(self, num_envs, *, reward=(1,), key="reward", **given):
        super().__init__(num_envs)
        self.reward_spec = Composite({key: Unbounded((num_envs, *reward))}, shape=[num_envs])
        self.given = given

    def change(self, data):
        for key, value in self.given.items():
            data = data.exclude(key) if value is None else data.set(key, value.expand(*self.batch_size, *value.shape))
        return data

    def _reset(self, data=None, **kwargs):
        return self.change(super()._reset(data, **kwargs)).exclude("reward", "score")

    def _step(self, data):
        return self.change(super()._step(data))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward": (2,)}, "a reward of shape (2, 2) torch.float32 under 'reward'"),
        ({"key": "score", "score": torch.zeros(1)}, "its reward under 'score'"),
        ({"observation": torch.zeros(1)}, "'observation' has shape (2, 1), the environment's spec says (2, 2)"),
        ({"observation": torch.zeros(3)}, "'observation' has shape (2, 3), the environment's spec says (2, 2)"),
        ({"observation": torch.zeros(2, dtype=torch.int64)}, "'observation' has dtype torch.int64"),
        (
            {"observation": torch.tensor([1e39, 0.0], dtype=torch.float64)},
            "'observation' of its first reset is not finite",
        ),
        ({"observation": torch.full((2,), math.nan)}, "'observation' of its first reset is not finite"),
        ({"observation": None}, "'observation' is missing"),
    ],
)
def test_data_that_does_not_match_its_spec_is_refused(given, message):
    assert message in refused(lambda num_envs, seed: BreaksSpec(num_envs, **given))


def test_an_entry_that_is_declared_but_missing_in_a_step_is_named():
    class Silent(ReportingEnv):
        def _step(self, data):
            return super()._step(data).exclude("success")

    error = refused(Silent)
    assert "task 'mine': its step returns no 'success', which its observation spec declares" in error


class FixedReward(CountingEnv):
    def __init__(self, num_envs, reward):
        super().__init__(num_envs)
        self.reward = reward

    def _step(self, data):
        reached = super()._step(data)
        return reached.exclude("reward") if self.reward is None else reached.set("reward", self.reward)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (None, "its step returns no 'reward' that fits its spec of shape (2, 1)"),
        (torch.zeros(2, 3), "its step returns no 'reward' that fits its spec of shape (2, 1)"),
        (torch.full((2, 1), math.inf), "the 'reward' of its first step is not finite as float32"),
    ],
)
def test_a_reward_that_does_not_match_its_spec_is_refused(reward, message):
    assert message in refused(lambda num_envs, seed: FixedReward(num_envs, reward))


def test_half_floats_are_kept_exactly():
    class Half(CountingEnv):
        def __init__(self, num_envs):
            super().__init__(num_envs)
            self.observation_spec = Composite(observation=vector(2, dtype=torch.float16)(num_envs), shape=[num_envs])

        def _reset(self, data=None, **kwargs):
            return super()._reset(data, **kwargs).set("observation", torch.full((2, 2), 0.1, dtype=torch.float16))

        def _step(self, data):
            return super()._step(data).set("observation", torch.full((2, 2), 0.1, dtype=torch.float16))

    sim = Task("mine", "torchrl", lambda num_envs, seed: Half(num_envs)).make_sim(2)
    assert started(sim).observation[0, 0] == np.float32(np.float16(0.1))


def test_flags_that_can_not_be_read_are_refused():
    message = refused(lambda n, seed: EndsWith(n, "truncated"))
    assert "'truncated' of shape (2, 1) torch.bool: its full_done_spec must have 'done', 'terminated'" in message
    assert "'done' of shape (2, 3)" in refused(lambda n, seed: EndsWith(n, "done", width=3))


def test_a_spec_that_raises_is_named():
    message = refused(lambda num_envs, seed: TransformedEnv(PointEnv(num_envs, seed), ExcludeTransform("nothing")))
    assert "task 'mine': its spec raised KeyError: " in message


def test_a_timers_entries_are_no_observations():
    spec = Task("mine", "torchrl", lambda num_envs, seed: TransformedEnv(PointEnv(num_envs, seed), Timer())).spec
    assert spec.observation_size == 2


def test_the_error_of_a_missing_gymnasium_names_the_extra():
    def maker(num_envs, seed):
        raise ModuleNotFoundError("Supported version of 'torchrl.envs.libs.gym.GymEnv' has not been found.")

    assert 'pip install -e ".[gym]"' in refused(maker)
    assert "pip" not in refused(lambda num_envs, seed: GymEnv("Pendullum-v1"))
    assert "Pendullum" in refused(lambda num_envs, seed: GymEnv("Pendullum-v1"))


# The same environment returned twice


def test_one_environment_for_several_copies_is_refused():
    alone = PointEnv(1, 0, batched=False)
    assert "returned the same environment twice" in refused(lambda num_envs, seed: alone)


def test_one_environment_inside_wrappers_is_refused():
    alone, pool = PointEnv(1, 0, batched=False), gym.make("Pendulum-v1")
    assert "same environment twice" in refused(lambda num_envs, seed: TransformedEnv(alone, StepCounter(5)))
    assert "same environment twice" in refused(lambda num_envs, seed: GymWrapper(gym.wrappers.ClipReward(pool, 0, 1)))


def test_one_environment_as_several_of_a_batch_is_refused():
    alone = gym.make("Pendulum-v1")

    def maker(num_envs, seed):
        mode = gym.vector.AutoresetMode.DISABLED
        return GymWrapper(gym.vector.SyncVectorEnv([lambda: alone] * num_envs, autoreset_mode=mode))

    assert "returned the same environment twice" in refused(maker)


def test_one_environment_for_several_tasks_or_calls_is_refused():
    batch = PointEnv(3, 0)
    first, second = (Task(name, "torchrl", lambda num_envs, seed: batch) for name in ("first", "second"))
    sim = first.make_sim(3)
    with pytest.raises(UsageError, match="task 'second' returned the same environment twice"):
        second.make_sim(3)
    sim.close()
    with pytest.raises(UsageError, match="task 'first' returned the same environment twice"):
        first.make_sim(3)


# Environments that reset themselves


def vectors(mode):
    def maker(num_envs, seed):
        settings = {"vector_kwargs": {"autoreset_mode": mode}, "vectorization_mode": "sync", "max_episode_steps": 4}
        return GymWrapper(gym.make_vec("Pendulum-v1", num_envs=num_envs, **settings))

    return maker


def auto_reset(num_envs, seed):
    return PointEnv(num_envs, seed, auto_reset=True)


def gyms_autoreset(num_envs, seed):
    return GymWrapper(gym.wrappers.Autoreset(gym.make("Pendulum-v1")))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("maker", [vectors(gym.vector.AutoresetMode.SAME_STEP), auto_reset, gyms_autoreset])
def test_environments_that_reset_themselves_are_refused(maker):
    message = refused(maker)
    assert "resets itself" in message
    assert "one unbatched environment" in message


# Resets of some copies


class Naive(PointEnv):
    """Its reset restarts every copy."""

    def _reset(self, tensordict=None):
        return super()._reset()


class NaiveGlobal(Naive):
    """Draws its starts from torch's generator of the process."""

    def _reset(self, tensordict=None):
        self._generator = None
        return super()._reset()


class NaiveCounting(CountingEnv):
    def _reset(self, data=None, **kwargs):
        return super()._reset()


@pytest.mark.parametrize(
    "maker",
    [Naive, NaiveGlobal, lambda n, seed: NaiveCounting(n), lambda n, seed: TransformedEnv(Naive(n, seed), RewardSum())],
)
def test_an_environment_that_restarts_all_copies_is_refused(maker):
    message = refused(maker)
    assert "its reset of one copy restarts the others" in message
    assert "return one unbatched environment" in message


class Constant(CountingEnv):
    def _state(self):
        return {**super()._state(), "observation": torch.ones(*self.batch_size, 2)}


class Bandit(PointEnv):
    """Each observation is a new draw."""

    def _step(self, tensordict):
        data = super()._step(tensordict)
        return data.set("observation", torch.rand(data["observation"].shape, generator=self._generator))


class Noisy(PointEnv):
    """Its steps are random."""

    def _step(self, tensordict):
        self._state = self._state + torch.randn(self._state.shape, generator=self._generator)
        return super()._step(tensordict)


class Unseeded(PointEnv):
    """Its starts don't follow set_seed."""

    generator = torch.Generator()

    def _set_seed(self, seed):
        self._generator = self.generator


class Alternating(PointEnv):
    """All that is observed of an episode is its goal, one of two in turn."""

    turn = 0

    def _reset(self, tensordict=None):
        mask = None if tensordict is None else tensordict.get("_reset")
        if mask is None or mask.all():
            self.turn = 1 - self.turn
        goal = torch.full_like(self._state, self.turn)
        self._goal = goal if mask is None else torch.where(mask, goal, self._goal)
        return super()._reset(tensordict).set("observation", self._goal.clone())

    def _step(self, tensordict):
        return super()._step(tensordict).set("observation", self._goal.clone())


class Stateless(PointEnv):
    """Keeps its state in the TensorDict, into which TorchRL writes only the copies that are reset."""

    def __init__(self, num_envs, seed):
        size = (num_envs, 1)
        super().__init__(num_envs, seed, observation={"observation": vector(2)(num_envs), "count": Unbounded(size)})
        self.state_spec = Composite(count=Unbounded(size), shape=[num_envs])

    def _reset(self, tensordict=None):
        return super()._reset().set("observation", torch.zeros(*self.batch_size, 2)).set("count", self._state[:, 1:])

    def _step(self, tensordict):
        count = tensordict["count"] + 1
        return super()._step(tensordict).set("observation", count.expand(-1, 2).clone()).set("count", count)


class SetSeedFails(PointEnv):
    made = False

    def _set_seed(self, seed):
        if self.made:
            raise NotImplementedError("this simulator can't be seeded")
        self.made = True
        super()._set_seed(seed)


class ResetsAllAtOnce(CountingEnv):
    def _reset(self, data=None, **kwargs):
        assert data is None or data["_reset"].all(), "its copies end together"
        return super()._reset()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "maker",
    [
        *(MAKERS[name] for name in ("plain", "several", "skip", "serial", "stateless")),
        *(Bandit, Noisy, Unseeded, Alternating, Stateless, SetSeedFails),
        lambda n, seed: vectors(gym.vector.AutoresetMode.DISABLED)(n, seed),
        lambda n, seed: Constant(n),
        lambda n, seed: ResetsAllAtOnce(n),
        lambda n, seed: CountingEnv(n, truncate_after=1),
        lambda n, seed: CountingEnv(n, truncate_after=2),
    ],
)
def test_environments_that_may_reset_some_copies_are_accepted(maker):
    assert Task("mine", "torchrl", maker).spec


def test_the_draws_of_the_users_process_go_on_when_a_task_is_tried():
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    assert Task("mine", "torchrl", drawing).spec
    assert torch.rand(()) == expected


# Running normalisation


def normalised(kind, **settings):
    wrapper = getattr(gym.wrappers, kind)

    def maker(num_envs, seed):
        env = wrapper(gym.make("Pendulum-v1"))
        for name, value in settings.items():
            setattr(env, name, value)
        return TransformedEnv(GymWrapper(gym.wrappers.ClipReward(env, -10, 0)), DoubleToFloat())

    return maker


def vec_norm(kind):
    def maker(num_envs, seed):
        norm = kind(["observation"], ["observation"])
        return TransformedEnv(PointEnv(num_envs, seed), Compose(StepCounter(4), norm))

    return maker


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("maker", "kind"),
    [
        (vec_norm(VecNormV2), "VecNormV2"),
        (vec_norm(VecNorm), "VecNorm"),
        (normalised("NormalizeObservation"), "NormalizeObservation"),
        (normalised("NormalizeReward"), "NormalizeReward"),
    ],
)
def test_running_normalisation_is_refused(maker, kind):
    message = refused(maker)
    assert f"task 'mine': {kind} has running statistics" in message
    assert "mtray normalises observations and scales rewards itself: drop " in message


@pytest.mark.filterwarnings("ignore")
def test_frozen_normalisation_is_accepted():
    assert Task("mine", "torchrl", normalised("NormalizeReward", update_running_mean=False)).spec


def test_a_vector_environment_that_does_not_reset_itself_is_accepted():
    sim = Task("mine", "torchrl", vectors(gym.vector.AutoresetMode.DISABLED)).make_sim(3, seed=1)
    out = started(sim)
    for _ in range(4):
        last = out.observation.copy()
        sim.step(np.zeros((3, 1), np.float32), out)
    assert out.truncated.all()
    # Pendulums move little in a step, so the observation is not that of a reset.
    assert np.abs(out.observation - last).max() < 1.5
    reached = out.observation.copy()
    sim.reset(np.array([True, False, True]), out.observation)
    assert np.array_equal(out.observation[1], reached[1])
    assert not np.isclose(out.observation[[0, 2]], reached[[0, 2]]).any()


class ResetsItself(CountingEnv):
    def _step(self, data):
        reached = super()._step(data)
        if reached["done"].any():
            super()._reset(TensorDict({"_reset": reached["done"]}, self.batch_size))
            reached["observation"] = self._state()["observation"]
        return reached


@pytest.mark.parametrize(("kind", "warned"), [(ResetsItself, True), (CountingEnv, False)])
def test_an_episode_that_begins_with_the_last_observation_causes_one_warning(kind, warned, caplog):
    sim = Task("mine", "torchrl", lambda n, seed: kind(n, truncate_after=3)).make_sim(2)
    out = started(sim)
    with caplog.at_level(logging.WARNING, "mtray"):
        for _ in range(9):
            sim.step(np.zeros((2, 1), np.float32), out)
            if out.truncated.any():
                sim.reset(out.truncated, out.observation)
    assert caplog.text.count("task 'mine': an episode begins with the last observation of the episode before") == warned
