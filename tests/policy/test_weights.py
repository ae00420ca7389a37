"""Weights: a snapshot is a finite copy and loads into a policy of the same layout only."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mtray.config.learner import NetworkConfig
from mtray.errors import RunError, SchemaError
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import layout_of, snapshot
from tests.makers import make_spec
from tests.oracles import load

SPECS = (make_spec("left", 3, 2), make_spec("right", 5, 1))
NETWORK = NetworkConfig(actor_width=8, embedding_size=4, head_layers=1)


def make_policy(seed=0, specs=SPECS, **changes):
    torch.manual_seed(seed)
    policy = MultiTaskPolicy(specs, dataclasses.replace(NETWORK, **changes))
    policy.mean.normal_()
    policy.scale.uniform_(0.5, 2)
    policy.embedding.normal_()
    return policy


def numbers(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_numbers(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_loaded_policy_has_equal_tensors_and_actions():
    teacher, pupil = make_policy(0), make_policy(1)
    observation = torch.randn(2, 6, 5)
    assert not torch.equal(pupil.act(observation, deterministic=True), teacher.act(observation, deterministic=True))
    weights = snapshot(teacher, 3)
    load(pupil, weights)
    assert weights.version == 3
    assert_same_numbers(numbers(pupil), numbers(teacher))
    assert torch.equal(pupil.act(observation, deterministic=True), teacher.act(observation, deterministic=True))


def test_snapshot_holds_every_parameter_and_buffer_as_one_float32_array():
    policy = make_policy()
    values = snapshot(policy, 0).values
    assert (values.dtype, values.ndim) == (np.float32, 1)
    assert values.flags.c_contiguous
    assert len(values) == sum(tensor.numel() for tensor in policy.state_dict().values())
    np.testing.assert_array_equal(values[: policy.mean.numel()], policy.mean.flatten().numpy())


def test_snapshot_is_a_copy():
    policy = make_policy()
    weights = snapshot(policy, 0)
    before = weights.values.copy()
    with torch.no_grad():
        for tensor in policy.state_dict().values():
            tensor.zero_()
    np.testing.assert_array_equal(weights.values, before)


def test_loaded_policy_shares_no_memory_with_the_snapshot():
    policy = make_policy()
    weights = snapshot(make_policy(1), 0)
    before = weights.values.copy()
    load(policy, weights)
    with torch.no_grad():
        for tensor in policy.state_dict().values():
            tensor.zero_()
    np.testing.assert_array_equal(weights.values, before)


def test_read_only_values_are_loaded():
    teacher, pupil = make_policy(0), make_policy(1)
    weights = snapshot(teacher, 0)
    weights.values.flags.writeable = False
    load(pupil, weights)
    assert_same_numbers(numbers(pupil), numbers(teacher))


def test_loading_is_in_place_and_keeps_requires_grad():
    policy = make_policy()
    pointers = {name: tensor.data_ptr() for name, tensor in policy.state_dict().items()}
    load(policy, snapshot(make_policy(1), 0))
    assert {name: tensor.data_ptr() for name, tensor in policy.state_dict().items()} == pointers
    assert all(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"specs": SPECS[:1]},
        {"specs": (SPECS[0], make_spec("right", 6, 1))},
        {"specs": (SPECS[0], make_spec("right", 5, 3))},
        {"actor_width": 16},
        {"actor_blocks": 2},
        {"embedding_size": 0},
        {"head_layers": 0},
        {"head_reads_observation": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_snapshot_of_another_layout_is_an_error_and_loads_nothing(changes):
    policy, weights = make_policy(), snapshot(make_policy(1, **changes), 0)
    before = numbers(policy)
    with pytest.raises(SchemaError, match=f"layout {weights.layout} do not fit a policy of layout {layout_of(policy)}"):
        load(policy, weights)
    assert_same_numbers(numbers(policy), before)


def test_layout_does_not_depend_on_values():
    assert layout_of(make_policy(0)) == layout_of(make_policy(1))


def test_layout_depends_on_names_and_shapes():
    layers = [nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(2, 3, bias=False))]
    assert len({layout_of(layer) for layer in layers}) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["mean", "backbone.0.weight", "heads.output.bias"])
def test_a_non_finite_value_is_an_error_with_the_tensors_name(name, value):
    policy = make_policy()
    with torch.no_grad():
        policy.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(RunError, match=f"'{name}' are not finite at version 7"):
        snapshot(policy, 7)


def test_a_snapshot_of_equal_size_and_another_layout_is_an_error():
    weights = snapshot(nn.Linear(2, 3, bias=False), 0)
    with pytest.raises(SchemaError, match="do not fit"):
        load(nn.Linear(3, 2, bias=False), weights)


def test_weights_of_tasks_in_another_order_are_an_error():
    left, right = make_spec("left", 3, 2), make_spec("right", 3, 2)
    weights = snapshot(MultiTaskPolicy([right, left], NetworkConfig()), 0)
    with pytest.raises(SchemaError, match="layout"):
        load(MultiTaskPolicy([left, right], NetworkConfig()), weights)
