"""One TorchRL environment, advanced as TorchRL's own rollouts do.

The TensorDict that a step leaves behind is the next one's start, so transforms and stateless environments find in it
what they wrote there. Enters: actions as numpy arrays. Leaves: TensorDicts, as the environment wrote them.
"""

from __future__ import annotations

import functools
from typing import cast

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from mtray.data.specs import ACTION, NEXT, FloatArray
from mtray.engines.base import BoolArray


class RunningEnv:
    """An environment that a maker returned, and where its rollout stands.

    Attributes:
        env: the environment.
        where: which of the task's copies it steps.
        size: their number.
        root: the TensorDict that its next step starts from; None before the first reset.
        ended: which of its copies the last step ended.
        reached: observations that the last step reached, in the array that they were written to.
    """

    def __init__(self, env: EnvBase, where: slice) -> None:
        """Take an environment that was not reset yet."""
        self.env = env
        self.where = where
        self.size = where.stop - where.start
        self.root: TensorDictBase | None = None
        self.ended = np.zeros(self.size, np.bool_)
        self.reached: FloatArray = np.zeros((self.size, 0), np.float32)
        self._device = env.device or torch.device("cpu")

    @functools.cached_property
    def _action_layout(self) -> tuple[torch.Size, torch.dtype]:
        # TorchRL assembles a spec at each look.
        spec = self.env.full_action_spec[ACTION]
        return spec.shape, spec.dtype

    def reset(self, mask: BoolArray) -> TensorDictBase:
        """Start episodes where ``mask`` is true, at first everywhere; returns the new root."""
        if self.root is None:
            self.root = cast(TensorDictBase, self.env.reset())
        else:
            flag = torch.from_numpy(mask.copy()).view(*self.env.batch_size, 1).to(self._device)
            # As TorchRL's own maybe_reset: entries of the last episode are no arguments of the reset.
            self.root = cast(TensorDictBase, self.env.reset(self.root.set("_reset", flag), select_reset_only=True))
        return self.root

    def step(self, action: FloatArray) -> TensorDictBase:
        """Step with ``action`` [size, act_t] and advance; returns what the step reached."""
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
