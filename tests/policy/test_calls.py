"""Calls of a policy with TensorDicts: an action for each row, or an error with both shapes."""

import math

import numpy as np
import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict

from mtray.config.learner import NetworkConfig
from mtray.errors import SchemaError
from mtray.policy.policy import MultiTaskPolicy
from tests.makers import make_spec
from tests.policy.test_acting import acting_of

SPECS = (make_spec("left", 3, 2), make_spec("right", 5, 1))
KEY = "observation_left"


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return MultiTaskPolicy(SPECS, NetworkConfig(actor_width=16), deterministic=True).requires_grad_(False)


@pytest.fixture(scope="module")
def rows():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def row_actions(policy, rows):
    return torch.stack([policy(TensorDict({KEY: row}, []))["action"] for row in rows])


@pytest.mark.parametrize("size", [[4], [2, 2], [1, 4], [4, 1]])
def test_actions_of_any_batch_size_equal_those_row_by_row(policy, rows, row_actions, size):
    action = policy(TensorDict({KEY: rows.view(*size, 3)}, size))["action"]
    torch.testing.assert_close(action.view(4, 2), row_actions)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_other_floats_are_converted_to_float32(policy, rows, dtype):
    action = policy(TensorDict({KEY: rows.to(dtype)}, [4]))["action"]
    assert action.dtype == torch.float32
    assert torch.equal(action, policy(TensorDict({KEY: rows.to(dtype).float()}, [4]))["action"])


def test_an_empty_batch_gets_empty_actions(policy):
    assert policy(TensorDict({KEY: torch.zeros(0, 3)}, [0]))["action"].shape == (0, 2)


@pytest.mark.parametrize(
    ("shape", "batch", "expected"),
    [
        ((4, 3), [], (3,)),
        ((2, 2, 3), [2], (2, 3)),
        ((4, 1, 3), [4], (4, 3)),
        ((2,), [], (3,)),
        ((4,), [], (3,)),
        ((5, 30), [5], (5, 3)),
        ((4,), [4], (4, 3)),
    ],
)
def test_an_observation_of_another_shape_is_an_error_with_both_shapes(policy, shape, batch, expected):
    with pytest.raises(SchemaError) as caught:
        policy(TensorDict({KEY: torch.zeros(shape)}, batch))
    message = str(caught.value)
    assert f"task 'left': {KEY!r} has shape {shape}, expected {expected}" in message
    assert "batch size" in message


def test_one_wrong_element_of_a_stack_is_an_error(policy, rows):
    good, narrow = TensorDict({KEY: rows[0]}, []), TensorDict({"observation_right": rows[0]}, [])
    with pytest.raises(SchemaError, match=r"task 'right': 'observation_right' has shape \(3,\), expected \(5,\)"):
        policy(LazyStackedTensorDict.lazy_stack([good, narrow]))


@pytest.mark.parametrize("data", [{KEY: torch.zeros(3)}, torch.zeros(3), None])
def test_other_types_are_an_error(policy, data):
    with pytest.raises(SchemaError, match=f"not a {type(data).__name__}"):
        policy(data)


def test_an_unknown_task_is_an_error(policy):
    with pytest.raises(SchemaError, match="observation_middle"):
        policy(TensorDict({"observation_middle": torch.zeros(3)}, []))


def test_data_with_the_common_key_only_is_an_error_with_a_remedy(policy):
    data = TensorDict({"observation": torch.zeros(3)}, [])
    with pytest.raises(SchemaError, match=r"RenameTransform\(\['observation'\], \['observation_<task>'\]"):
        policy(data)
    alone = MultiTaskPolicy(SPECS[:1], NetworkConfig(actor_width=16))
    with pytest.raises(
        SchemaError, match=r"RenameTransform\(\['observation'\], \['observation_left'\], create_copy=True"
    ):
        alone(data)


# Bounds


def bounded(*bounds):
    low, high = zip(*bounds, strict=True)
    spec = make_spec("left", 3, len(bounds), action_low=low, action_high=high)
    return MultiTaskPolicy([spec], NetworkConfig(actor_width=16)).requires_grad_(False)


def test_an_action_entry_with_equal_bounds_is_constant_and_masked():
    policy = bounded((-1.0, 1.0), (0.25, 0.25), (0.0, 0.0))
    for deterministic in (True, False):
        action = policy.act(torch.randn(1, 50, 3), deterministic=deterministic)[0]
        assert (action[:, 1] == 0.25).all()
        assert (action[:, 2] == 0.0).all()
    noise = np.random.default_rng(0).standard_normal((1, 50, 3)).astype(np.float32)
    acted = acting_of(policy)(np.zeros((1, 50, 3), np.float32), noise)[0]
    assert (acted[:, 1:] == (0.25, 0.0)).all()
    back = policy.from_bounds(action.unsqueeze(0))[0]
    assert torch.isfinite(back).all()
    assert not back[:, 1:].any()
    assert policy.action_mask.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 0.7), (-0.3, 0.1), (1000.1, 1000.2), (1e-3, 1e5), (-2.0, 2.0), (0.1, 0.1000001)]
)
def test_actions_are_within_their_bounds_in_float32(low, high):
    policy = bounded((low, high))
    ends = policy.to_bounds(torch.tensor([[[-1.0], [0.0], [1.0]]])).double()
    acted = acting_of(policy).to_bounds(np.array([[[-1.0], [0.0], [1.0]]], np.float32)).astype(np.float64)
    for values in (ends.numpy(), acted):
        assert low <= values.min()
        assert values.max() <= high
        if high - low > 1e-3:
            assert math.isclose(values.max() - values.min(), high - low, rel_tol=1e-2)


def test_unbounded_actions_are_in_the_unit_interval():
    policy = bounded((-math.inf, math.inf), (-1e10, 1e10))
    assert torch.equal(policy.to_bounds(torch.ones(1, 1, 2)), torch.ones(1, 1, 2))


def test_gradients_with_an_entry_of_equal_bounds_are_finite():
    policy = bounded((-1.0, 1.0), (0.5, 0.5)).requires_grad_(True)
    action = policy.act(torch.randn(1, 8, 3))
    policy.from_bounds(action).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)
