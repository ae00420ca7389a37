"""reacher: easy, hard."""

from typing import Any

from mtray.engines.suite.base import Array, Batch, Entries, View, norm, tolerance


class TaskView(View):
    """Joint angles, vector from finger to target, velocities; reward for the finger at the target."""

    model_fields = ("geom_pos",)

    def _bind(self, sims: Batch, task: Any) -> None:
        self._target, self._finger = sims.geom("target").xpos, sims.geom("finger").xpos
        self._reach = float(sum(sims.model.geom(name).size[0] for name in ("target", "finger")))

    def observe(self) -> Entries:
        """See base class."""
        return self._qpos, self._to_target(), self._qvel

    def _to_target(self) -> Array:
        return self._target[:, :2] - self._finger[:, :2]

    def reward(self) -> Array:
        """See base class."""
        return tolerance(norm(self._to_target()), (0, self._reach))
