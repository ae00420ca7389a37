"""A task's rollout as plain arrays: what a collector writes step by step and `pack.py` turns into rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
