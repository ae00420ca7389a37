"""ball_in_cup: catch."""

from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, Entries, View


class TaskView(View):
    """Positions and velocities; reward while the ball is in the cup."""

    def _bind(self, sims: Batch, task: Any) -> None:
        self._target, self._ball = sims.site("target").xpos, sims.body("ball").xpos
        self._max_distance = sims.model.site("target").size[[0, 2]] - sims.model.geom("ball").size[0]

    def observe(self) -> Entries:
        """See base class."""
        return self._qpos, self._qvel

    def reward(self) -> Array:
        """See base class."""
        distance = np.abs(self._target - self._ball)[:, [0, 2]]
        return (distance < self._max_distance).all(-1).astype(np.float64)
