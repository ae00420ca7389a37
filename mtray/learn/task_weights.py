"""How an update is shared among the tasks: rows of its batch, and weights of its losses."""

from __future__ import annotations

from collections.abc import Sequence

from mtray.config.checks import require
from mtray.config.settings import LearnerConfig

# Rows of one update by default: so many in all, or so many of every task where that is more.
_ROWS, _ROWS_OF_TASK = 384, 16


def rows_per_task(config: LearnerConfig, tasks: Sequence[str]) -> dict[str, int]:
    """Return each task's rows in one update: its row weight times the same number.

    Raises:
        UsageError: a row weight is given for a task that the run does not have.
    """
    weights = {task: int(weight) for task, weight in _parse(config.row_weights, "row-weights", tasks).items()}
    total = max(_ROWS_OF_TASK * len(tasks), _ROWS) if config.batch_rows is None else config.batch_rows
    rows = max(1, total // sum(weights.values()))
    return {task: rows * weight for task, weight in weights.items()}


def loss_weights(config: LearnerConfig, tasks: Sequence[str]) -> tuple[float, ...]:
    """Return each task's loss weight.

    Raises:
        UsageError: a loss weight is given for a task that the run does not have.
    """
    return tuple(_parse(config.loss_weights, "loss-weights", tasks).values())


def _parse(texts: Sequence[str], setting: str, tasks: Sequence[str]) -> dict[str, float]:
    """Return each task's weight, 1 where no text ``task=weight`` names it."""
    weights = {task: float(value) for task, _, value in (text.rpartition("=") for text in texts)}
    for task in weights:
        require(task in tasks, f"--learner.{setting} {task}: the run's tasks are {', '.join(tasks)}")
    return {task: weights.get(task, 1.0) for task in tasks}
