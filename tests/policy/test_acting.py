"""Acting in numpy against the policy in torch."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from mtray.config.learner import NetworkConfig
from mtray.errors import SchemaError
from mtray.policy import acting
from mtray.policy.acting import Acting
from mtray.policy.layout import PolicyLayout
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import layout_of, snapshot
from mtray.tasks.registry import resolve

TASKS = ("humanoid-walk", "cartpole-swingup", "lqr-lqr_2_1")


def random_policy(config, action_noise=None):
    """Return a policy with random numbers in all tensors, so that the effect of each shows."""
    policy = MultiTaskPolicy([task.spec for task in resolve(TASKS)], config, action_noise=action_noise)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in policy.state_dict(keep_vars=True).items():
        if not name.startswith("action_"):
            tensor.data.normal_(generator=generator).mul_(0.1)
    policy.scale.abs_().add_(0.5)
    return policy


def acting_of(policy, ids=None):
    return Acting(policy.layout, policy.layout.arrays(snapshot(policy, 1)), ids)


NETWORKS = [
    (NetworkConfig(), None),
    (NetworkConfig(actor_blocks=0, embedding_size=0, adapter_size=0), None),
    (NetworkConfig(actor_blocks=2, head_layers=2, head_reads_observation=True), None),
    (NetworkConfig(actor_output_norm=False), None),
    (NetworkConfig(), 0.3),
]


@pytest.mark.parametrize(("config", "action_noise"), NETWORKS)
def test_the_layout_is_that_of_the_policys_state(config, action_noise):
    policy = random_policy(config, action_noise)
    layout, state = PolicyLayout(policy.specs, config, action_noise), policy.state_dict()
    assert policy.layout == layout
    assert [*layout.shapes.items()] == [(name, tuple(tensor.shape)) for name, tensor in state.items()]
    assert layout.digest == layout_of(policy)
    found = layout.arrays(snapshot(policy, 1))
    assert [*found] == [*state]
    for name, array in found.items():
        assert array.tobytes() == state[name].numpy().tobytes()
        assert array.dtype == np.float32
    # Acting has one number for all of them.
    assert {module.eps for module in policy.modules() if isinstance(module, torch.nn.LayerNorm)} == {acting._EPSILON}
    new = layout.initial_arrays()
    assert {name: array.shape for name, array in new.items()} == layout.shapes
    for name in ("action_middle", "action_reach", "action_mask"):
        assert (new[name] == state[name].numpy()).all()


def test_arrays_are_copies_and_those_of_another_layout_are_refused():
    policy = random_policy(NetworkConfig())
    weights = snapshot(policy, 1)
    before = weights.values.copy()
    for array in policy.layout.arrays(weights).values():
        array += 1
    assert (weights.values == before).all()
    other = PolicyLayout(policy.specs[::-1], policy.config)
    with pytest.raises(SchemaError, match=f"layout {weights.layout} do not fit a policy of layout {other.digest}"):
        other.arrays(weights)


@pytest.mark.parametrize("ids", [None, [2, 0], [1]])
@pytest.mark.parametrize(("config", "action_noise"), NETWORKS)
def test_actions_equal_the_policys(config, action_noise, ids):
    policy = random_policy(config, action_noise)
    found = acting_of(policy, None if ids is None else np.array(ids))
    ids = None if ids is None else torch.tensor(ids)
    tasks, obs, act = (len(TASKS) if ids is None else len(ids)), policy.mean.shape[-1], policy.action_mask.shape[-1]
    generator = torch.Generator().manual_seed(1)
    observation, noise = (torch.randn(tasks, 1000, size, generator=generator) for size in (obs, act))
    observation *= 20
    # The size of rounding errors depends on the networks, so they are measured against the policy in double precision.
    with torch.no_grad():
        exact = deepcopy(policy).double().act(observation.double(), ids, noise=noise.double())
        rounded = policy.act(observation, ids, noise=noise)
    assert exact.std() > 0.1
    error = torch.as_tensor(found(observation.numpy(), noise.numpy())) - exact
    assert error.abs().max() < 2e-4
    assert error.square().mean() < 2**2 * (rounded - exact).square().mean()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1e3, 1e-3), (-1e3, 1e-3), (1e4, 1e-2)])
def test_observations_far_from_zero_keep_their_precision(mean, deviation):
    # Rounding errors must be as small as with a mean of zero: 5e-6 to 7e-6, but 0.1 if scaled before subtracting.
    policy = random_policy(NetworkConfig())
    policy.mean.fill_(mean)
    policy.scale.fill_(1 / deviation)
    generator = torch.Generator().manual_seed(2)
    sizes = policy.mean.shape[-1], policy.action_mask.shape[-1]
    observation, noise = (torch.randn(len(TASKS), 1000, size, generator=generator) for size in sizes)
    observation = mean + deviation * observation
    exact = deepcopy(policy).double().act(observation.double(), noise=noise.double())
    found = acting_of(policy)(observation.numpy(), noise.numpy())
    assert exact.std() > 0.1
    assert np.abs(found - exact.detach().numpy()).max() < 3e-5


def test_arguments_and_policy_are_not_changed():
    policy = random_policy(NetworkConfig())
    sizes = policy.mean.shape[-1], policy.action_mask.shape[-1]
    observation, noise = (np.ones((3, 2, size), np.float32) for size in sizes)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    first = acting_of(policy)(observation, noise)
    again = acting_of(policy)(observation, noise)
    assert (first == again).all()
    assert (observation == 1).all()
    assert (noise == 1).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
