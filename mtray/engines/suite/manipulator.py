"""manipulator: bring_ball, bring_peg, insert_ball, insert_peg."""

from typing import Any

import numpy as np
from dm_control.suite import manipulator

from mtray.engines.suite.base import Array, Batch, Entries, View, addresses, norm, pose, tolerance

_CLOSE = 0.01


class TaskView(View):
    """Arm, touch, hand, object, target; reward for the object at the target."""

    model_fields = ("body_pos", "body_quat")

    def _bind(self, sims: Batch, task: Any) -> None:
        self._is_peg = task._use_peg
        arm = manipulator._ARM_JOINTS
        self._arm_pos, self._arm_vel = addresses(sims, arm, "qposadr"), addresses(sims, arm, "dofadr")
        self._object_vel = addresses(sims, task._object_joints, "dofadr")
        self._touch = [sims.sensor(name).data for name in manipulator._TOUCH_SENSORS]
        self._bodies = [sims.body(name) for name in ("hand", task._object, task._target)]
        pairs = [("ball", "target_ball")]
        if self._is_peg:
            pairs = [("peg_grasp", "grasp"), ("peg_pinch", "pinch"), ("peg", "target_peg")]
            pairs += [("target_peg_tip", "peg_tip")]
        self._pairs = [(sims.site(first).xpos, sims.site(second).xpos) for first, second in pairs]

    def observe(self) -> Entries:
        """See base class."""
        angles = self._qpos[:, self._arm_pos]
        hand, held, target = (pose(body) for body in self._bodies)
        return (
            np.stack([np.sin(angles), np.cos(angles)], -1),
            self._qvel[:, self._arm_vel],
            np.log1p(np.hstack(self._touch)),
            hand,
            held,
            self._qvel[:, self._object_vel],
            target,
        )

    def reward(self) -> Array:
        """See base class."""
        close = [tolerance(norm(a - b), (0, _CLOSE), _CLOSE * 2) for a, b in self._pairs]
        if not self._is_peg:
            return close[0]
        grasp, pinch, bring, bring_tip = close
        return np.maximum((bring + bring_tip) / 2, (grasp + pinch) / 2 / 3)
