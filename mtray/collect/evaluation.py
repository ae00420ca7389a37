"""Episodes of a policy that acts deterministically, and their returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mtray.config.checks import require
from mtray.errors import UsageError
from mtray.policy.policy import MultiTaskPolicy
from mtray.tasks.env import TaskEnv
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve_like
from mtray.tasks.restored import process_restored

# An episode without a time limit is cut here, so that an evaluation ends.
_MOST_STEPS = 10_000


def evaluate_policy(
    policy: MultiTaskPolicy, tasks: Sequence[str] = (), *, episodes: int = 10, seed: int = 12345
) -> dict[str, dict[str, Any]]:
    """Evaluate a policy on its tasks, with the engines and action repeats that it was trained with.

    ::

        policy = mtray.load_policy("runs/a")
        mtray.register_task("pendulum", my_tasks.pendulum)  # if the run learned a task of your own
        mtray.evaluate_policy(policy, episodes=10)["pendulum"]["return_mean"]

    Args:
        policy: acts deterministically here, whatever it does else.
        tasks: names of tasks, or makers' paths (``package.module:maker``); by default all that it learned.
        episodes: of each task, side by side; those without an end of their own are cut after 10,000 steps.
        seed: of the first episode of each task.

    Returns:
        Task to ``return_mean``, ``return_std``, ``episodes`` and ``returns``, a list.

    Raises:
        UsageError: a task that the policy did not learn, that is not known here, or that has changed since.
        TaskError: a task's own code raised.
    """
    if not isinstance(policy, MultiTaskPolicy):
        raise UsageError(f"{policy!r} is no policy: give what mtray.load_policy returns")
    check_options(episodes, seed)
    # A maker may change the folder, or the environment's variables.
    with process_restored(), _one_thread():
        found = resolve_like(tasks or policy.names, policy.specs)
        return {task.name: summarise(evaluate(policy, task, episodes, seed=seed)) for task in found}


def check_options(episodes: int, seed: int) -> None:
    """Raise a UsageError unless so many episodes can be evaluated from this seed on."""
    require(episodes >= 1, f"--episodes {episodes}: at least 1 is needed")
    require(0 <= seed < 2**32, f"--seed {seed}: must be between 0 and 2**32 - 1")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute in one thread: the batches are small, and threads that wait for each other are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def evaluate(policy: MultiTaskPolicy, task: Task, episodes: int, *, seed: int = 0) -> list[float]:
    """Undiscounted returns of this number of episodes of a task, with the policy acting deterministically.

    Episodes without an end of their own are cut after 10,000 steps.
    """
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
