"""AdamW and gradients: torch's own are the oracle."""

import pytest
import torch

from mtray.config.settings import LearnerConfig, NetworkConfig
from mtray.learn import losses
from mtray.learn.optimiser import AdamW, Part
from mtray.policy.critic import MultiTaskCritic
from tests.makers import make_spec

SHAPES = (3, 4), (5,)


@pytest.mark.parametrize(("decay", "betas"), [(0.1, (0.9, 0.999)), (0.0, (0.5, 0.99))])
def test_it_steps_as_torchs_does_and_goes_on_where_it_was(decay, betas):
    torch.manual_seed(0)
    wanted = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    tensors = [parameter.detach().clone() for parameter in wanted]
    oracle = torch.optim.AdamW(wanted, lr=0.01, weight_decay=decay, betas=betas, fused=True)
    optimiser = AdamW(tensors, 0.01, decay, betas)
    for step in range(6):
        if step == 3:
            saved = optimiser.state_dict()
            optimiser = AdamW(tensors, 0.01, decay, betas)
            optimiser.load_state_dict(saved)
        gradients = [torch.randn(shape) for shape in SHAPES]
        for parameter, gradient in zip(wanted, gradients, strict=True):
            parameter.grad = gradient
        oracle.step()
        optimiser.step(gradients)
    for one, other in zip(tensors, wanted, strict=True):
        assert torch.equal(one, other)


def test_steps_found_infinite_leave_everything_as_it_is():
    tensor = torch.ones(3)
    optimiser = AdamW([tensor], 0.1, 0.1)
    optimiser.found_inf = torch.zeros(())
    optimiser.step([torch.ones(3)])
    before = [
        tensor.clone(),
        *(part.clone() for part in optimiser.state_dict()["means"]),
        optimiser.state_dict()["steps"].clone(),
    ]
    optimiser.found_inf.fill_(1)
    optimiser.step([torch.full((3,), float("inf"))])
    after = [tensor, *optimiser.state_dict()["means"], optimiser.state_dict()["steps"]]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("critics", [1, 2])
def test_gradient_surgery_frees_what_is_shared_and_leaves_each_tasks_own(critics):
    torch.manual_seed(0)
    specs = [make_spec(name, 3, 2) for name in ("a", "b", "c")]
    critic = MultiTaskCritic(specs, NetworkConfig(critic_width=16, critics=critics, embedding_size=4), 5)
    part = Part(critic.shared_parameters(), critic.heads, LearnerConfig(gradient_surgery="pcgrad"))
    observation, action = torch.randn(3, 8, 3), torch.randn(3, 8, 2)

    def forward():
        return critic(observation, action), observation.sum(-1) * critic.embedding.sum(-1, keepdim=True)

    outputs = forward()
    gradients = [torch.randn_like(output) for output in outputs]
    norm = part.differentiate(outputs, gradients)
    shared = []
    for task in range(3):
        loss = (forward()[0][:, task] * gradients[0][:, task]).sum() + (forward()[1][task] * gradients[1][task]).sum()
        alone = torch.autograd.grad(loss, critic.shared_parameters(), materialize_grads=True)
        shared.append(torch.cat([piece.reshape(-1) for piece in alone]))
    expected = losses.without_conflicts(torch.stack(shared))
    assert not torch.allclose(expected, torch.stack(shared).sum(0), rtol=1e-2)
    torch.testing.assert_close(part.gradients[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm, expected.norm())
    total = sum((output * gradient).sum() for output, gradient in zip(forward(), gradients, strict=True))
    own = torch.autograd.grad(total, list(critic.heads.parameters()))
    for found, wanted in zip(part.gradients[1:], own, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
