"""A task's rollout: arrays that a collector writes step by step, and the rows that are stored of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtray.data.rows import bits
from mtray.data.specs import FloatArray, TaskSpec


@dataclass(frozen=True)
class TaskRollout:
    """L steps of K copies of one task, each array of the task's own width.

    Attributes:
        observation: [K, L, obs_t] float32, acted on.
        action: [K, L, act_t] float32.
        reward: [K, L] float32.
        next_observation: [K, L, obs_t] float32, reached; at an episode's end its true last observation.
        flags: [K, L] int32, the flags words of rows (see `mtray.data.rows`).
    """

    observation: FloatArray
    action: FloatArray
    reward: FloatArray
    next_observation: FloatArray
    flags: npt.NDArray[np.int32]

    @classmethod
    def zeros(cls, spec: TaskSpec, copies: int, steps: int) -> TaskRollout:
        """Allocate a rollout [copies, steps]."""
        size = (copies, steps)
        return cls(
            np.zeros((*size, spec.observation_size), np.float32),
            np.zeros((*size, spec.action_size), np.float32),
            np.zeros(size, np.float32),
            np.zeros((*size, spec.observation_size), np.float32),
            np.zeros(size, np.int32),
        )


def pack(rollout: TaskRollout) -> FloatArray:
    """Lay a task's rollout [K, L] out as rows, copy by copy.

    Args:
        rollout: contiguous arrays.

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
    rows = np.empty((int(ends[-1]) if len(ends) else 0, obs_size + act_size + 2), np.float32)
    position = ends - 1 - is_split
    rows[position, :obs_size] = observation
    rows[position, obs_size:-2] = rollout.action.reshape(-1, act_size)
    rows[position, -2] = rollout.reward.reshape(-1)
    bits(rows)[position, -1] = rollout.flags.reshape(-1)
    between = position[is_split] + 1
    rows[between, :obs_size] = reached[is_split]
    rows[between, obs_size:] = 0
    return rows
