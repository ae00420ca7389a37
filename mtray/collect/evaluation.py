"""Evaluation: returns of a policy that acts deterministically."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mtray.collect.episodes import InfoTracker
from mtray.collect.hosts.slots import check_finite
from mtray.config.checks import require_count, require_seed
from mtray.errors import TaskError, UsageError
from mtray.policy.policy import MultiTaskPolicy
from mtray.tasks.env import TaskEnv
from mtray.tasks.generators import generators_seeded
from mtray.tasks.guarded import process_restored
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve_like

# Agent steps after which an episode without a time limit is cut.
_MOST_STEPS = 10_000
# Of the episodes, so that policies are compared in the same ones.
SEED = 12345


def evaluate_policy(
    policy: MultiTaskPolicy, tasks: str | Sequence[str] = (), *, episodes: int = 10, seed: int = SEED
) -> dict[str, dict[str, Any]]:
    """Evaluate a policy with the engines and action repeats that it was trained with.

    ::

        policy = mtray.load_policy("runs/a")
        mtray.register_task("pendulum", my_tasks.pendulum)  # if the run has a task of your own
        mtray.evaluate_policy(policy, episodes=10)["pendulum"]["return_mean"]

    Args:
        policy: a policy of `load_policy`; it acts deterministically during the evaluation.
        tasks: names of tasks or paths of makers (``package.module:maker``); a single name needs no list; by
            default all of the policy's tasks.
        episodes: episodes of each task, stepped together; each is cut after 10,000 agent steps.
        seed: seed of each task's first episode.

    Returns:
        Task to ``return_mean``, ``return_std``, ``episodes`` and ``returns`` (a list); and ``info_<name>``, the mean of
        what the environment reported under that name at the end of its episodes (of a success: at any time). Episodes
        whose physics diverged do not count: ``episodes`` is then smaller.

    Raises:
        UsageError: episodes or seed is out of range, or a task was not learned by the policy, is not registered or has
            changed since.
        TaskError: a task's own code raised, or the physics of all its episodes diverged.
    """
    if not isinstance(policy, MultiTaskPolicy):
        raise UsageError(f"{policy!r} is no policy of mtray's: pass the result of mtray.load_policy")
    require_count("--episodes", episodes)
    require_seed("--seed", seed)
    # Makers may change the working directory or environment variables.
    with process_restored(), _one_thread():
        found = resolve_like(tasks or policy.names, policy.specs)
        return {task.name: summarise(*play(policy, task, episodes, seed=seed)) for task in found}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread of torch: on batches this small more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def play(
    policy: MultiTaskPolicy, task: Task, episodes: int, *, seed: int = 0
) -> tuple[list[float], dict[str, list[float]]]:
    """Play episodes of a task, with the policy acting deterministically; each is cut after 10,000 agent steps.

    Returns:
        Their undiscounted returns; and by name what the environment reported of each: its value at the last step, or
        the highest of the episode where ``success`` is in the name. Episodes whose physics diverged are left out.

    Raises:
        TaskError: the task's own code raised, or gave a number that is not finite; or no episode is left.
    """
    env = TaskEnv(task, num_envs=episodes, seed=seed)
    try:
        # Set here, since the caller's exploration type would otherwise decide. Seeded too, so that the episodes are the
        # same; restored, since the process may be the user's.
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC), generators_seeded(task, seed):
            state = env.reset()
            check_finite(task.name, "reset", "observation", state.get(task.spec.key).numpy())
            returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
            is_whole = np.ones(episodes, dtype=bool)
            reports, reported = InfoTracker(task.spec.info, episodes), dict[int, dict[str, float]]()
            for step in range(1, _MOST_STEPS + 1):
                reached, state = env.step_and_maybe_reset(policy(state))
                reward = reached.get(("next", "reward")).numpy()
                done = reached.get(("next", "done")).numpy()[:, 0]
                is_whole &= ~(running & env.broken)
                # What copies give after their episode counts for nothing: it may be no number.
                counts = running & is_whole
                check_finite(task.name, "step", "reward", reward[counts])
                check_finite(task.name, "step", "observation", reached.get(("next", task.spec.key)).numpy()[counts])
                returns += np.where(counts, reward[:, 0], 0)
                # Episodes that are cut count as they are then.
                for copy, values in reports.add(env.info, done | (step == _MOST_STEPS)).items():
                    if counts[copy]:
                        reported[copy] = values
                running &= ~done
                if not running.any():
                    break
    finally:
        env.close()
    if not is_whole.any():
        text = f"the physics diverged in every episode (of {episodes}), so none counts"
        raise TaskError(f"task {task.name!r}: {text}", task.name)
    infos = {name: [values[name] for values in reported.values()] for name in task.spec.info}
    return [float(value) for value in returns[is_whole]], infos


def summarise(returns: Sequence[float], infos: Mapping[str, Sequence[float]] | None = None) -> dict[str, Any]:
    """Return mean, standard deviation, number and list of returns, and the mean of what was reported beside."""
    return {
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "episodes": len(returns),
        "returns": list(returns),
        **{f"info_{name}": float(np.mean(values)) for name, values in (infos or {}).items() if values},
    }
