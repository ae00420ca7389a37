"""Specs, random transitions with special floats, and users' makers (`tests.makers:point`) for tests."""

import random

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from mtray.data.rollout import pack
from mtray.data.specs import DONE_KEYS, NEXT, TaskSpec, task_key
from mtray.data.tensordicts import to_rollout
from mtray.engines.base import StepArrays
from mtray.testing import CountingEnv, CountingMaker

# -0.0, the smallest and largest denormal, infinities, NaNs with payloads of both signs (one signalling).
AWKWARD = (0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F800001)


def make_spec(name="left", observation=3, action=2, **changes):
    """Return a spec with these widths."""
    fields = {
        "name": name,
        "engine": "test",
        "observation": (("first", 1), ("rest", observation - 1)) if observation > 1 else (("first", observation),),
        "action_low": (-1.0,) * action,
        "action_high": (1.0,) * action,
        "horizon": 10,
        "time_step_seconds": 0.02,
    }
    return TaskSpec(**{**fields, **changes})


def awkward(generator, *shape, finite=False):
    """Return float32 of random bits, a quarter from `AWKWARD`; if ``finite``, without infinities and NaNs."""
    bits = generator.integers(0, 2**32, size=shape, dtype=np.uint32)
    chosen = np.array(AWKWARD, np.uint32)[generator.integers(0, len(AWKWARD), size=shape)]
    bits = np.where(generator.random(shape) < 0.25, chosen, bits)
    special = (bits & 0x7F800000) == 0x7F800000
    return np.where(special & finite, bits & 0xBFFFFFFF, bits).astype(np.uint32).view(np.float32)


def to_data(spec, width, observation, reached, *, action, reward, flags, shared=False):
    """Return a task's TensorDict; ``flags`` maps keys to bools; if ``shared``, exclusive observations are views."""
    size = list(observation.shape[:-1])

    def observations(values):
        common = torch.zeros(*size, width)
        common.numpy()[..., : spec.observation_size] = values
        exclusive = common[..., : spec.observation_size]
        return {"observation": common, task_key(spec.name): exclusive if shared else exclusive.clone()}

    def ends(prefix):
        return {key: torch.from_numpy(flags[(*prefix, key)].copy()).unsqueeze(-1) for key in DONE_KEYS}

    after = {**observations(reached), **ends((NEXT,)), "reward": torch.from_numpy(reward.copy()).unsqueeze(-1)}
    before = {**observations(observation), **ends(()), "action": torch.from_numpy(action.copy())}
    return TensorDict({**before, NEXT: TensorDict(after, size)}, size)


def pack_data(data, spec, width):
    """Return the rows of a task's TensorDict, checked as `ReplayBuffer.extend` does."""
    return pack(to_rollout(data, spec, width))


def random_flags(generator, *size, share=0.3):
    """Return independent random flags: storage must not depend on their meaning."""
    return {(*prefix, key): generator.random(size) < share for prefix in ((), (NEXT,)) for key in DONE_KEYS}


def random_rollout(spec, width, lanes, steps, generator, *, ends=0.3, shared=False, finite=False):
    """Return a rollout [K, L] and breaks [K, L] bool, the steps whose next observation is not the following one."""
    size = spec.observation_size
    observation = awkward(generator, lanes, steps, size, finite=finite)
    reached = awkward(generator, lanes, steps, size, finite=finite)
    breaks = generator.random((lanes, steps)) < ends
    breaks[:, -1:] = True
    # Copied as integers: a float assignment may change a signalling NaN.
    follows = ~breaks[:, :-1]
    reached.view(np.int32)[:, :-1][follows] = observation.view(np.int32)[:, 1:][follows]
    # At a break both may be equal by chance: flip a bit there.
    same = (reached.view(np.int32)[:, :-1] == observation.view(np.int32)[:, 1:]).all(-1) & ~follows
    reached.view(np.int32)[:, :-1, 0][same] ^= 1
    data = to_data(
        spec,
        width,
        observation,
        reached,
        action=awkward(generator, lanes, steps, spec.action_size, finite=finite),
        reward=awkward(generator, lanes, steps, finite=finite),
        flags=random_flags(generator, lanes, steps),
        shared=shared,
    )
    return data, breaks


def random_transitions(spec, width, count, generator):
    """Return independent transitions [N]."""
    return to_data(
        spec,
        width,
        awkward(generator, count, spec.observation_size),
        awkward(generator, count, spec.observation_size),
        action=awkward(generator, count, spec.action_size),
        reward=awkward(generator, count),
        flags=random_flags(generator, count),
    )


def numbered_rollout(spec, width, breaks, first):
    """Return a rollout [K, L] whose states are numbered from ``first``; every observation entry is the number.

    Also returns (state, next state, whether there is a break) of each transition in order, and the next free number.
    """
    lanes, steps = breaks.shape
    observation, reached = np.zeros((lanes, steps), np.float32), np.zeros((lanes, steps), np.float32)
    record, number = [], first
    for lane in range(lanes):
        for step in range(steps):
            state, number = number, number + 1
            broken = bool(breaks[lane, step]) or step == steps - 1
            after = number
            number += broken
            observation[lane, step], reached[lane, step] = state, after
            record.append((state, after, broken))
    flags = {key: np.zeros((lanes, steps), bool) for key in random_flags(np.random.default_rng(0), 1)}
    flags[NEXT, "truncated"], flags[NEXT, "done"] = breaks.copy(), breaks.copy()
    spread = np.ones(spec.observation_size, np.float32)
    action = np.repeat(observation[..., None] * 0.5, spec.action_size, -1)
    data = to_data(
        spec, width, observation[..., None] * spread, reached[..., None] * spread, action=action,
        reward=-observation, flags=flags,
    )  # fmt: skip
    return data, record, number


