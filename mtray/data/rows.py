"""Rows: a task's data as it lies in the replay and on the wire, one contiguous float32 array.

Steps of one simulator copy follow each other, so a row holds one observation once:
``[observation_<task> | action | reward | flags]`` and the next observation is the next row's first part. Where that
would be wrong (an episode ended, a rollout's last step, data out of order) a row without a transition is put in
between to hold the true next observation. `pack.py` packs, `batch.py` unpacks.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mtray.data.specs import FloatArray, TaskSpec

# What a row's flags word says. Root flags are those of the state acted on, next flags those of the state reached.
TRANSITION = 1


NEXT_BITS = {"done": 2, "terminated": 4, "truncated": 8}


ROOT_BITS = {"done": 16, "terminated": 32, "truncated": 64}


# Of rows that were sampled: how many more steps their reward and next observation are of, from this bit on.
STEPS_SHIFT = 8


def bits(array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """The same memory as integers: what is equal here is equal bit for bit."""
    return array.view(np.int32)


def row_flags(rows: FloatArray) -> npt.NDArray[np.int32]:
    """The flags words of rows [..., row_size]: a view."""
    return cast("npt.NDArray[np.int32]", rows[..., -1].view(np.int32))


def holds_transition(rows: FloatArray) -> npt.NDArray[np.bool_]:
    """Which of these rows [..., row_size] hold a transition."""
    return cast("npt.NDArray[np.bool_]", (row_flags(rows) & TRANSITION) != 0)


def rewards(rows: FloatArray) -> FloatArray:
    """The rewards of rows [..., row_size]: a view."""
    return rows[..., -2]


def is_finite(rows: FloatArray) -> bool:
    """Whether every number of contiguous rows is finite."""
    numbers = rows.reshape(-1)
    # The sum of squares is not finite if one number is not, and takes two thirds of the time. Numbers above 1e19 can
    # make it overflow, so only then each is looked at.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(numbers @ numbers)) or bool(np.isfinite(numbers).all())


def sampled_shape(spec: TaskSpec, rows_per_task: int, batches: int) -> tuple[int, int, int]:
    """Shape of a task's rows as they are sampled, each with its next observation behind it."""
    return batches, rows_per_task, spec.row_size + spec.observation_size
