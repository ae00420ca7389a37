"""Rows: the layout of a task's data in the replay and in messages, one contiguous float32 array.

A row is ``[observation_<task> | action | reward | flags]``. Its next observation is the observation of the following
row, so each observation is stored once. Where that would be wrong (an episode ended, a rollout's last step, data out of
order), an extra row without a transition follows and holds the true next observation. `rollout.py` packs, `batch.py`
unpacks.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mtray.data.specs import FloatArray, TaskSpec

# Bits of a row's flags word: of the root state (acted on) and of the next state (reached).
TRANSITION = 1
NEXT_BITS = {"done": 2, "terminated": 4, "truncated": 8}
ROOT_BITS = {"done": 16, "terminated": 32, "truncated": 64}
# In sampled rows, the bits from here on hold the number of rewards summed in ``reward``, minus one.
STEPS_SHIFT = 8


def bits(array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """View the same memory as integers, to compare bit for bit."""
    return array.view(np.int32)


def row_flags(rows: FloatArray) -> npt.NDArray[np.int32]:
    """View the flags words of rows [..., row_size]."""
    return bits(rows[..., -1])


def holds_transition(rows: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which rows [..., row_size] hold a transition."""
    return cast("npt.NDArray[np.bool_]", (row_flags(rows) & TRANSITION) != 0)


def rewards(rows: FloatArray) -> FloatArray:
    """View the rewards of rows [..., row_size]."""
    return rows[..., -2]


def is_finite(rows: FloatArray) -> bool:
    """Return whether every number of contiguous rows is finite."""
    numbers = rows.reshape(-1)
    # The sum of squares takes two thirds of the time. It is not finite if a number is not, or if it overflows (numbers
    # above 1e19), so only then each number is checked.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(numbers @ numbers)) or bool(np.isfinite(numbers).all())


def sampled_shape(spec: TaskSpec, rows_per_task: int, batches: int) -> tuple[int, int, int]:
    """Return the shape of a task's sampled rows [N, B, row_size + obs_t], each followed by its next observation."""
    return batches, rows_per_task, spec.row_size + spec.observation_size
