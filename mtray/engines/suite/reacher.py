"""reacher: easy, hard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtray.engines.suite.base import Array, Batch, View, norm, tolerance


class TaskView(View):
    """Joint angles, the way from finger to target, velocities; reward for the finger in the target."""

    model_fields = ("geom_pos",)

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._qpos, self._qvel = sims.bind("qpos"), sims.bind("qvel")
        self._target, self._finger = sims.geom("target").xpos, sims.geom("finger").xpos
        self._reach = float(sum(sims.model.geom(name).size[0] for name in ("target", "finger")))

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        return self._qpos, self._to_target(), self._qvel

    def _to_target(self) -> Array:
        return self._target[:, :2] - self._finger[:, :2]

    def reward(self) -> Array:
        """See the base class."""
        return tolerance(norm(self._to_target()), (0, self._reach))
