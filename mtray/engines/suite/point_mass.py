"""point_mass: easy, hard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtray.engines.suite.base import Array, Batch, View, mean_tolerance, norm, tolerance


class TaskView(View):
    """Position and velocity; reward for the mass at the target with small controls."""

    model_fields = ("wrap_prm",)

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._qpos, self._qvel, self._ctrl = sims.bind("qpos"), sims.bind("qvel"), sims.bind("ctrl")
        self._target, self._mass = sims.geom("target").xpos, sims.geom("pointmass").xpos
        self._size = sims.model.geom("target").size[0]

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        return self._qpos, self._qvel

    def reward(self) -> Array:
        """See the base class."""
        near = tolerance(norm(self._target - self._mass), (0, self._size), self._size)
        return near * ((mean_tolerance(self._ctrl) + 4) / 5)
