"""acrobot: swingup, dense and sparse."""

from typing import Any

import numpy as np

from mtray.engines.suite.base import Array, Batch, Entries, View, norm, tolerance


class TaskView(View):
    """Angles of the arms as sine and cosine, velocities; reward for the tip at the target."""

    def _bind(self, sims: Batch, task: Any) -> None:
        self._margin = 0 if task._sparse else 1
        self._arms = [sims.body(name).xmat for name in ("upper_arm", "lower_arm")]
        self._target, self._tip = sims.site("target").xpos, sims.site("tip").xpos
        self._radius = sims.model.site("target").size[0]

    def observe(self) -> Entries:
        """See base class."""
        orientations = np.stack([arm[:, column] for column in (2, 8) for arm in self._arms], -1)
        return orientations, self._qvel

    def reward(self) -> Array:
        """See base class."""
        return tolerance(norm(self._target - self._tip), (0, self._radius), self._margin)
