"""ball_in_cup: catch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, View


class TaskView(View):
    """Positions and velocities; reward while the ball is in the cup."""

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._qpos, self._qvel = sims.bind("qpos"), sims.bind("qvel")
        self._target, self._ball = sims.site("target").xpos, sims.body("ball").xpos
        self._room = sims.model.site("target").size[[0, 2]] - sims.model.geom("ball").size[0]

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        return self._qpos, self._qvel

    def reward(self) -> Array:
        """See the base class."""
        apart = np.abs(self._target - self._ball)[:, [0, 2]]
        return (apart < self._room).all(-1).astype(np.float64)
