"""Simulators that take their time asleep, so that more of them than cores run as fast as on cores of their own."""

from __future__ import annotations

import time
from typing import Any

from mtray.testing import CountingEnv

# Of a step of all copies: ten times what eight humanoids take on one core, so that 16 such collectors need no more than
# two cores for all that they do awake.
STEP_SECONDS = 0.02
SIZES = {"observation_size": 67, "action_size": 21, "truncate_after": 1000}


class PacedEnv(CountingEnv):
    """Counters of a humanoid's sizes whose steps take `STEP_SECONDS` from the end of the last one on."""

    def _step(self, tensordict: Any) -> Any:
        due = time.monotonic() + STEP_SECONDS
        stepped = super()._step(tensordict)
        time.sleep(max(0.0, due - time.monotonic()))
        return stepped


def paced(num_envs: int, seed: int) -> PacedEnv:
    """Make the task: a maker for ``--tasks paced:paced``."""
    del seed
    return PacedEnv(num_envs, **SIZES)


def awake(num_envs: int, seed: int) -> CountingEnv:
    """Make the same task without sleep."""
    del seed
    return CountingEnv(num_envs, **SIZES)
