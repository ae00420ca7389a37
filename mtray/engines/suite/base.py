"""dm_control's domains over a batch: a file per domain, each with a `View` of its tasks' observations and rewards.

What dm_control computes for one simulation, a view computes for all copies at once, by the same formulas in the same
order, so that the float32 numbers which leave are the same bit for bit; tests/test_mujoco.py holds every task to it.
Axes: n copies; MuJoCo's own arrays keep MuJoCo's shapes behind the first axis, float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dm_control.utils.rewards import tolerance
from mujoco.batch import Batch

__all__ = ["Array", "Batch", "View", "addresses", "along", "mean_tolerance", "norm", "pose", "tolerance"]

Array = npt.NDArray[np.float64]


class View(ABC):
    """Observations and rewards of one domain's tasks, read from the simulations' live arrays."""

    # Fields of the model that the domain's tasks write at a reset, each copy its own.
    model_fields: tuple[str, ...] = ()
    # The domain's tasks that it does not know.
    without: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, sims: Batch, task: Any) -> None:
        """Take hold of the arrays that are read after every step; ``task`` is dm_control's own task object."""

    @abstractmethod
    def observe(self) -> Sequence[Array]:
        """dm_control's entries in its order, each [n, ...]."""

    @abstractmethod
    def reward(self) -> Array:
        """[n] rewards of one control step."""


def norm(vectors: Array) -> Array:
    """[n] lengths of [n, size]."""
    return np.sqrt(np.einsum("ni,ni->n", vectors, vectors))


def along(vectors: Array, frames: Array) -> Array:
    """[n, k, 3] coordinates of the vectors [n, k, 3] in the frames whose rotation matrices are [n, 9]."""
    return vectors @ frames.reshape(-1, 3, 3)


def addresses(sims: Batch, joints: Sequence[str], kind: str) -> list[int]:
    """Where these joints, of one degree of freedom each, lie in qpos (``qposadr``) or qvel (``dofadr``)."""
    return [int(getattr(sims.model.joint(name), kind)[0]) for name in joints]


def pose(body: Any) -> Array:
    """[n, 4] where a body is and how it is turned in the plane of x and z."""
    return np.hstack([body.xpos[:, [0, 2]], body.xquat[:, [0, 2]]])


def mean_tolerance(control: Array) -> Array:
    """[n] how small the controls [n, act] are, 1 where all are zero."""
    return tolerance(control, margin=1, value_at_margin=0, sigmoid="quadratic").mean(-1)