def leaf_bits(data):
    """Return a TensorDict's leaves as {key: int32 or bool array}."""
    return {key: bits(value) for key, value in data.items(include_nested=True, leaves_only=True)}


def bits(tensor):
    """Return a float32 tensor's bits, or another tensor as an array."""
    array = tensor.contiguous().numpy()
    return array.view(np.int32) if array.dtype == np.float32 else array


def assert_same_bits(found, expected):
    """Assert that two TensorDicts have the same keys, shapes and bits."""
    found, expected = leaf_bits(found), leaf_bits(expected)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        np.testing.assert_array_equal(found[key], value, err_msg=str(key))


def started(sim):
    """Reset all copies of a simulator and return the arrays that hold their observations."""
    out = StepArrays.empty(sim.num_envs, sim.spec)
    sim.reset(np.ones(sim.num_envs, bool), out.observation)
    return out


class PointEnv(EnvBase):
    """A point that the action moves; terminates beyond 2, is truncated after five steps."""

    def __init__(self, num_envs, seed, *, batched=True, observation=None, action=None):
        super().__init__(batch_size=[num_envs] if batched else [])
        size = self.batch_size
        self.observation_spec = Composite(observation or {"observation": Unbounded((*size, 2))}, shape=size)
        self.action_spec = action or Bounded(-0.5, 0.5, (*size, 1))
        self.reward_spec = Unbounded((*size, 1))
        self.full_done_spec = Composite({key: Binary(1, (*size, 1), dtype=torch.bool) for key in DONE_KEYS}, shape=size)
        self._state = torch.zeros(*size, 2)
        self._set_seed(seed)

    def _set_seed(self, seed):
        self._generator = torch.Generator().manual_seed(seed)

    def _reset(self, tensordict=None):
        start = torch.rand(self._state.shape, generator=self._generator)
        start[..., 1] = 0
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self._state = start if mask is None else torch.where(mask, start, self._state)
        return TensorDict({"observation": self._state.clone()}, self.batch_size)

    def _step(self, tensordict):
        self._state = torch.stack([self._state[..., 0] + tensordict["action"][..., 0], self._state[..., 1] + 1], -1)
        terminated = self._state[..., :1].abs() > 2
        truncated = (self._state[..., 1:] >= 5) & ~terminated
        ends = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        reward = self._state[..., :1].clone()
        return TensorDict({"observation": self._state.clone(), "reward": reward, **ends}, self.batch_size)


def point(num_envs, seed):
    return PointEnv(num_envs, seed)


endless = CountingMaker()


def single_point(num_envs, seed):
    return PointEnv(num_envs, seed, batched=False)


class Nested:
    """Has a maker, since a path may go deeper than a module."""

    point = staticmethod(point)


def raising(num_envs, seed):
    raise FileNotFoundError("no arena.xml")


def with_held(held, num_envs, seed):
    return PointEnv(num_envs, seed)


class BrokenAtOnce(PointEnv):
    def _step(self, tensordict):
        raise ZeroDivisionError("no time left")


def broken_at_once(num_envs, seed):
    return BrokenAtOnce(num_envs, seed)


def garbage(num_envs, seed):
    return {"not": "an environment"}


def wrong_batch(num_envs, seed):
    return PointEnv(num_envs + 1, seed)


def vector(*shape, dtype=torch.float32):
    return lambda num_envs: Unbounded((num_envs, *shape), dtype=dtype)


def observing(**specs):
    """Return a maker of points with these observations, each a function of ``num_envs``."""
    return lambda num_envs, seed: PointEnv(num_envs, seed, observation={k: s(num_envs) for k, s in specs.items()})


def discrete_action(num_envs, seed):
    return PointEnv(num_envs, seed, action=Categorical(4, (num_envs,)))


async def later(num_envs, seed):
    return PointEnv(num_envs, seed)


NOT_CALLABLE = 3


class Drawing(CountingEnv):
    """Starts where the process's generators say: those of torch, numpy and random."""

    def __init__(self, num_envs):
        super().__init__(num_envs, truncate_after=3, observation_size=3)
        self._start = torch.zeros(num_envs, 3)

    def _state(self):
        return {**super()._state(), "observation": self._start.clone()}

    def _reset(self, data=None, **kwargs):
        mask = slice(None) if data is None or "_reset" not in data else data["_reset"][:, 0]
        draws = [(torch.rand(()).item(), np.random.rand(), random.random()) for _ in range(self.batch_size[0])]
        self._start[mask] = torch.tensor(draws)[mask]
        return super()._reset(data, **kwargs)


def drawing(num_envs, seed):
    return Drawing(num_envs)


class ReportingEnv(PointEnv):
    """A point that reports whether it was at 1 once, and how many steps it has made."""

    def __init__(self, num_envs, seed):
        entries = {
            "observation": Unbounded((num_envs, 2)),
            "success": Unbounded((num_envs,), dtype=torch.bool),
            "info": Composite({"steps": Unbounded((num_envs, 1)), "text": Unbounded((num_envs, 3))}, shape=(num_envs,)),
        }
        super().__init__(num_envs, seed, observation=entries)

    def _report(self, data):
        report = TensorDict(
            {"steps": self._state[..., 1:].clone(), "text": torch.zeros(*self.batch_size, 3)}, self.batch_size
        )
        # At the second step only.
        return data.set("success", self._state[..., 1] == 2).set("info", report)

    def _reset(self, tensordict=None):
        return self._report(super()._reset(tensordict))

    def _step(self, tensordict):
        return self._report(super()._step(tensordict))


def reporting(num_envs, seed):
    return ReportingEnv(num_envs, seed)
