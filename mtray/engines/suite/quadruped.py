"""quadruped: walk, run, fetch. Escape is not supported, since each episode has another terrain."""

from typing import Any

import mujoco
import numpy as np
from dm_control.suite import quadruped

from mtray.engines.suite.base import Array, Batch, Entries, View, along, norm, tolerance

_SENSOR = mujoco.mjtSensor


class TaskView(View):
    """Joints, inertial and force sensors, ball, target; reward for being upright at speed, or for fetching the ball."""

    unsupported = ("escape",)

    def _bind(self, sims: Batch, task: Any) -> None:
        model = sims.model
        self._is_fetch = isinstance(task, quadruped.Fetch)
        self._act = sims.bind("act")
        hinges = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
        self._angles, self._rates = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
        self._frame, self._torso = sims.body("torso").xmat, sims.body("torso").xpos
        self._velocity = sims.sensor("velocimeter").data
        self._sensors = sims.bind("sensordata")
        self._imu = _columns(model, _SENSOR.mjSENS_GYRO, _SENSOR.mjSENS_ACCELEROMETER)
        self._force = _columns(model, _SENSOR.mjSENS_FORCE, _SENSOR.mjSENS_TORQUE)
        self._speed = getattr(task, "_desired_speed", None)
        if self._is_fetch:
            self._workspace = sims.site("workspace").xpos
            self._ball, self._target = sims.body("ball").xpos, sims.site("target").xpos
            self._roots = [int(model.joint(name).dofadr[0]) for name in ("ball_root", "root")]
            self._arena = model.geom("floor").size[0] * np.sqrt(2)
            self._reach = model.site("workspace").size[0] + model.geom("ball").size[0]
            self._radius = model.site("target").size[0]

    def observe(self) -> Entries:
        """See base class."""
        state = np.hstack([self._qpos[:, self._angles], self._qvel[:, self._rates], self._act])
        imu, force = self._sensors[:, self._imu], np.arcsinh(self._sensors[:, self._force])
        entries = (state, self._velocity, self._frame[:, 8], imu, force)
        if not self._is_fetch:
            return entries
        ball, root = self._roots
        velocity = self._qvel[:, ball : ball + 3] - self._qvel[:, root : root + 3]
        ball_state = np.stack([self._ball - self._torso, velocity, self._qvel[:, ball + 3 : ball + 6]], 1)
        target = along((self._target - self._torso)[:, None], self._frame)
        return *entries, along(ball_state, self._frame), target

    def reward(self) -> Array:
        """See base class."""
        upright = tolerance(self._frame[:, 8], (1, np.inf), 2, "linear", 0)
        if self._is_fetch:
            to_ball, to_target = self._workspace - self._ball, self._target - self._ball
            reach = tolerance(norm(to_ball[:, :2]), (0, self._reach), self._arena, "linear", 0)
            fetch = tolerance(norm(to_target[:, :2]), (0, self._radius), self._arena, "linear", 0)
            return upright * (reach * (0.5 + 0.5 * fetch))
        return upright * tolerance(self._velocity[:, 0], (self._speed, np.inf), self._speed, "linear", 0.5)


def _columns(model: Any, *kinds: Any) -> list[int]:
    """Return the indices in sensordata of the sensors of these kinds."""
    found = np.flatnonzero(np.isin(model.sensor_type, kinds))
    return [column for i in found for column in range(model.sensor_adr[i], model.sensor_adr[i] + model.sensor_dim[i])]
