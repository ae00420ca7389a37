"""Tiny environments with known answers, for mtray's tests and for its users' own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase


class CountingEnv(EnvBase):
    """K counters: the observation is the number of steps since the reset, and the reward rewards one action.

    Reward: 1 - (action - target)^2 of the first action entry, so the best return of an episode of n steps is n.

    Args:
        num_envs: K.
        target: the best action.
        terminate_after: steps after which an episode terminates; None for never.
        truncate_after: steps after which it is truncated; None for never.
        observation_size: entries of the observation, all the same number.
        action_size: entries of the action.
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
        self._limits = (terminate_after, truncate_after)
        self._size = observation_size
        self._steps = torch.zeros(num_envs, 1)
        self.observation_spec = Composite(observation=Unbounded((num_envs, observation_size)), shape=[num_envs])
        self.action_spec = Bounded(-1.0, 1.0, (num_envs, action_size))
        self.reward_spec = Unbounded((num_envs, 1))
        flags = {key: Binary(1, (num_envs, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        self.full_done_spec = Composite(flags, shape=[num_envs])

    def _state(self) -> dict[str, Any]:
        ends = [torch.zeros_like(self._steps, dtype=torch.bool) for _ in range(2)]
        for end, limit in zip(ends, self._limits, strict=True):
            if limit is not None:
                end |= self._steps >= limit
        terminated, truncated = ends
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


@dataclass(frozen=True)
class CountingMaker:
    """A picklable maker of `CountingEnv`; the fields are its arguments."""

    target: float = 0.5
    terminate_after: int | None = None
    truncate_after: int | None = None
    observation_size: int = 2
    action_size: int = 1

    def __call__(self, num_envs: int, seed: int) -> CountingEnv:
        """Build K counters; they draw nothing, so the seed is not used."""
        return CountingEnv(
            num_envs,
            target=self.target,
            terminate_after=self.terminate_after,
            truncate_after=self.truncate_after,
            observation_size=self.observation_size,
            action_size=self.action_size,
        )
