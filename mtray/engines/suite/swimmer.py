"""swimmer: swimmer6, swimmer15."""

from typing import Any

from mtray.engines.suite.base import Array, Batch, Entries, View, along, norm, tolerance


class TaskView(View):
    """Joint angles, target, velocities of the bodies; reward for the nose at the target."""

    model_fields = ("geom_pos",)

    def _bind(self, sims: Batch, task: Any) -> None:
        self._sensors = sims.bind("sensordata")
        self._target, self._nose = sims.geom("target").xpos, sims.geom("nose").xpos
        self._frame = sims.body("head").xmat
        self._size = sims.model.geom("target").size[0]

    def observe(self) -> Entries:
        """See base class."""
        velocities = self._sensors[:, 12:].reshape(len(self._qpos), -1, 6)[:, :, [0, 1, 5]]
        return self._qpos[:, 3:], self._to_target(), velocities

    def _to_target(self) -> Array:
        return along((self._target - self._nose)[:, None], self._frame)[:, 0, :2]

    def reward(self) -> Array:
        """See base class."""
        return tolerance(norm(self._to_target()), (0, self._size), 5 * self._size, "long_tail")
