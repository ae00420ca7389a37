"""`make_adamw` against torch's AdamW."""

import pytest
import torch

from mtray.learn.execution.parameters import load_moments, make_adamw, step

SHAPES = (3, 4), (5,)


def state_of(optimiser):
    return [part.clone() for state in optimiser.state_dict()["state"].values() for part in state.values()]


@pytest.mark.parametrize(("decay", "betas"), [(0.1, (0.9, 0.999)), (0.0, (0.5, 0.99))])
def test_steps_equal_torchs_before_and_after_loading_moments(decay, betas):
    torch.manual_seed(0)
    expected = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    tensors = [parameter.detach().clone() for parameter in expected]
    oracle = torch.optim.AdamW(expected, lr=0.01, weight_decay=decay, betas=betas, fused=True)
    optimiser = make_adamw(tensors, 0.01, weight_decay=decay, betas=betas)
    for number in range(6):
        if number == 3:
            saved = optimiser.state_dict()
            # Only the moments are loaded, not the learning rate.
            saved["param_groups"][0]["lr"] = 99.0
            optimiser = make_adamw(tensors, 0.01, weight_decay=decay, betas=betas)
            load_moments(optimiser, saved)
        gradients = [torch.randn(shape) for shape in SHAPES]
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient
        oracle.step()
        step(optimiser, tensors, gradients)
    for one, other in zip(tensors, expected, strict=True):
        assert torch.equal(one, other)


def test_state_keeps_its_addresses():
    tensors = [torch.ones(3)]
    optimiser = make_adamw(tensors, 0.1)
    before = [part.data_ptr() for part in optimiser.state[tensors[0]].values()]
    assert len(before) == 3
    step(optimiser, tensors, [torch.ones(3)])
    assert [part.data_ptr() for part in optimiser.state[tensors[0]].values()] == before


def test_skipped_steps_change_nothing():
    tensors, skip = [torch.ones(3)], torch.zeros(())
    optimiser = make_adamw(tensors, 0.1, weight_decay=0.1, skip=skip)
    step(optimiser, tensors, [torch.ones(3)])
    before = [tensors[0].clone(), *state_of(optimiser)]
    skip.fill_(1)
    step(optimiser, tensors, [torch.full((3,), float("inf"))])
    after = [tensors[0], *state_of(optimiser)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not torch.equal(tensors[0], torch.ones(3))
