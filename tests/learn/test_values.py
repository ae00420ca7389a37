"""Encodings of values in a critic's outputs, against numbers worked by hand and autograd."""

import pytest
import torch

from mtray.learn.values import Categorical, Scalar
from tests import oracles

ATOMS = torch.tensor([-2.0, 0.0, 2.0])
KINDS = pytest.mark.parametrize("kind", [Categorical(ATOMS), Scalar()], ids=["categorical", "scalar"])


def outputs_of(kind, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3 if isinstance(kind, Categorical) else 1, generator=generator)


def test_scalar_target_by_hand():
    # Two critics, one task, three rows. The lower value is used, and none where the episode terminated.
    outputs = torch.tensor([[[3.0, -1.0, 5.0]], [[2.0, 4.0, 7.0]]]).unsqueeze(-1)
    target = Scalar().target(
        outputs,
        torch.tensor([[1.0, 1.0, 1.0]]),
        torch.tensor([[False, False, True]]),
        torch.tensor([[0.5]]),
        torch.tensor([[0.5, 0.0, 9.0]]),
    )
    # 1 + 0.5 (2 + 0.5), 1 + 0.5 (-1), 1.
    assert target.tolist() == [[[2.25], [0.5], [1.0]]]


def test_categorical_target_by_hand():
    # All probability on 2, -2 or 0. In the first row the second critic has the lower value.
    certain = torch.tensor([[-99.0, -99.0, 99.0], [99.0, -99.0, -99.0], [-99.0, 99.0, -99.0]])
    outputs = torch.stack([certain[[0, 1]], certain[[2, 0]]]).unsqueeze(1)
    target = Categorical(ATOMS).target(
        outputs,
        torch.tensor([[1.0, 0.5]]),
        torch.tensor([[False, False]]),
        torch.tensor([[0.5]]),
        torch.tensor([[0.0, 0.0]]),
    )
    # 1 + 0.5 * 0 lies halfway between 0 and 2; 0.5 + 0.5 * -2 a quarter of the way from 0 to -2.
    torch.testing.assert_close(target, torch.tensor([[[0.0, 0.5, 0.5], [0.25, 0.75, 0.0]]]))


@KINDS
def test_gradients_equal_those_of_autograd(kind):
    outputs = outputs_of(kind, 2, 3, 4).requires_grad_()
    target = outputs_of(kind, 3, 4, seed=1)
    if isinstance(kind, Categorical):
        target = target.softmax(-1)
        expected = oracles.cross_entropy(outputs, target)
    else:
        expected = (outputs - target)[..., 0] ** 2 / 2
    loss, gradient = kind.loss(outputs.detach(), target)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), outputs)[0])
    value, gradient = kind.value(outputs.detach())
    expected = oracles.expected_value(outputs, ATOMS) if isinstance(kind, Categorical) else outputs[..., 0]
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), outputs)[0])


def test_rescaling_a_scalar_head_divides_its_values_by_the_ratio():
    weight, bias, inputs = torch.randn(2, 5, 1), torch.randn(2, 1), torch.randn(2, 7, 5)
    ratio = torch.tensor([0.5, 3.0])
    new_weight, new_bias = Scalar().rescale(weight, bias, ratio)
    before = torch.baddbmm(bias.unsqueeze(1), inputs, weight)
    after = torch.baddbmm(new_bias.unsqueeze(1), inputs, new_weight)
    torch.testing.assert_close(after, before / ratio[:, None, None])
