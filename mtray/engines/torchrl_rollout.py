"""One TorchRL environment, stepped as TorchRL's rollouts step it.

Each step starts from the TensorDict of the step before, so that entries of transforms and of stateless environments
persist. Enters: actions as numpy arrays. Leaves: the environment's TensorDicts.

`restarts_all_copies` finds batched environments whose reset of some copies restarts the others too.
"""

from __future__ import annotations

import contextlib
import functools
from typing import cast

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from mtray.data.specs import ACTION, NEXT, FloatArray
from mtray.engines.base import BatchSim, BoolArray, StepArrays
from mtray.errors import MtrayError


class RunningEnv:
    """An environment and the state of its rollout.

    Attributes:
        env: the environment.
        copies: the task's copies that it steps.
        size: their number.
        root: the TensorDict that the next step starts from; None before the first reset.
        ended: [size] bool, copies whose episode the last step ended.
        last_observation: [size, obs_t], from the last step; a view of the caller's array.
    """

    def __init__(self, env: EnvBase, copies: slice) -> None:
        """Wrap an environment that was not reset yet."""
        self.env = env
        self.copies = copies
        self.size = copies.stop - copies.start
        self.root: TensorDictBase | None = None
        self.ended = np.zeros(self.size, np.bool_)
        self.last_observation: FloatArray = np.zeros((self.size, 0), np.float32)
        self._device = env.device or torch.device("cpu")

    @functools.cached_property
    def _action_layout(self) -> tuple[torch.Size, torch.dtype]:
        # Cached, since TorchRL assembles a spec at each access.
        spec = self.env.full_action_spec[ACTION]
        return spec.shape, spec.dtype

    # Otherwise an environment with parameters, such as a learned model, records a graph that grows with each step.
    @torch.no_grad()
    def reset(self, mask: BoolArray) -> TensorDictBase:
        """Start episodes where ``mask`` is true, the first time in all copies; return the new root."""
        if self.root is None:
            self.root = cast(TensorDictBase, self.env.reset())
        else:
            flag = torch.from_numpy(mask.copy()).view(*self.env.batch_size, 1).to(self._device)
            # select_reset_only as in TorchRL's maybe_reset: a reset must not read entries of the last episode.
            self.root = cast(TensorDictBase, self.env.reset(self.root.set("_reset", flag), select_reset_only=True))
        return self.root

    @torch.no_grad()
    def step(self, action: FloatArray) -> TensorDictBase:
        """Step with ``action`` [size, act_t] and return the step's ``next`` entries."""
        assert self.root is not None, "reset first"
        env = self.env
        shape, dtype = self._action_layout
        values = torch.from_numpy(action).to(self._device, dtype).view(shape)
        stepped = env.step(self.root.set(ACTION, values))
        root = env._step_mdp(stepped)
        if env._post_step_mdp_hooks is not None:
            stepped, root = env._post_step_mdp_hooks(stepped, root)
        self.root = root
        return cast(TensorDictBase, stepped.get(NEXT))


def start_seeded(sim: BatchSim, out: StepArrays) -> None:
    """Start all copies, with the same draws at each call as far as they come from torch or follow `set_seed`."""
    torch.default_generator.manual_seed(0)
    with contextlib.suppress(MtrayError):
        sim.seed(0)
    sim.reset(np.ones(sim.num_envs, np.bool_), out.observation)


def restarts_all_copies(sim: BatchSim, action: FloatArray, start: FloatArray, out: StepArrays) -> bool:
    """Return whether an environment certainly restarts its second copy when only the first is reset.

    It does if the second copy then goes on as after a reset of both, and not as without a reset, though starts and
    steps are the same each time. False where they are not, where an episode ends too soon, and after an error.

    Args:
        sim: two copies after `start_seeded` and one step.
        action: [2, act_t], taken in all steps.
        start: [2, obs_t], what they started with.
        out: the result of the step; overwritten.
    """
    if (out.terminated | out.truncated).any():
        return False
    before = np.stack([start, out.observation])
    try:
        sim.step(action, out)
        without = out.observation.copy()
        found, partial = _restart(sim, action, out, 1, np.array([True, False]))
        if not np.array_equal(found, before) or np.array_equal(partial[1], without[1]):
            return False
        whole, at_once = (_restart(sim, action, out, steps, np.ones(2, np.bool_))[1] for steps in (1, 0))
    except MtrayError:
        return False
    # Equal only if steps draw no random numbers, since those of ``whole`` come after one step more.
    return np.array_equal(whole, at_once) and np.array_equal(partial[1], whole[1])


def _restart(
    sim: BatchSim, action: FloatArray, out: StepArrays, steps: int, mask: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """Start, step, reset ``mask``, step; return the observations before the reset [steps + 1, K, obs_t] and after."""
    start_seeded(sim, out)
    before = [out.observation.copy()]
    for _ in range(steps):
        sim.step(action, out)
        before.append(out.observation.copy())
    sim.reset(mask, out.observation)
    sim.step(action, out)
    return np.stack(before), out.observation.copy()
