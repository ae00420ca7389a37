"""The evaluator as a Ray actor."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtray.cluster.actors.cores import give_way
from mtray.cluster.actors.hello import Hello, say_hello
from mtray.config.settings import Config
from mtray.errors import TaskError
from mtray.tasks.plan import Task
from mtray.tasks.processes import limit_torch

if TYPE_CHECKING:
    from mtray.policy.layout import Weights


class Evaluator:
    """Plays the policy without noise: see `mtray.collect.evaluation`."""

    def __init__(self, tasks: Sequence[Task], config: Config) -> None:
        """Take what `evaluate` needs.

        Args:
            tasks: all of the run.
            config: the run's.
        """
        self._tasks, self._config = tasks, config

    def hello(self, logs: Path, name: str) -> Hello:
        """Keep what this actor prints in a file of ``logs``; return where it is."""
        return say_hello(logs, name)

    def evaluate(
        self, weights: Weights, aside: Sequence[str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str], float]:
        """Play each task's episodes.

        Args:
            weights: the policy's.
            aside: tasks that are left out.

        Returns:
            By task, what `mtray.collect.evaluation.evaluate_policy` returns; the error of each task that failed; and
            the seconds of a core that it took.
        """
        begin = time.process_time()
        give_way()
        # Nothing is drawn here; without this, importing dm_control looks for a display.
        os.environ.setdefault("MUJOCO_GL", "disabled")
        from mtray.collect.evaluation import SEED, play, summarise
        from mtray.policy.layout import PolicyLayout

        limit_torch(self._tasks)
        config, specs = self._config, tuple(task.spec for task in self._tasks)
        layout = PolicyLayout(specs, config.network, config.learner.policy_noise)
        found: dict[str, dict[str, Any]] = {}
        failures: dict[str, str] = {}
        for task in self._tasks:
            if task.name not in aside:
                try:
                    found[task.name] = summarise(*play(layout, weights, task, config.run.evaluate_episodes, seed=SEED))
                except TaskError as error:
                    failures[task.name] = str(error)
        return found, failures, time.process_time() - begin
