"""The schema: what is refused, and that a refusal says which task, which key and both shapes."""

import json
import math

import pytest
import torch
from numpy.random import default_rng
from tensordict import LazyStackedTensorDict, TensorDict

from mtray.data.schema import by_task, expected_shapes, task_of, validate
from mtray.data.specs import TaskSpec, action_width, check_together, observation_width, task_key
from mtray.errors import SchemaError, UsageError
from tests.makers import make_spec, random_rollout

SPEC = make_spec("left", observation=3, action=2)
WIDTH = 5


@pytest.fixture
def data():
    return random_rollout(SPEC, WIDTH, 4, 6, default_rng(0))[0]


def test_expected_shapes_are_the_documented_keys():
    f, b = torch.float32, torch.bool
    assert expected_shapes(SPEC, WIDTH) == {
        "observation": (5, f),
        "observation_left": (3, f),
        "action": (2, f),
        "done": (1, b),
        "terminated": (1, b),
        "truncated": (1, b),
        ("next", "observation"): (5, f),
        ("next", "observation_left"): (3, f),
        ("next", "reward"): (1, f),
        ("next", "done"): (1, b),
        ("next", "terminated"): (1, b),
        ("next", "truncated"): (1, b),
    }


def test_sizes_follow_from_the_entries():
    spec = make_spec(observation=7, action=4)
    assert (spec.observation_size, spec.action_size, spec.row_size) == (7, 4, 13)
    assert spec.key == task_key("left") == "observation_left"


def test_widths_are_those_of_the_widest_task():
    specs = [make_spec("a", 7, 1), make_spec("b", 3, 4)]
    assert (observation_width(specs), action_width(specs)) == (7, 4)


def test_spec_comes_back_from_json():
    spec = make_spec("x", 3, 2, action_low=(-0.1, -1e10), action_high=(1 / 3, 1e10), horizon=1000)
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_spec_without_horizon_and_bounds_comes_back_from_json():
    spec = make_spec("x", 3, 1, action_low=(-math.inf,), action_high=(math.inf,), horizon=None, time_step_seconds=None)
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("steps", [(4, 6), (24,), ()])
def test_data_of_any_batch_size_is_valid(data, steps):
    size = data.reshape(24)[0] if not steps else data.reshape(*steps)
    validate(size, SPEC, WIDTH)


@pytest.mark.parametrize("key", list(expected_shapes(SPEC, WIDTH)), ids=str)
def test_missing_key_is_named_with_its_shape_and_the_found_keys(data, key):
    expected = (4, 6, expected_shapes(SPEC, WIDTH)[key][0])
    del data[key]
    with pytest.raises(SchemaError) as caught:
        validate(data, SPEC, WIDTH)
    message = str(caught.value)
    assert "'left'" in message
    assert f"key {key!r} of shape {expected} is missing" in message
    assert ("action" if key != "action" else "observation_left") in message.partition("found")[2]


@pytest.mark.parametrize("key", ["reward", "observation_right", ("next", "action"), ("extra", "deep")], ids=str)
def test_extra_key_is_named_with_its_shape(data, key):
    data[key] = torch.zeros(4, 6, 9)
    with pytest.raises(SchemaError) as caught:
        validate(data, SPEC, WIDTH)
    message = str(caught.value)
    assert "'left'" in message
    assert f"key {key!r} of shape (4, 6, 9) is not in the task's schema" in message
    assert "observation_left" in message.partition("schema")[2]


@pytest.mark.parametrize("key", list(expected_shapes(SPEC, WIDTH)), ids=str)
def test_wrong_width_is_refused_with_both_shapes(data, key):
    last, dtype = expected_shapes(SPEC, WIDTH)[key]
    data[key] = torch.zeros(4, 6, last + 1, dtype=dtype)
    with pytest.raises(SchemaError) as caught:
        validate(data, SPEC, WIDTH)
    message = str(caught.value)
    assert "'left'" in message
    assert f"key {key!r} has shape {(4, 6, last + 1)}" in message
    assert f"the schema says {(4, 6, last)}" in message


@pytest.mark.parametrize("key", list(expected_shapes(SPEC, WIDTH)), ids=str)
def test_wrong_dtype_is_refused_with_both_dtypes(data, key):
    dtype = expected_shapes(SPEC, WIDTH)[key][1]
    wrong = torch.float64 if dtype is torch.float32 else torch.float32
    data[key] = data[key].to(wrong)
    with pytest.raises(SchemaError, match="'left'") as caught:
        validate(data, SPEC, WIDTH)
    assert repr(key) in str(caught.value)
    assert str(wrong) in str(caught.value)
    assert str(dtype) in str(caught.value)


def test_flag_without_last_axis_is_refused(data):
    flat = TensorDict({**dict(data.items()), "done": data["done"].squeeze(-1)}, [4, 6])
    with pytest.raises(SchemaError, match=r"'done' has shape \(4, 6\) .* the schema says \(4, 6, 1\)"):
        validate(flat, SPEC, WIDTH)


def test_task_is_identified_by_its_exclusive_key(data):
    assert task_of(data, ["right", "left"]) == "left"


def test_data_of_no_known_task_is_refused_with_its_keys(data):
    with pytest.raises(SchemaError, match="found none") as caught:
        task_of(data, ["right", "lef"])
    assert "observation_left" in str(caught.value)


def test_data_of_two_tasks_is_refused_with_both(data):
    data["observation_right"] = data["observation"]
    with pytest.raises(SchemaError, match=r"\['right', 'left'\]"):
        task_of(data, ["right", "left"])


def test_stack_is_split_in_its_own_order(data):
    right = random_rollout(make_spec("right", 4, 1), WIDTH, 4, 6, default_rng(1))[0]
    found = by_task(LazyStackedTensorDict.lazy_stack([right, data], 0), ["left", "right"])
    assert list(found) == ["right", "left"]
    assert found["right"] is right
    assert found["left"] is data


def test_one_tasks_tensordict_is_a_stack_of_one(data):
    assert by_task(data, ["left", "right"]) == {"left": data}


def test_task_twice_in_a_stack_is_refused_by_name(data):
    with pytest.raises(SchemaError, match="'left' is twice"):
        by_task(LazyStackedTensorDict.lazy_stack([data, data.clone()], 0), ["left"])


def test_valid_tasks_pass():
    assert check_together([make_spec("a"), make_spec("b", 9, 1)]) is None


def test_no_task_is_refused_with_an_example():
    with pytest.raises(UsageError, match="--tasks"):
        check_together([])


def test_same_name_in_two_engines_is_refused_with_both():
    with pytest.raises(UsageError, match=r"'a' is named twice.*'one'.*'two'"):
        check_together([make_spec("a", engine="one"), make_spec("b"), make_spec("a", engine="two")])


@pytest.mark.parametrize(("observation", "action"), [(0, 2), (3, 0)])
def test_task_without_observation_or_action_is_refused_with_the_counts(observation, action):
    with pytest.raises(UsageError, match=f"'a' has {observation} observation and {action} action"):
        check_together([make_spec("a", observation, action)])


@pytest.mark.parametrize("name", ["a\0b", "a\udc80b", "a\rb", "\x1b[2J"])
def test_task_name_that_is_not_printable_is_refused(name):
    with pytest.raises(UsageError, match="use printable characters only") as caught:
        check_together([make_spec(name)])
    assert str(caught.value).isprintable()
