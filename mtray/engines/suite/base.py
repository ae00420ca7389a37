"""dm_control's domains over a batch of simulations: one file per domain, each with a `View`.

A view computes for all copies at once what dm_control computes for one, with the same formulas in the same order, so
that the float32 results are equal bit for bit; tests/engines/test_mujoco.py checks every task. Arrays have MuJoCo's
shapes behind a first axis of n copies, float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dm_control.utils.rewards import tolerance
from mujoco.batch import Batch

__all__ = ["Array", "Batch", "Entries", "View", "addresses", "along", "norm", "pose", "small_control", "tolerance"]

Array = npt.NDArray[np.float64]
# The observation's entries in dm_control's order, each [n, ...].
Entries = Sequence[Array]


class View(ABC):
    """Observations and rewards of one domain's tasks, read from the batch's live arrays.

    Attributes:
        model_fields: fields of the model that the domain's tasks write at a reset.
        unsupported: tasks of the domain that the view does not compute.
    """

    model_fields: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()

    def __init__(self, sims: Batch, task: Any) -> None:
        """Bind the arrays that are read after every step; ``task`` is dm_control's task object."""
        # Part of the batch's state: unlike other fields they are not copied after each step, so binding them is free.
        self._qpos, self._qvel, self._ctrl = (sims.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._bind(sims, task)

    @abstractmethod
    def _bind(self, sims: Batch, task: Any) -> None:
        """Bind the domain's other arrays and read its constants."""

    @abstractmethod
    def observe(self) -> Entries:
        """Return the observations of all copies."""

    @abstractmethod
    def reward(self) -> Array:
        """Return the rewards of one control step, [n]."""


def norm(vectors: Array) -> Array:
    """Return the lengths [n] of vectors [n, size]."""
    return np.sqrt(np.einsum("ni,ni->n", vectors, vectors))


def along(vectors: Array, frames: Array) -> Array:
    """Return the coordinates [n, k, 3] of vectors [n, k, 3] in frames given by rotation matrices [n, 9]."""
    return vectors @ frames.reshape(-1, 3, 3)


def addresses(sims: Batch, joints: Sequence[str], kind: str) -> list[int]:
    """Return the indices of joints with one degree of freedom in qpos (``qposadr``) or qvel (``dofadr``)."""
    return [int(getattr(sims.model.joint(name), kind)[0]) for name in joints]


def pose(body: Any) -> Array:
    """Return a body's position and orientation in the x-z plane, [n, 4]."""
    return np.hstack([body.xpos[:, [0, 2]], body.xquat[:, [0, 2]]])


def small_control(control: Array) -> Array:
    """Return a reward factor [n] for controls [n, act]: 1 where all are zero, 0.8 where all are at their bounds."""
    return (4 + tolerance(control, margin=1, value_at_margin=0, sigmoid="quadratic").mean(-1)) / 5
