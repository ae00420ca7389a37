"""Fixtures: two small tasks and a replay with their rows."""

import pytest

from mtray.tasks.plan import Task
from tests.learn.trainers import MAKERS, filled_replay


@pytest.fixture
def tasks():
    return [Task(name, "torchrl", maker) for name, maker in MAKERS.items()]


@pytest.fixture
def replay(tasks):
    return filled_replay(tasks, rollouts=3)[0]
