"""humanoid: stand, walk, run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, View, along, mean_tolerance, norm, tolerance

_STAND_HEIGHT = 1.4


class TaskView(View):
    """Joint angles, where head and hands are, how the body moves; reward for standing upright and moving as told."""

    torso = "torso"
    limbs = ("left_hand", "left_foot", "right_hand", "right_foot")
    # The entry of the torso's rotation matrix that tells how upright it is.
    spine = 8

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._speed = task._move_speed
        self._pure = getattr(task, "_pure_state", False)
        self._qpos, self._qvel, self._ctrl = sims.bind("qpos"), sims.bind("qvel"), sims.bind("ctrl")
        self._xpos = sims.bind("xpos")
        self._frame, self._torso = sims.body(self.torso).xmat, sims.body(self.torso).xpos
        self._head = sims.body("head").xpos
        self._limbs = [sims.model.body(name).id for name in self.limbs]
        self._velocity = sims.sensor(f"{self.torso}_subtreelinvel").data

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        if self._pure:
            return self._qpos, self._qvel
        reach = self._xpos[:, self._limbs] - self._torso[:, None]
        return (
            self._qpos[:, 7:],
            self._head[:, 2],
            along(reach, self._frame),
            self._frame[:, 6:],
            self._velocity,
            self._qvel,
        )

    def reward(self) -> Array:
        """See the base class."""
        standing = tolerance(self._head[:, 2], (_STAND_HEIGHT, np.inf), _STAND_HEIGHT / 4)
        upright = tolerance(self._frame[:, self.spine], (0.9, np.inf), 1.9, "linear", 0)
        small_control = (4 + mean_tolerance(self._ctrl)) / 5
        if self._speed == 0:
            move = tolerance(self._velocity[:, :2], margin=2).mean(-1)
        else:
            speed = norm(self._velocity[:, :2])
            move = (5 * tolerance(speed, (self._speed, np.inf), self._speed, "linear", 0) + 1) / 6
        return small_control * (standing * upright) * move
