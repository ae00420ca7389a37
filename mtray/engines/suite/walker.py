"""walker: stand, walk, run."""

from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, Entries, View, tolerance

_STAND_HEIGHT = 1.2


class TaskView(View):
    """Orientations of the bodies, height of the torso, velocities; reward for standing upright at the task's speed."""

    def _bind(self, sims: Batch, task: Any) -> None:
        self._speed = task._move_speed
        self._frames = sims.bind("xmat")[:, 1:]
        self._torso = sims.body("torso")
        self._upright, self._height = self._torso.xmat[:, 8], self._torso.xpos[:, 2]
        self._velocity = sims.sensor("torso_subtreelinvel").data

    def observe(self) -> Entries:
        """See base class."""
        return self._frames[..., [0, 2]], self._height, self._qvel

    def reward(self) -> Array:
        """See base class."""
        standing = tolerance(self._height, (_STAND_HEIGHT, np.inf), _STAND_HEIGHT / 2)
        reward = (3 * standing + (1 + self._upright) / 2) / 4
        if self._speed:
            move = tolerance(self._velocity[:, 0], (self._speed, np.inf), self._speed / 2, "linear", 0.5)
            reward = reward * (5 * move + 1) / 6
        return reward
