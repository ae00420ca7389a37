"""From a task's rollout to the rows that are stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtray.data.rollout import TaskRollout
from mtray.data.rows import bits
from mtray.data.specs import FloatArray


def _new_array(shape: tuple[int, int]) -> FloatArray:
    return np.empty(shape, np.float32)


def pack(rollout: TaskRollout, allocate: Callable[[tuple[int, int]], FloatArray] = _new_array) -> FloatArray:
    """Lay a task's rollout [K, L] out as rows, copy by copy.

    Args:
        rollout: contiguous arrays.
        allocate: returns the float32 array to write, given its shape.

    Returns:
        [rows, row_size] float32 in the layout of `mtray.data.rows`: a row for every step, and one more after each step
        that does not lead to the next step's observation.
    """
    obs_size, act_size = rollout.observation.shape[-1], rollout.action.shape[-1]
    copies, steps = rollout.reward.shape
    observation = rollout.observation.reshape(-1, obs_size)
    reached = rollout.next_observation.reshape(-1, obs_size)
    # Bits are compared, not flags or floats: so it holds for data in any order, for NaN and for -0.0.
    is_split = np.ones(copies * steps, np.bool_)
    (bits(observation[1:]) != bits(reached[:-1])).any(-1, out=is_split[:-1])
    is_split.reshape(copies, steps)[:, -1:] = True
    ends = np.cumsum(is_split + 1)
    rows = allocate((int(ends[-1]) if len(ends) else 0, obs_size + act_size + 2))
    position = ends - 1 - is_split
    rows[position, :obs_size] = observation
    rows[position, obs_size:-2] = rollout.action.reshape(-1, act_size)
    rows[position, -2] = rollout.reward.reshape(-1)
    bits(rows)[position, -1] = rollout.flags.reshape(-1)
    between = position[is_split] + 1
    rows[between, :obs_size] = reached[is_split]
    rows[between, obs_size:] = 0
    return rows
