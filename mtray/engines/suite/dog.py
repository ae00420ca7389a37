"""dog: stand, walk, trot, run, fetch."""

from typing import Any

import mujoco
import numpy as np
from dm_control.suite import dog

from mtray.engines.suite.base import Array, Batch, Entries, View, along, norm, tolerance


class TaskView(View):
    """Joints, heights, orientations, sensors, the ball; reward for standing upright and speed, or for fetching."""

    def _bind(self, sims: Batch, task: Any) -> None:
        model = sims.model
        self._speed = getattr(task, "_move_speed", None)
        # Computed by the task at its first reset.
        self._heights, self._weight = task._stand_height, task._body_weight
        self._act = sims.bind("act")
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
        self._is_fetch = isinstance(task, dog.Fetch)
        if self._is_fetch:
            self._head, self._head_frame = sims.site("head").xpos, sims.site("head").xmat
            self._ball, self._target = sims.geom("ball").xpos, sims.geom("target").xpos
            self._bites = [sims.site(name).xpos for name in ("upper_bite", "lower_bite")]
            self._cvel, self._com = sims.bind("cvel"), sims.bind("subtree_com")
            self._bodies = [int(model.site("head").bodyid[0]), int(model.geom("ball").bodyid[0])]
            self._roots = [int(model.body_rootid[body]) for body in self._bodies]
            self._bite_radius = model.site("upper_bite").size[0]
            self._target_radius, self._floor = model.geom("target").size[0], model.geom("floor").size[0]

    def observe(self) -> Entries:
        """See base class."""
        entries = (
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
        if not self._is_fetch:
            return entries
        velocity = self._object_velocity(1, self._ball) - self._object_velocity(0, self._head)
        ball = along(np.stack([self._ball - self._head, velocity], 1), self._head_frame)
        return *entries, ball, along((self._target - self._head)[:, None], self._head_frame)

    def _object_velocity(self, index: int, point: Array) -> Array:
        """Return the linear velocity of a body's point, [n, 3], as mj_objectVelocity computes it."""
        spatial = self._cvel[:, self._bodies[index]]
        return spatial[:, 3:] - np.cross(point - self._com[:, self._roots[index]], spatial[:, :3])

    def _torso_velocity(self) -> Array:
        return along(self._velocity[:, None], self._frames[1])[:, 0]

    def reward(self) -> Array:
        """See base class."""
        factors = [
            tolerance(body[:, 2], (height, np.inf), height)
            for body, height in zip((self._torso, self._pelvis), self._heights, strict=True)
        ]
        cosine = dog._MIN_UPRIGHT_COSINE
        factors += [tolerance(frame[:, 8], (cosine, np.inf), cosine + 1, "linear", 0) for frame in self._frames]
        touch = np.hstack(self._touch).sum(-1)
        factors.append(tolerance(touch, (self._weight, np.inf), self._weight, "linear", 0.9))
        if self._speed is not None:
            forward = self._torso_velocity()[:, 0]
            move = tolerance(forward, (self._speed, 2 * self._speed), max(1.0, self._speed), "linear", 0)
            factors.append((4 * move + 1) / 5)
        if self._is_fetch:
            mouth = 0.5 * sum(norm(self._ball - bite) for bite in self._bites)
            reach = (6 * tolerance(mouth, (0, self._bite_radius), 2, "reciprocal") + 1) / 7
            to_target = norm(self._ball - self._target)
            at_target = tolerance(to_target, (0, self._target_radius), self._floor, "reciprocal")
            # The dog may release the ball once it is at the target.
            factors += [np.where(to_target < 2 * self._target_radius, 1.0, reach), (at_target + 1) / 2]
        return np.prod(factors, 0)
