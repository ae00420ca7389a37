"""Any TorchRL environment as an engine: what a user's maker returns.

A maker is a callable ``maker(num_envs, seed)`` that returns a TorchRL environment of batch size ``[num_envs]`` (or
``[]``, then it is called once per copy with a seed of its own) with one float observation vector under
``observation`` and one float action vector under ``action``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from mtray.data.specs import ACTION, OBSERVATION, REWARD, FloatArray, TaskSpec
from mtray.engines.base import BatchSim, BoolArray, StepArrays, copy_seed
from mtray.errors import UsageError

NAME = "torchrl"

Maker = Callable[[int, int], EnvBase]


class TorchrlSim(BatchSim):
    """K copies of a task that a user's maker builds."""

    def __init__(self, name: str, maker: Maker, num_envs: int, seed: int) -> None:
        """Call the maker and read its specs.

        Raises:
            UsageError: the maker raised, or what it built does not have the keys and shapes above.
        """
        self.num_envs = num_envs
        first = _make(name, maker, num_envs, seed)
        if tuple(first.batch_size) == (num_envs,):
            self._parts = [(slice(0, num_envs), first)]
        elif not first.batch_size:
            rest = [_make(name, maker, 1, copy_seed(seed, copy)) for copy in range(1, num_envs)]
            self._parts = [(slice(copy, copy + 1), env) for copy, env in enumerate([first, *rest])]
        else:
            raise UsageError(
                f"the maker of task {name!r} built an environment of batch size {tuple(first.batch_size)}: "
                f"it must be ({num_envs},), the number of copies asked for, or ()"
            )
        self.spec = _spec(name, first)
        self._action_dtype = first.action_spec.dtype

    def seed(self, seed: int) -> None:
        """Seed every environment."""
        for where, env in self._parts:
            env.set_seed(copy_seed(seed, where.start))

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        for where, env in self._parts:
            part = mask[where]
            if not part.any():
                continue
            flag = torch.from_numpy(part.copy()).view(*env.batch_size, 1)
            done = env.reset(TensorDict({"_reset": flag}, env.batch_size) if not part.all() else None)
            observation[where][part] = _rows(done, OBSERVATION, part.size)[part]

    def send(self, action: FloatArray) -> None:
        """Take the actions."""
        self._action = action.copy()

    def recv(self, out: StepArrays) -> None:
        """One step of every environment."""
        for where, env in self._parts:
            act = torch.tensor(self._action[where], dtype=self._action_dtype).view(*env.batch_size, -1)
            reached = env.step(TensorDict({ACTION: act}, env.batch_size)).get("next")
            size = where.stop - where.start
            out.observation[where] = _rows(reached, OBSERVATION, size)
            out.reward[where] = _rows(reached, REWARD, size)[:, 0]
            done = _rows(reached, "done", size)[:, 0].astype(bool)
            terminated = _rows(reached, "terminated", size)[:, 0].astype(bool)
            out.terminated[where] = terminated
            out.truncated[where] = done & ~terminated

    def close(self) -> None:
        """Close every environment."""
        for _, env in self._parts:
            if not env.is_closed:
                env.close()


def _rows(data: TensorDictBase, key: str, size: int) -> FloatArray:
    return data.get(key).reshape(size, -1).to(torch.float32).numpy()  # type: ignore[no-any-return]


def _make(name: str, maker: Maker, num_envs: int, seed: int) -> EnvBase:
    try:
        env: Any = maker(num_envs, seed)
    except Exception as error:
        raise UsageError(
            f"the maker of task {name!r} raised {type(error).__name__}: {error} "
            f"(it was called as maker({num_envs}, {seed}): number of copies, seed)"
        ) from error
    if not isinstance(env, EnvBase):
        raise UsageError(f"the maker of task {name!r} returned {type(env).__name__}, expected a torchrl EnvBase")
    return env


def _spec(name: str, env: EnvBase) -> TaskSpec:
    lead = len(env.batch_size)
    observation = env.observation_spec.get(OBSERVATION, None)
    if observation is None or len(observation.shape) != lead + 1 or not observation.dtype.is_floating_point:
        found = {key: (tuple(spec.shape), spec.dtype) for key, spec in env.observation_spec.items()}
        raise UsageError(
            f"task {name!r} has no float vector under 'observation' (its observation specs: {found}): "
            "concatenate its entries in the maker, for example with torchrl's CatTensors"
        )
    action = env.action_spec
    if env.action_key != ACTION or len(action.shape) != lead + 1 or not action.dtype.is_floating_point:
        raise UsageError(
            f"task {name!r} has an action of shape {tuple(action.shape)} and dtype {action.dtype} under "
            f"{env.action_key!r}: mtray learns continuous action vectors under 'action'"
        )
    size = action.shape[-1]
    space = getattr(action, "space", None)
    low = getattr(space, "low", torch.full((size,), -np.inf)).reshape(-1, size)[0]
    high = getattr(space, "high", torch.full((size,), np.inf)).reshape(-1, size)[0]
    return TaskSpec(
        name=name,
        engine=NAME,
        observation=((OBSERVATION, int(observation.shape[-1])),),
        action_low=tuple(low.double().tolist()),
        action_high=tuple(high.double().tolist()),
        horizon=None,
        time_step_seconds=None,
    )
