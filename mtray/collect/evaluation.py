"""Evaluation: returns of a policy that acts deterministically, in numpy, as collectors act.

Enters: weights. Leaves: returns. Runs in the evaluator's process, which needs no torch, or in the user's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtray.collect.episodes import InfoTracker
from mtray.collect.hosts.slots import check_finite
from mtray.config.checks import require_count, require_seed
from mtray.data.specs import action_width, observation_width
from mtray.engines.base import StepArrays
from mtray.errors import TaskError, UsageError
from mtray.policy.acting import Acting
from mtray.policy.layout import PolicyLayout, Weights
from mtray.tasks.generators import generators_seeded
from mtray.tasks.guarded import process_restored
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve_like

if TYPE_CHECKING:
    from mtray.policy.policy import MultiTaskPolicy

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
        policy: a policy of `load_policy`; its weights act deterministically, in numpy.
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
        RunError: a weight of the policy is not finite.
    """
    from mtray.policy.policy import MultiTaskPolicy
    from mtray.policy.weights import snapshot

    # Its weights act, so what a class of the user's own adds would be left out.
    if type(policy) is not MultiTaskPolicy:
        raise UsageError(f"{policy!r} is no policy of mtray's: pass the result of mtray.load_policy")
    require_count("--episodes", episodes)
    require_seed("--seed", seed)
    weights = snapshot(policy, 0)
    # Makers may change the working directory or environment variables.
    with process_restored(), _one_thread():
        found = resolve_like(tasks or policy.names, policy.specs)
        return {task.name: summarise(*play(policy.layout, weights, task, episodes, seed=seed)) for task in found}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread of torch: on batches as small as those of a maker's task more threads are slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def play(
    layout: PolicyLayout, weights: Weights, task: Task, episodes: int, *, seed: int = 0
) -> tuple[list[float], dict[str, list[float]]]:
    """Play episodes of a task, with the policy acting deterministically; each is cut after 10,000 agent steps.

    Args:
        layout: the policy's, of which the task is one.
        weights: the policy's.
        task: the task.
        episodes: their number; they are stepped together.
        seed: of the first episode; the others' are derived from it.

    Returns:
        Their undiscounted returns; and by name what the environment reported of each: its value at the last step, or
        the highest of the episode where ``success`` is in the name. Episodes whose physics diverged are left out.

    Raises:
        TaskError: the task's own code raised, or gave a number that is not finite; or no episode is left.
    """
    spec = task.spec
    acting = Acting(layout, layout.arrays(weights), np.array([layout.names.index(task.name)]))
    padded = np.zeros((1, episodes, observation_width(layout.specs)), np.float32)
    observation = padded[0, :, : spec.observation_size]
    no_noise = np.zeros((1, episodes, action_width(layout.specs)), np.float32)
    out = StepArrays.empty(episodes, spec)
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    is_whole = np.ones(episodes, dtype=bool)
    reports, reported = InfoTracker(spec.info, episodes), dict[int, dict[str, float]]()
    # Seeded, so that the episodes are the same; restored, since the process may be the user's.
    with generators_seeded(task, seed), contextlib.closing(task.make_sim(episodes, seed)) as sim:
        sim.reset(np.ones(episodes, np.bool_), observation)
        check_finite(task.name, "reset", "observation", observation)
        for step in range(1, _MOST_STEPS + 1):
            out.broken[:] = False
            sim.step(acting(padded, no_noise)[0, :, : spec.action_size].copy(), out)
            done = out.terminated | out.truncated
            is_whole &= ~(running & out.broken)
            # What copies give after their episode counts for nothing: it may be no number.
            counts = running & is_whole
            check_finite(task.name, "step", "reward", out.reward[counts, None])
            check_finite(task.name, "step", "observation", out.observation[counts])
            returns += np.where(counts, out.reward, 0)
            # Episodes that are cut count as they are then.
            for copy, values in reports.add(out.info, done | (step == _MOST_STEPS)).items():
                if counts[copy]:
                    reported[copy] = values
            running &= ~done
            if not running.any():
                break
            observation[:] = out.observation
            if done.any():
                sim.reset(done, observation)
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
