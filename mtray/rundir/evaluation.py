"""Evaluate what a run has learned: its saved policy on its own tasks, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtray.data.specs import TaskSpec, check_same_specs
from mtray.errors import UsageError
from mtray.rundir.checkpoint import read_config, read_meta
from mtray.rundir.policies import checkpoint_folder, load_policy, run_dir_of
from mtray.rundir.resume import resolve_saved
from mtray.tasks.registry import resolve
from mtray.tasks.restored import process_restored


def evaluate_run(
    run_dir: str | Path,
    *,
    episodes: int = 10,
    tasks: Sequence[str] = (),
    seed: int = 12345,
    on_task: Callable[[str, dict[str, Any]], None] = lambda *_: None,
) -> dict[str, dict[str, Any]]:
    """Evaluate a run's newest policy (or one checkpoint's), acting deterministically.

    Args:
        run_dir: run directory, or one checkpoint's folder.
        episodes: of each task.
        tasks: names or task sets; by default all of the run.
        seed: of the episodes.
        on_task: called with each task's name and figures as soon as they are there.

    Returns:
        Task to return_mean, return_std, episodes and the list of returns.

    Raises:
        UsageError: no checkpoint, a task the run did not learn, or one that has changed since.
    """
    if episodes < 1:
        raise UsageError(f"--episodes {episodes}: at least 1 is needed")
    # A maker may change the folder.
    with process_restored():
        return _evaluate(Path(run_dir).absolute(), episodes, tasks, seed, on_task)


def _evaluate(
    run_dir: Path, episodes: int, tasks: Sequence[str], seed: int, on_task: Callable[[str, dict[str, Any]], None]
) -> dict[str, dict[str, Any]]:
    from mtray.collect.evaluation import evaluate, summarise

    policy = load_policy(run_dir)
    config = read_config(run_dir_of(run_dir))
    learned = {task.name: task for task in resolve_saved(config)}
    wanted = [task.name for task in resolve(tasks, config.engine)] if tasks else list(learned)
    for name in wanted:
        if name not in policy.names or name not in learned:
            raise UsageError(f"task {name!r} was not learned in {run_dir}: it has {', '.join(policy.names)}")
    saved = [TaskSpec.from_dict(spec) for spec in read_meta(checkpoint_folder(run_dir))["specs"]]
    check_same_specs([spec for spec in saved if spec.name in wanted], [learned[name].spec for name in wanted])
    results = {}
    for name in wanted:
        results[name] = summarise(evaluate(policy, learned[name], episodes, seed=seed))
        on_task(name, results[name])
    return results
