"""Episodes of a policy that acts deterministically, and their returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mtray.policy.policy import MultiTaskPolicy
from mtray.tasks.plan import Task

# An episode without a time limit is cut here, so that an evaluation ends.
_MOST_STEPS = 10_000


def evaluate(policy: MultiTaskPolicy, task: Task, episodes: int, *, seed: int = 0) -> list[float]:
    """Undiscounted returns of so many episodes of a task, with the policy acting deterministically.

    Episodes without an end of their own are cut after 10,000 steps.
    """
    from mtray.tasks.env import TaskEnv

    env = TaskEnv(task, num_envs=episodes, seed=seed)
    deterministic, policy.deterministic = policy.deterministic, True
    try:
        with torch.no_grad():
            state = env.reset()
            returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
            for _ in range(_MOST_STEPS):
                reached, state = env.step_and_maybe_reset(policy(state))
                returns += running * reached.get(("next", "reward")).numpy()[:, 0]
                running &= ~reached.get(("next", "done")).numpy()[:, 0]
                if not running.any():
                    break
    finally:
        policy.deterministic = deterministic
        env.close()
    return [float(value) for value in returns]


def summarise(returns: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, number and list of returns."""
    return {
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "episodes": len(returns),
        "returns": list(returns),
    }
