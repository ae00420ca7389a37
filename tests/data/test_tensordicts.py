"""Conversion of TensorDicts to arrays and back: bit for bit, and only of data that matches the schema."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from tensordict import LazyStackedTensorDict

from mtray.data.rollout import TaskRollout
from mtray.data.schema import validate
from mtray.data.specs import observation_width
from mtray.data.tensordicts import to_rollout, to_stack
from mtray.errors import SchemaError
from tests.makers import assert_same_bits, make_spec, random_rollout, random_transitions

SPECS = (make_spec("left", 3, 2), make_spec("right", 1, 3), make_spec("wide", 5, 1))
WIDTH = observation_width(SPECS)


@settings(max_examples=40, deadline=None)
@given(st.permutations(SPECS), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_lazy_stack_of_any_tasks_comes_back_from_its_arrays_bit_for_bit(specs, count, copies, steps, seed):
    generator = default_rng(seed)
    chosen = specs[:count]
    data = {spec.name: random_rollout(spec, WIDTH, copies, steps, generator)[0] for spec in chosen}
    stack = to_stack({spec.name: to_rollout(data[spec.name], spec, WIDTH) for spec in chosen}, SPECS)
    assert isinstance(stack, LazyStackedTensorDict)
    for found, spec in zip(stack.tensordicts, chosen, strict=True):
        validate(found, spec, WIDTH)
        assert_same_bits(found, data[spec.name])


def test_arrays_are_of_the_tasks_own_widths_and_contiguous():
    spec = SPECS[0]
    rollout = to_rollout(random_rollout(spec, WIDTH, 2, 4, default_rng(0), shared=True)[0], spec, WIDTH)
    assert isinstance(rollout, TaskRollout)
    assert rollout.observation.shape == rollout.next_observation.shape == (2, 4, 3)
    assert all(array.flags.c_contiguous for array in vars(rollout).values())
    like = vars(TaskRollout.zeros(spec, 2, 4))
    assert {name: (array.shape, array.dtype) for name, array in vars(rollout).items()} == {
        name: (array.shape, array.dtype) for name, array in like.items()
    }


def test_unordered_transitions_are_one_copy():
    spec = SPECS[0]
    assert to_rollout(random_transitions(spec, WIDTH, 7, default_rng(0)), spec, WIDTH).action.shape == (1, 7, 2)


def test_actions_with_a_gradient_are_taken():
    spec = SPECS[0]
    data = random_transitions(spec, WIDTH, 4, default_rng(0))
    action = torch.ones(4, 2, requires_grad=True)
    data["action"] = action * 2
    np.testing.assert_array_equal(to_rollout(data, spec, WIDTH).action, np.full((1, 4, 2), 2, np.float32))


def test_data_of_another_task_is_refused():
    with pytest.raises(SchemaError, match="'right'"):
        to_rollout(random_transitions(SPECS[0], WIDTH, 4, default_rng(0)), SPECS[1], WIDTH)
