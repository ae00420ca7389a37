"""cartpole: balance and swingup, dense and sparse, one pole or more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, View, tolerance


class TaskView(View):
    """The cart's position, the poles' angles as cosine and sine; reward for poles up and a centred cart."""

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._sparse = task._sparse
        self._cart_range, self._cosine_range = task._CART_RANGE, task._ANGLE_COSINE_RANGE
        self._qpos, self._qvel, self._ctrl = sims.bind("qpos"), sims.bind("qvel"), sims.bind("ctrl")
        self._poles = sims.bind("xmat")[:, 2:]

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        angles = self._poles[..., [8, 2]].reshape(len(self._qpos), -1)
        return np.hstack([self._qpos[:, :1], angles]), self._qvel

    def reward(self) -> Array:
        """See the base class."""
        cart, cosine = self._qpos[:, 0], self._poles[..., 8]
        if self._sparse:
            centred = tolerance(cart, self._cart_range)
            return centred * tolerance(cosine, self._cosine_range).prod(-1)
        upright = (cosine + 1) / 2
        centred = (1 + tolerance(cart, margin=2)) / 2
        control = tolerance(self._ctrl, margin=1, value_at_margin=0, sigmoid="quadratic")[:, 0]
        small_control = (4 + control) / 5
        small_velocity = (1 + tolerance(self._qvel[:, 1:], margin=5).min(-1)) / 2
        return upright.mean(-1) * small_control * small_velocity * centred
