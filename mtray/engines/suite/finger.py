"""finger: spin, turn_easy, turn_hard."""

from typing import Any

import numpy as np
from dm_control.suite import finger

from mtray.engines.suite.base import Array, Batch, Entries, View, norm

_SPIN_VELOCITY = 15.0


class TaskView(View):
    """Joint angles, tip, velocities, touch, target; reward for spinning, or for the tip at the target."""

    model_fields = ("site_pos",)

    def _bind(self, sims: Batch, task: Any) -> None:
        self._is_turn = isinstance(task, finger.Turn)
        self._radius = sims.model.site("target").size[0]
        data = {sims.model.sensor(i).name: sims.sensor(i).data for i in range(sims.model.nsensor)}
        self._tip, self._spinner, self._target = data["tip"], data["spinner"], data["target"]
        self._position = [data["proximal"], data["distal"]]
        self._velocity = [data[f"{name}_velocity"] for name in ("proximal", "distal", "hinge")]
        self._touch = [data["touchtop"], data["touchbottom"]]

    def observe(self) -> Entries:
        """See base class."""
        position = np.hstack([*self._position, self._in_plane(self._tip)])
        entries = (position, np.hstack(self._velocity), np.log1p(np.hstack(self._touch)))
        return (*entries, self._in_plane(self._target), self._distance()) if self._is_turn else entries

    def _in_plane(self, point: Array) -> Array:
        return (point - self._spinner)[:, [0, 2]]

    def _distance(self) -> Array:
        return norm(self._in_plane(self._target) - self._in_plane(self._tip)) - self._radius

    def reward(self) -> Array:
        """See base class."""
        success = self._distance() <= 0 if self._is_turn else self._velocity[2][:, 0] <= -_SPIN_VELOCITY
        return success.astype(np.float64)
