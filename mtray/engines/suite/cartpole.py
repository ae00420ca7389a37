"""cartpole: balance and swingup, dense and sparse, one pole or more."""

from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, Entries, View, small_control, tolerance


class TaskView(View):
    """Cart position, pole angles as cosine and sine, velocities; reward for poles up and a centred cart."""

    def _bind(self, sims: Batch, task: Any) -> None:
        self._sparse = task._sparse
        self._cart_range, self._cosine_range = task._CART_RANGE, task._ANGLE_COSINE_RANGE
        self._poles = sims.bind("xmat")[:, 2:]

    def observe(self) -> Entries:
        """See base class."""
        angles = self._poles[..., [8, 2]].reshape(len(self._qpos), -1)
        return np.hstack([self._qpos[:, :1], angles]), self._qvel

    def reward(self) -> Array:
        """See base class."""
        cart, cosine = self._qpos[:, 0], self._poles[..., 8]
        if self._sparse:
            centred = tolerance(cart, self._cart_range)
            return centred * tolerance(cosine, self._cosine_range).prod(-1)
        upright = (cosine + 1) / 2
        centred = (1 + tolerance(cart, margin=2)) / 2
        small_velocity = (1 + tolerance(self._qvel[:, 1:], margin=5).min(-1)) / 2
        return upright.mean(-1) * small_control(self._ctrl) * small_velocity * centred
