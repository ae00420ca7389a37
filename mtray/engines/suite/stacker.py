"""stacker: stack_2, stack_4."""

from typing import Any

import numpy as np
from dm_control.suite import stacker

from mtray.engines.suite.base import Array, Batch, Entries, View, addresses, norm, pose, tolerance

_CLOSE = 0.01


class TaskView(View):
    """Arm, touch, hand, boxes, target; reward for a box at the target and the hand away from it."""

    model_fields = ("body_pos",)

    def _bind(self, sims: Batch, task: Any) -> None:
        self._touch = sims.bind("sensordata")
        self._arm_pos = addresses(sims, stacker._ARM_JOINTS, "qposadr")
        self._arm_vel = addresses(sims, stacker._ARM_JOINTS, "dofadr")
        self._box_vel = addresses(sims, task._box_joint_names, "dofadr")
        self._hand, self._target = sims.body("hand"), sims.body("target").xpos
        self._boxes = [sims.body(name) for name in task._box_names]
        self._size = sims.model.geom("target").size[0]
        self._points = [sims.site(name).xpos for name in (*task._box_names, "grasp")]
        self._goal = sims.site("target").xpos

    def observe(self) -> Entries:
        """See base class."""
        angles = self._qpos[:, self._arm_pos]
        return (
            np.stack([np.sin(angles), np.cos(angles)], -1),
            self._qvel[:, self._arm_vel],
            np.log1p(self._touch),
            pose(self._hand),
            np.hstack([pose(box) for box in self._boxes]),
            self._qvel[:, self._box_vel],
            self._target[:, [0, 2]],
        )

    def reward(self) -> Array:
        """See base class."""
        *boxes, hand = [norm(point - self._goal) for point in self._points]
        close = tolerance(np.min(boxes, 0), margin=2 * self._size)
        return close * tolerance(hand, (0.1, np.inf), _CLOSE)
