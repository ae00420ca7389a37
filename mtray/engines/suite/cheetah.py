"""cheetah: run."""

from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, Entries, View, tolerance

_RUN_SPEED = 10


class TaskView(View):
    """Positions except the distance travelled, velocities; reward for speed."""

    def _bind(self, sims: Batch, task: Any) -> None:
        self._velocity = sims.sensor("torso_subtreelinvel").data

    def observe(self) -> Entries:
        """See base class."""
        return self._qpos[:, 1:], self._qvel

    def reward(self) -> Array:
        """See base class."""
        return tolerance(self._velocity[:, 0], (_RUN_SPEED, np.inf), _RUN_SPEED, "linear", 0)
