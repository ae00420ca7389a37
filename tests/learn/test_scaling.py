"""Reward scales against numbers worked by hand."""

import pytest
import torch
from torch.testing import assert_close

from mtray.learn import scaling


@pytest.mark.parametrize(
    ("largest_return", "largest_reward", "discount", "headroom", "expected"),
    [
        (10.0, 1.0, 0.99, 3.0, 30.0),
        (50.0, 1.0, 0.99, 3.0, 100.0),  # The largest reward at every step: 1 / 0.01.
        (100.5, 1.0, 0.99, 3.0, 100.5),  # At least the return seen.
        (10.0, 1.0, 0.99, 1.0, 10.0),
        (0.0, 0.0, 0.95, 3.0, 0.0),
    ],
)
def test_possible_return_of_worked_numbers(largest_return, largest_reward, discount, headroom, expected):
    assert scaling.possible_return(largest_return, largest_reward, discount, headroom) == pytest.approx(expected)


def test_reward_scale_of_worked_numbers():
    found = scaling.reward_scale(
        torch.tensor([10.0, 0.0, 4.0]),
        torch.tensor([0.1, 0.0, 1.0]),
        torch.tensor([-3.0, -3.0, -0.5]),
        torch.tensor([0.95, 0.99, 0.75]),
        10.0,
    )
    # (10 + 0.1 * 3 / 0.1) / 10; the minimum; (4 + 0.5 / 0.5) / 10.
    assert_close(found, torch.tensor([1.3, 1e-3, 0.5]), rtol=1e-5, atol=1e-6)
