"""AdamW and gradients: torch's own are the oracle."""

import pytest
import torch

from mtray.learn.optimiser import AdamW

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
