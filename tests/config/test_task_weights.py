"""Rows and loss weights of tasks."""

import pytest

from mtray.config.learner import LearnerConfig
from mtray.config.task_weights import loss_weights, rows_per_task
from mtray.errors import UsageError


@pytest.mark.parametrize(("rows", "tasks", "expected"), [(384, 1, 384), (384, 6, 64), (30, 7, 4), (3, 7, 1)])
def test_rows_are_equal_by_default(rows, tasks, expected):
    names = [f"task{number}" for number in range(tasks)]
    assert rows_per_task(LearnerConfig(batch_rows=rows), names) == dict.fromkeys(names, expected)


def test_rows_are_proportional_to_row_weights():
    config = LearnerConfig(batch_rows=100, row_weights=("b=3",))
    assert rows_per_task(config, ["a", "b", "c"]) == {"a": 20, "b": 60, "c": 20}
    with pytest.raises(UsageError, match="row-weights b: the run's tasks are a, c"):
        rows_per_task(config, ["a", "c"])


def test_loss_weights_are_1_unless_given():
    config = LearnerConfig(loss_weights=("b=0.5",))
    assert loss_weights(config, ["a", "b"]) == (1.0, 0.5)
    with pytest.raises(UsageError, match="loss-weights b: the run's tasks are a, c"):
        loss_weights(config, ["a", "c"])
