"""The lean form of the policy against the policy itself."""

import numpy as np
import pytest
import torch

from mtray.acting import Acting
from mtray.config import NetworkConfig
from mtray.networks import MultiTaskPolicy
from mtray.tasks import resolve

TASKS = ("humanoid-walk", "cartpole-swingup", "lqr-lqr_2_1")


def drawn(config, seed=0):
    """A policy whose every number is drawn, so that none is at a value that hides it."""
    policy = MultiTaskPolicy([task.spec for task in resolve(TASKS)], config)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in policy.state_dict(keep_vars=True).items():
        if not name.startswith("action_"):
            tensor.data.normal_(generator=generator).mul_(0.1)
    policy.scale.abs_().add_(0.5)
    return policy


@pytest.mark.parametrize("ids", [None, [2, 0], [1]])
@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(),
        NetworkConfig(actor_blocks=0, embedding_size=0, adapter_size=0),
        NetworkConfig(actor_blocks=2, head_layers=2, head_reads_observation=True),
        NetworkConfig(actor_output_norm=False),
    ],
)
def test_acting_is_the_policys_act(config, ids):
    policy = drawn(config)
    acting = Acting(policy, None if ids is None else np.array(ids))
    ids = None if ids is None else torch.tensor(ids)
    tasks, obs = len(TASKS) if ids is None else len(ids), policy.mean.shape[-1]
    observation, noise = 20 * torch.randn(tasks, 5, obs), torch.randn(tasks, 5, policy.action_mask.shape[-1])
    with torch.no_grad():
        expected = policy.act(observation, ids, noise=noise)
    assert expected.std() > 0.1
    np.testing.assert_allclose(acting(observation.numpy(), noise.numpy()), expected, atol=1e-5, rtol=0)


def test_what_it_is_given_stays_as_it_was():
    policy = drawn(NetworkConfig())
    sizes = policy.mean.shape[-1], policy.action_mask.shape[-1]
    observation, noise = (np.ones((3, 2, size), np.float32) for size in sizes)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    first = Acting(policy)(observation, noise)
    again = Acting(policy)(observation, noise)
    assert (first == again).all()
    assert (observation == 1).all()
    assert (noise == 1).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
