"""fish: upright, swim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dm_control.suite import fish

from mtray.engines.suite.base import Array, Batch, View, along, norm, tolerance


class TaskView(View):
    """Joint angles, how upright it is, where the target is, velocities; reward for upright, and the mouth at it."""

    model_fields = ("geom_pos",)

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._swims = isinstance(task, fish.Swim)
        self._qpos, self._qvel = sims.bind("qpos"), sims.bind("qvel")
        joints = [sims.model.joint(name) for name in fish._JOINTS]
        self._angles = [int(joint.qposadr[0]) for joint in joints]
        self._upright = sims.body("torso").xmat[:, 8]
        self._sensors = sims.bind("sensordata")
        mouth, target = sims.geom("mouth"), sims.geom("target")
        self._target, self._mouth, self._frame = target.xpos, mouth.xpos, mouth.xmat
        self._reach = float(sum(sims.model.geom(name).size[0] for name in ("mouth", "target")))

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        angles, velocity = self._qpos[:, self._angles], self._qvel
        if self._swims:
            return angles, self._upright, self._to_target(), velocity
        return angles, self._upright, velocity

    def _to_target(self) -> Array:
        return along((self._target - self._mouth)[:, None], self._frame)[:, 0]

    def reward(self) -> Array:
        """See the base class."""
        if not self._swims:
            upright = tolerance(self._upright, (1, 1), 1)
            return upright
        reached = tolerance(norm(self._to_target()), (0, self._reach), 2 * self._reach)
        return (7 * reached + 0.5 * (self._upright + 1)) / 8
