"""cheetah: run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, View, tolerance

_RUN_SPEED = 10


class TaskView(View):
    """Positions without the way gone, and velocities; reward for speed."""

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._qpos, self._qvel = sims.bind("qpos"), sims.bind("qvel")
        self._velocity = sims.sensor("torso_subtreelinvel").data

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        return self._qpos[:, 1:], self._qvel

    def reward(self) -> Array:
        """See the base class."""
        return tolerance(self._velocity[:, 0], (_RUN_SPEED, np.inf), _RUN_SPEED, "linear", 0)
