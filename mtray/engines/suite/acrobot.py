"""acrobot: swingup, dense and sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, View, norm, tolerance


class TaskView(View):
    """The arms' angles as sines and cosines, velocities; reward for the tip at the target."""

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._margin = 0 if task._sparse else 1
        self._qvel = sims.bind("qvel")
        self._arms = [sims.body(name).xmat for name in ("upper_arm", "lower_arm")]
        self._target, self._tip = sims.site("target").xpos, sims.site("tip").xpos
        self._radius = sims.model.site("target").size[0]

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        orientations = np.stack([arm[:, column] for column in (2, 8) for arm in self._arms], -1)
        return orientations, self._qvel

    def reward(self) -> Array:
        """See the base class."""
        return tolerance(norm(self._target - self._tip), (0, self._radius), self._margin)
