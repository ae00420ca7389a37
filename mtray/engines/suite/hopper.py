"""hopper: stand, hop."""

from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, Entries, View, small_control, tolerance

_STAND_HEIGHT = 0.6
_HOP_SPEED = 2


class TaskView(View):
    """Positions except the distance travelled, velocities, touch; reward for standing still, or for hopping forward."""

    def _bind(self, sims: Batch, task: Any) -> None:
        self._is_hop = task._hopping
        self._torso, self._foot = sims.body("torso").xipos, sims.body("foot").xipos
        self._velocity = sims.sensor("torso_subtreelinvel").data
        self._touch = [sims.sensor(name).data for name in ("touch_toe", "touch_heel")]

    def observe(self) -> Entries:
        """See base class."""
        return self._qpos[:, 1:], self._qvel, np.log1p(np.hstack(self._touch))

    def reward(self) -> Array:
        """See base class."""
        standing = tolerance(self._torso[:, 2] - self._foot[:, 2], (_STAND_HEIGHT, 2))
        if self._is_hop:
            speed = self._velocity[:, 0]
            return standing * tolerance(speed, (_HOP_SPEED, np.inf), _HOP_SPEED / 2, "linear", 0.5)
        return standing * small_control(self._ctrl)
