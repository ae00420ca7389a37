"""hopper: stand, hop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, View, mean_tolerance, tolerance

_STAND_HEIGHT = 0.6
_HOP_SPEED = 2


class TaskView(View):
    """Positions without the way gone, velocities, touch; reward for standing still, or hopping forwards."""

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._hops = task._hopping
        self._qpos, self._qvel, self._ctrl = sims.bind("qpos"), sims.bind("qvel"), sims.bind("ctrl")
        self._torso, self._foot = sims.body("torso").xipos, sims.body("foot").xipos
        self._velocity = sims.sensor("torso_subtreelinvel").data
        self._touch = [sims.sensor(name).data for name in ("touch_toe", "touch_heel")]

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        return self._qpos[:, 1:], self._qvel, np.log1p(np.hstack(self._touch))

    def reward(self) -> Array:
        """See the base class."""
        standing = tolerance(self._torso[:, 2] - self._foot[:, 2], (_STAND_HEIGHT, 2))
        if self._hops:
            speed = self._velocity[:, 0]
            return standing * tolerance(speed, (_HOP_SPEED, np.inf), _HOP_SPEED / 2, "linear", 0.5)
        return standing * ((mean_tolerance(self._ctrl) + 4) / 5)
