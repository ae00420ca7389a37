"""walker: stand, walk, run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, View, tolerance

_STAND_HEIGHT = 1.2


class TaskView(View):
    """The bodies' orientations, the torso's height, velocities; reward for standing upright and speed."""

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._speed = task._move_speed
        self._qvel = sims.bind("qvel")
        self._frames = sims.bind("xmat")[:, 1:]
        self._torso = sims.body("torso")
        self._upright, self._height = self._torso.xmat[:, 8], self._torso.xpos[:, 2]
        self._velocity = sims.sensor("torso_subtreelinvel").data

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        return self._frames[..., [0, 2]], self._height, self._qvel

    def reward(self) -> Array:
        """See the base class."""
        standing = tolerance(self._height, (_STAND_HEIGHT, np.inf), _STAND_HEIGHT / 2)
        reward = (3 * standing + (1 + self._upright) / 2) / 4
        if self._speed:
            move = tolerance(self._velocity[:, 0], (self._speed, np.inf), self._speed / 2, "linear", 0.5)
            reward = reward * (5 * move + 1) / 6
        return reward
