"""point_mass: easy, hard."""

from typing import Any

from mtray.engines.suite.base import Array, Batch, Entries, View, norm, small_control, tolerance


class TaskView(View):
    """Position and velocity; reward for the mass at the target with small controls."""

    model_fields = ("wrap_prm",)

    def _bind(self, sims: Batch, task: Any) -> None:
        self._target, self._mass = sims.geom("target").xpos, sims.geom("pointmass").xpos
        self._size = sims.model.geom("target").size[0]

    def observe(self) -> Entries:
        """See base class."""
        return self._qpos, self._qvel

    def reward(self) -> Array:
        """See base class."""
        near = tolerance(norm(self._target - self._mass), (0, self._size), self._size)
        return near * small_control(self._ctrl)
