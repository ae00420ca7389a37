"""pendulum: swingup."""

from typing import Any

from dm_control.suite import pendulum

from mtray.engines.suite.base import Array, Batch, Entries, View, tolerance


class TaskView(View):
    """Angle of the pole as cosine and sine, its velocity; reward for the pole up."""

    def _bind(self, sims: Batch, task: Any) -> None:
        self._pole = sims.body("pole").xmat

    def observe(self) -> Entries:
        """See base class."""
        return self._pole[:, [8, 2]], self._qvel

    def reward(self) -> Array:
        """See base class."""
        return tolerance(self._pole[:, 8], (pendulum._COSINE_BOUND, 1))
