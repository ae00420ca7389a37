"""Tiny environments with known optimal returns, for tests."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from mtray.data.specs import DONE_KEYS


class CountingEnv(EnvBase):
    """K counters: each entry of the observation is the number of steps since the reset.

    The reward is 1 - (action - target)^2 for the first action entry, so the best return of an episode of n steps is n.

    Args:
        num_envs: number of counters, K.
        target: the best action.
        terminate_after: steps after which an episode terminates; None for never.
        truncate_after: steps after which it is truncated; None for never.
        observation_size: width of the observation.
        action_size: width of the action.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        target: float = 0.5,
        terminate_after: int | None = None,
        truncate_after: int | None = None,
        observation_size: int = 2,
        action_size: int = 1,
    ) -> None:
        """See the class."""
        super().__init__(batch_size=torch.Size([num_envs]))
        self._target = target
        self._limits = [math.inf if limit is None else limit for limit in (terminate_after, truncate_after)]
        self._size = observation_size
        self._steps = torch.zeros(num_envs, 1)
        self.observation_spec = Composite(observation=Unbounded((num_envs, observation_size)), shape=[num_envs])
        self.action_spec = Bounded(-1.0, 1.0, (num_envs, action_size))
        self.reward_spec = Unbounded((num_envs, 1))
        flags = {key: Binary(1, (num_envs, 1), dtype=torch.bool) for key in DONE_KEYS}
        self.full_done_spec = Composite(flags, shape=[num_envs])

    def _state(self) -> dict[str, Any]:
        terminated, truncated = (self._steps >= limit for limit in self._limits)
        return {
            "observation": self._steps.expand(-1, self._size).clone(),
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated | truncated,
        }

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self._steps[... if mask is None else mask] = 0
        return TensorDict(self._state(), self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._steps += 1
        reward = 1 - (tensordict.get("action")[..., :1] - self._target) ** 2
        return TensorDict({**self._state(), "reward": reward}, self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class CountingMaker:
    """A picklable maker of `CountingEnv`, with its arguments as fields."""

    target: float = 0.5
    terminate_after: int | None = None
    truncate_after: int | None = None
    observation_size: int = 2
    action_size: int = 1

    def __call__(self, num_envs: int, seed: int) -> CountingEnv:
        """Build K counters; the seed has no effect."""
        return CountingEnv(num_envs, **dataclasses.asdict(self))
