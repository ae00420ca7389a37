"""fish: upright, swim."""

from typing import Any

from dm_control.suite import fish

from mtray.engines.suite.base import Array, Batch, Entries, View, addresses, along, norm, tolerance


class TaskView(View):
    """Joint angles, uprightness, target, velocities; reward for being upright, or for the mouth at the target."""

    model_fields = ("geom_pos",)

    def _bind(self, sims: Batch, task: Any) -> None:
        self._is_swim = isinstance(task, fish.Swim)
        self._angles = addresses(sims, fish._JOINTS, "qposadr")
        self._upright = sims.body("torso").xmat[:, 8]
        mouth, target = sims.geom("mouth"), sims.geom("target")
        self._target, self._mouth, self._frame = target.xpos, mouth.xpos, mouth.xmat
        self._reach = float(sum(sims.model.geom(name).size[0] for name in ("mouth", "target")))

    def observe(self) -> Entries:
        """See base class."""
        target = (self._to_target(),) if self._is_swim else ()
        return self._qpos[:, self._angles], self._upright, *target, self._qvel

    def _to_target(self) -> Array:
        return along((self._target - self._mouth)[:, None], self._frame)[:, 0]

    def reward(self) -> Array:
        """See base class."""
        if not self._is_swim:
            return tolerance(self._upright, (1, 1), 1)
        reached = tolerance(norm(self._to_target()), (0, self._reach), 2 * self._reach)
        return (7 * reached + 0.5 * (self._upright + 1)) / 8
