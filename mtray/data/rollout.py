"""A task's rollout: the arrays that a collector writes, and their packing into rows."""

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
        observation: [K, L, obs_t] float32, the state acted on.
        action: [K, L, act_t] float32.
        reward: [K, L] float32.
        next_observation: [K, L, obs_t] float32, the state reached; at an episode's end the true last observation.
        flags: [K, L] int32, flag bits (see `mtray.data.rows`).
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
    """Return the rows [n, row_size] float32 of a task's rollout [K, L], copy by copy.

    Every step is a row; an extra row follows each step whose next observation differs from the following step's
    observation (see `mtray.data.rows`). The rollout's arrays must be contiguous.
    """
    obs_size, act_size = rollout.observation.shape[-1], rollout.action.shape[-1]
    copies, steps = rollout.reward.shape
    observation = rollout.observation.reshape(-1, obs_size)
    reached = rollout.next_observation.reshape(-1, obs_size)
    # Bits are compared, not flags or floats, so that data in any order, NaN and -0.0 come out bit for bit.
    is_split = np.ones(copies * steps, np.bool_)
    (bits(observation[1:]) != bits(reached[:-1])).any(-1, out=is_split[:-1])
    is_split.reshape(copies, steps)[:, -1:] = True
    ends = np.cumsum(is_split + 1)
    rows = np.empty((int(ends[-1]) if len(ends) else 0, obs_size + act_size + 2), np.float32)
    position = ends - 1 - is_split  # Of each step's row.
    rows[position, :obs_size] = observation
    rows[position, obs_size:-2] = rollout.action.reshape(-1, act_size)
    rows[position, -2] = rollout.reward.reshape(-1)
    bits(rows)[position, -1] = rollout.flags.reshape(-1)
    between = position[is_split] + 1
    rows[between, :obs_size] = reached[is_split]
    rows[between, obs_size:] = 0
    return rows
