"""pendulum: swingup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dm_control.suite import pendulum

from mtray.engines.suite.base import Array, Batch, View, tolerance


class TaskView(View):
    """The pole's angle as cosine and sine, its velocity; reward for the pole up."""

    def __init__(self, sims: Batch, task: Any) -> None:
        """See the base class."""
        self._qvel = sims.bind("qvel")
        self._pole = sims.body("pole").xmat

    def observe(self) -> Sequence[Array]:
        """See the base class."""
        return self._pole[:, [8, 2]], self._qvel

    def reward(self) -> Array:
        """See the base class."""
        return tolerance(self._pole[:, 8], (pendulum._COSINE_BOUND, 1))
