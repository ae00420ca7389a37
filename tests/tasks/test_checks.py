"""The checks that tasks can be pickled and that their specs have not changed."""

import dataclasses
import functools
import threading

import pytest

from mtray.data.specs import TaskSpec, check_specs
from mtray.errors import UsageError
from mtray.tasks.checks import check_travels
from mtray.tasks.plan import Task
from tests.makers import make_spec, point, with_held


class Holds:
    def __init__(self, held):
        self.held = held

    def __call__(self, num_envs, seed):
        return point(num_envs, seed)

    def make(self, num_envs, seed):
        return point(num_envs, seed)


def closed_over(held):
    return lambda num_envs, seed: (held, point(num_envs, seed))[1]


class Loses:
    """Can be pickled, but not unpickled."""

    def __init__(self, first):
        self.first = first

    def __reduce__(self):
        return Loses, ()

    def __call__(self, num_envs, seed):
        return point(num_envs, seed)


@pytest.mark.parametrize(
    ("maker", "where"),
    [
        (Holds(threading.Lock()), "its maker.held (a lock)"),
        (Holds({"a": [1, threading.Lock()]}), "its maker.held['a'][1] (a lock)"),
        (Holds(threading.Lock()).make, "its maker.__self__.held (a lock)"),
        (functools.partial(with_held, threading.Lock()), "its maker.args[0] (a lock)"),
        (closed_over(threading.Lock()), "held in its maker (a lock)"),
        (functools.partial(Holds(Holds(threading.Lock()))), "its maker.func.held.held (a lock)"),
    ],
)
def test_a_maker_that_can_not_be_pickled_is_refused_with_the_part(maker, where):
    with pytest.raises(UsageError) as caught:
        check_travels(Task("mine", "torchrl", maker))
    message = str(caught.value)
    assert message.startswith(f"task 'mine' can't be sent to another process: {where} can't be pickled (TypeError: ")
    assert "lock" in message
    assert "\n" not in message


def test_a_maker_that_can_not_be_unpickled_is_refused():
    with pytest.raises(
        UsageError, match=r"task 'mine' can't be sent .* its maker can't be pickled \(TypeError: .*first"
    ):
        check_travels(Task("mine", "torchrl", Loses(1)))


@pytest.mark.parametrize(
    "maker",
    [
        point,
        lambda n, s: point(n, s),
        functools.partial(with_held, 3),
        Holds(1),
        Holds(2).make,
        closed_over("x"),
        None,
    ],
)
def test_makers_that_can_be_pickled_are_accepted(maker):
    check_travels(Task("mine", "torchrl" if maker else "mujoco", maker))


CHANGES = {
    "observation": (("first", 1), ("rest", 3)),
    "action_low": (-1.0, -2.0),
    "action_high": (1.0, 2.0),
    "horizon": None,
    "time_step_seconds": 0.01,
    "action_repeat": 3,
}


def test_every_field_of_a_spec_that_learning_depends_on_is_compared():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(TaskSpec)} - {"name", "engine", "info"}


@pytest.mark.parametrize("field", CHANGES)
def test_a_spec_that_has_changed_is_refused_with_both_values(field):
    saved, found = make_spec("left"), dataclasses.replace(make_spec("left"), **{field: CHANGES[field]})
    with pytest.raises(UsageError) as caught:
        check_specs([make_spec("other"), saved], [found], "in runs/a")
    message = str(caught.value)
    assert f"task 'left': {field} is {CHANGES[field]!r}, but was {getattr(saved, field)!r} in runs/a" in message


def test_specs_from_json_or_with_another_engine_are_equal():
    spec = make_spec("left", action_high=(float("inf"), 0.1))
    check_specs([TaskSpec.from_dict(spec.to_dict())], [dataclasses.replace(spec, engine="another")], "in runs/a")


def test_tasks_of_one_side_only_are_not_compared():
    check_specs([make_spec("left")], [make_spec("right", 5)], "in runs/a")
