"""humanoid: stand, walk, run."""

from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, Entries, View, along, norm, small_control, tolerance

_STAND_HEIGHT = 1.4


class TaskView(View):
    """Joint angles, head, limbs, orientation, velocities; reward for standing upright at the task's speed."""

    torso = "torso"
    limbs = ("left_hand", "left_foot", "right_hand", "right_foot")
    # Index in the torso's rotation matrix of the cosine between the spine and the vertical.
    spine = 8

    def _bind(self, sims: Batch, task: Any) -> None:
        self._speed = task._move_speed
        self._is_pure_state = getattr(task, "_pure_state", False)
        self._xpos = sims.bind("xpos")
        self._frame, self._torso = sims.body(self.torso).xmat, sims.body(self.torso).xpos
        self._head = sims.body("head").xpos
        self._limbs = [sims.model.body(name).id for name in self.limbs]
        self._velocity = sims.sensor(f"{self.torso}_subtreelinvel").data

    def observe(self) -> Entries:
        """See base class."""
        if self._is_pure_state:
            return self._qpos, self._qvel
        limbs = self._xpos[:, self._limbs] - self._torso[:, None]
        return (
            self._qpos[:, 7:],
            self._head[:, 2],
            along(limbs, self._frame),
            self._frame[:, 6:],
            self._velocity,
            self._qvel,
        )

    def reward(self) -> Array:
        """See base class."""
        standing = tolerance(self._head[:, 2], (_STAND_HEIGHT, np.inf), _STAND_HEIGHT / 4)
        upright = tolerance(self._frame[:, self.spine], (0.9, np.inf), 1.9, "linear", 0)
        if self._speed == 0:
            move = tolerance(self._velocity[:, :2], margin=2).mean(-1)
        else:
            speed = norm(self._velocity[:, :2])
            move = (5 * tolerance(speed, (self._speed, np.inf), self._speed, "linear", 0) + 1) / 6
        return small_control(self._ctrl) * (standing * upright) * move
