"""finger: spin, turn_easy, turn_hard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dm_control.suite import finger

from mtray.engines.suite.base import Array, Batch, View, norm

_SPIN_VELOCITY = 15.0
_PLANE = [0, 2]


class TaskView(View):
    """Joint angles, where tip and target are, velocities, touch; reward for spinning, or the tip at the target."""

    model_fields = ("site_pos",)

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._turns = isinstance(task, finger.Turn)
        self._radius = sims.model.site("target").size[0]
        data = {sims.model.sensor(i).name: sims.sensor(i).data for i in range(sims.model.nsensor)}
        self._tip, self._spinner, self._target = data["tip"], data["spinner"], data["target"]
        self._position = [data["proximal"], data["distal"]]
        self._velocity = [data[f"{name}_velocity"] for name in ("proximal", "distal", "hinge")]
        self._touch = [data["touchtop"], data["touchbottom"]]

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        tip = (self._tip - self._spinner)[:, _PLANE]
        shown = (np.hstack([*self._position, tip]), np.hstack(self._velocity), np.log1p(np.hstack(self._touch)))
        if not self._turns:
            return shown
        target = (self._target - self._spinner)[:, _PLANE]
        return *shown, target, self._distance(tip, target)

    def _distance(self, tip: Array, target: Array) -> Array:
        return norm(target - tip) - self._radius

    def reward(self) -> Array:
        """See the base class."""
        if self._turns:
            tip, target = (self._tip - self._spinner)[:, _PLANE], (self._target - self._spinner)[:, _PLANE]
            reached = (self._distance(tip, target) <= 0).astype(np.float64)
            return reached
        return (self._velocity[2][:, 0] <= -_SPIN_VELOCITY).astype(np.float64)
