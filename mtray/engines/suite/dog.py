"""dog: stand, walk, trot, run, fetch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from dm_control.suite import dog

from mtray.engines.suite.base import Array, Batch, View, along, norm, tolerance


class TaskView(View):
    """Joints, heights, orientations, all sensors, and the ball; reward for standing upright and speed, or fetching."""

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        model = sims.model
        self._speed = getattr(task, "_move_speed", None)
        # Measured by the task at its first reset, from the model.
        self._heights, self._weight = task._stand_height, task._body_weight
        self._qpos, self._qvel, self._act = sims.bind("qpos"), sims.bind("qvel"), sims.bind("act")
        hinges = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
        self._angles, self._rates = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
        self._torso, self._pelvis = sims.body("torso").xpos, sims.body("pelvis").xpos
        self._frames = [sims.body(name).xmat for name in ("skull", "torso", "pelvis")]
        self._velocity = sims.sensor("torso_linvel").data

        def sensors(*names: str) -> list[Array]:
            return [sims.sensor(name).data for name in names]

        self._inertial = sensors("accelerometer", "velocimeter", "gyro")
        self._forces = sensors("foot_L", "foot_R", "hand_L", "hand_R")
        self._touch = sensors("palm_L", "palm_R", "sole_L", "sole_R")
        self._fetches = isinstance(task, dog.Fetch)
        if self._fetches:
            self._head, self._head_frame = sims.site("head").xpos, sims.site("head").xmat
            self._ball, self._target = sims.geom("ball").xpos, sims.geom("target").xpos
            self._bites = [sims.site(name).xpos for name in ("upper_bite", "lower_bite")]
            self._cvel, self._com = sims.bind("cvel"), sims.bind("subtree_com")
            self._bodies = [int(model.site("head").bodyid[0]), int(model.geom("ball").bodyid[0])]
            self._roots = [int(model.body_rootid[body]) for body in self._bodies]
            self._bite_radius = model.site("upper_bite").size[0]
            self._target_radius, self._floor = model.geom("target").size[0], model.geom("floor").size[0]

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        shown = (
            self._qpos[:, self._angles],
            self._qvel[:, self._rates],
            np.stack([self._torso[:, 2], self._pelvis[:, 2]], -1),
            np.hstack([frame[:, 6:] for frame in self._frames]),
            self._torso_velocity(),
            np.hstack(self._inertial),
            np.hstack(self._forces),
            np.hstack(self._touch),
            self._act,
        )
        if not self._fetches:
            return shown
        moves = self._object_velocity(1, self._ball) - self._object_velocity(0, self._head)
        ball = along(np.stack([self._ball - self._head, moves], 1), self._head_frame)
        return *shown, ball, along((self._target - self._head)[:, None], self._head_frame)

    def _object_velocity(self, index: int, place: Array) -> Array:
        """[n, 3] linear velocity of a point of a body, as mj_objectVelocity has it."""
        spatial = self._cvel[:, self._bodies[index]]
        return spatial[:, 3:] - np.cross(place - self._com[:, self._roots[index]], spatial[:, :3])

    def _torso_velocity(self) -> Array:
        return along(self._velocity[:, None], self._frames[1])[:, 0]

    def reward(self) -> Array:
        """See the base class."""
        factors = [
            tolerance(body[:, 2], (height, np.inf), height)
            for body, height in zip((self._torso, self._pelvis), self._heights, strict=True)
        ]
        least = dog._MIN_UPRIGHT_COSINE
        factors += [tolerance(frame[:, 8], (least, np.inf), least + 1, "linear", 0) for frame in self._frames]
        touch = np.hstack(self._touch).sum(-1)
        factors.append(tolerance(touch, (self._weight, np.inf), self._weight, "linear", 0.9))
        if self._speed is not None:
            forward = self._torso_velocity()[:, 0]
            move = tolerance(forward, (self._speed, 2 * self._speed), max(1.0, self._speed), "linear", 0)
            factors.append((4 * move + 1) / 5)
        if self._fetches:
            mouth = 0.5 * sum(norm(self._ball - bite) for bite in self._bites)
            reach = (6 * tolerance(mouth, (0, self._bite_radius), 2, "reciprocal") + 1) / 7
            left = norm(self._ball - self._target)
            near = tolerance(left, (0, self._target_radius), self._floor, "reciprocal")
            # The ball may be let go of once it is there.
            factors += [np.where(left < 2 * self._target_radius, 1.0, reach), (near + 1) / 2]
        return np.prod(factors, 0)
