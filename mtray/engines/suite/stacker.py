"""stacker: stack_2, stack_4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dm_control.suite import stacker

from mtray.engines.suite.base import Array, Batch, View, addresses, norm, pose, tolerance

_CLOSE = 0.01


class TaskView(View):
    """The arm, what it touches, where hand, boxes and target are; reward for a box at the target, the hand away."""

    model_fields = ("body_pos",)

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._qpos, self._qvel, self._touch = sims.bind("qpos"), sims.bind("qvel"), sims.bind("sensordata")
        self._arm_pos = addresses(sims, stacker._ARM_JOINTS, "qposadr")
        self._arm_vel = addresses(sims, stacker._ARM_JOINTS, "dofadr")
        self._box_vel = addresses(sims, task._box_joint_names, "dofadr")
        self._hand, self._target = sims.body("hand"), sims.body("target").xpos
        self._boxes = [sims.body(name) for name in task._box_names]
        self._size = sims.model.geom("target").size[0]
        self._places = [sims.site(name).xpos for name in (*task._box_names, "grasp")]
        self._goal = sims.site("target").xpos

    def observe(self) -> Sequence[Array]:
        """See the base class."""
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
        """See the base class."""
        *boxes, hand = [norm(place - self._goal) for place in self._places]
        close = tolerance(np.min(boxes, 0), margin=2 * self._size)
        return close * tolerance(hand, (0.1, np.inf), _CLOSE)
