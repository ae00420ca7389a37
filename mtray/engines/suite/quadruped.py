"""quadruped: walk, run, fetch. Escape, whose every episode has a terrain of its own, has no view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from dm_control.suite import quadruped

from mtray.engines.suite.base import Array, Batch, View, along, norm, tolerance

_SENSOR = mujoco.mjtSensor


class TaskView(View):
    """Joints, inertial and force sensors; reward for upright and speed, or the ball fetched."""

    without = ("escape",)

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        model = sims.model
        self._fetches = isinstance(task, quadruped.Fetch)
        self._qpos, self._qvel, self._act = sims.bind("qpos"), sims.bind("qvel"), sims.bind("act")
        hinges = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
        self._angles, self._rates = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
        self._frame, self._torso = sims.body("torso").xmat, sims.body("torso").xpos
        self._velocity = sims.sensor("velocimeter").data
        self._sensors = sims.bind("sensordata")
        self._imu = _columns(model, _SENSOR.mjSENS_GYRO, _SENSOR.mjSENS_ACCELEROMETER)
        self._force = _columns(model, _SENSOR.mjSENS_FORCE, _SENSOR.mjSENS_TORQUE)
        if not self._fetches:
            self._speed = task._desired_speed
        else:
            self._workspace = sims.site("workspace").xpos
            self._ball, self._target = sims.body("ball").xpos, sims.site("target").xpos
            self._roots = [int(model.joint(name).dofadr[0]) for name in ("ball_root", "root")]
            self._arena = model.geom("floor").size[0] * np.sqrt(2)
            self._reach = model.site("workspace").size[0] + model.geom("ball").size[0]
            self._radius = model.site("target").size[0]

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        state = np.hstack([self._qpos[:, self._angles], self._qvel[:, self._rates], self._act])
        imu, force = self._sensors[:, self._imu], np.arcsinh(self._sensors[:, self._force])
        shown = (state, self._velocity, self._frame[:, 8], imu, force)
        if self._fetches:
            ball, root = self._roots
            rates = self._qvel
            moves = rates[:, ball : ball + 3] - rates[:, root : root + 3]
            state = np.stack([self._ball - self._torso, moves, rates[:, ball + 3 : ball + 6]], 1)
            target = along((self._target - self._torso)[:, None], self._frame)
            return *shown, along(state, self._frame), target
        return shown

    def reward(self) -> Array:
        """See the base class."""
        if self._fetches:
            to_ball, to_target = self._workspace - self._ball, self._target - self._ball
            reach = tolerance(norm(to_ball[:, :2]), (0, self._reach), self._arena, "linear", 0)
            fetch = tolerance(norm(to_target[:, :2]), (0, self._radius), self._arena, "linear", 0)
            return self._upright * (reach * (0.5 + 0.5 * fetch))
        speed = tolerance(self._velocity[:, 0], (self._speed, np.inf), self._speed, "linear", 0.5)
        return self._upright * speed

    @property
    def _upright(self) -> Array:
        return tolerance(self._frame[:, 8], (1, np.inf), 2, "linear", 0)


def _columns(model: Any, *kinds: Any) -> list[int]:
    """Where the readings of all sensors of these kinds lie, in the sensors' order."""
    found = np.flatnonzero(np.isin(model.sensor_type, kinds))
    return [column for i in found for column in range(model.sensor_adr[i], model.sensor_adr[i] + model.sensor_dim[i])]
