"""Each task's rows in an update, and the weight of its loss."""

from __future__ import annotations

from collections.abc import Sequence

from mtray.config.checks import require
from mtray.config.learner import LearnerConfig


def rows_per_task(config: LearnerConfig, tasks: Sequence[str]) -> dict[str, int]:
    """Return each task's number of rows in an update, proportional to its row weight, from settings without gaps.

    Raises:
        UsageError: a row weight names a task that the run does not have.
    """
    weights = {task: int(weight) for task, weight in _parse(config.row_weights, "row-weights", tasks).items()}
    assert config.batch_rows is not None
    rows = max(1, config.batch_rows // sum(weights.values()))
    return {task: rows * weight for task, weight in weights.items()}


def loss_weights(config: LearnerConfig, tasks: Sequence[str]) -> tuple[float, ...]:
    """Return each task's loss weight.

    Raises:
        UsageError: a loss weight names a task that the run does not have.
    """
    return tuple(_parse(config.loss_weights, "loss-weights", tasks).values())


def _parse(texts: Sequence[str], setting: str, tasks: Sequence[str]) -> dict[str, float]:
    """Return each task's weight from texts ``task=weight``; 1 for other tasks."""
    weights = {task: float(value) for task, _, value in (text.rpartition("=") for text in texts)}
    for task in weights:
        require(task in tasks, f"--learner.{setting} {task}: the run's tasks are {', '.join(tasks)}")
    return {task: weights.get(task, 1.0) for task in tasks}
