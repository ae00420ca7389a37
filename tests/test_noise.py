"""Noise that is held: how long, where, and that it is normal."""

import numpy as np
import torch
from torch.testing import assert_close

from mtray.noise import RepeatedNoise, length_probabilities


def make_noise(*size, longest=16, seed=0):
    return RepeatedNoise(*size, longest=longest, generator=np.random.default_rng(seed))


def drawn(noise, steps):
    return torch.stack([torch.from_numpy(noise.draw().copy()) for _ in range(steps)])


def test_lengths_fall_with_their_square():
    # 1 + 1/4 + 1/9 = 49/36.
    np.testing.assert_allclose(length_probabilities(3), np.array([36, 9, 4]) / 49)


def test_noise_is_held_for_lengths_of_that_distribution():
    steps = drawn(make_noise(2, 50, 3, longest=4), 2000)
    starts = torch.ones(2000, 2, 50, dtype=torch.bool)
    starts[1:] = (steps[1:] != steps[:-1]).any(-1)
    assert ((steps[1:] != steps[:-1]).all(-1) == starts[1:]).all()
    lengths = torch.cat([torch.diff(column.nonzero()[:, 0]) for column in starts.flatten(1).T])
    shares = torch.bincount(lengths, minlength=5)[1:] / len(lengths)
    np.testing.assert_allclose(shares, length_probabilities(4), rtol=0, atol=0.01)


def test_noise_is_standard_normal_and_differs_between_copies():
    steps = drawn(make_noise(2, 200, 3), 500)
    assert_close(steps.mean((0, 1, 2)), torch.zeros(3), rtol=0, atol=0.05)
    assert_close(steps.std((0, 1, 2)), torch.ones(3), rtol=0, atol=0.05)
    assert len(steps[0].reshape(-1, 3).unique(dim=0)) == 400


def test_longest_one_draws_anew_at_every_step():
    steps = drawn(make_noise(1, 20, 2, longest=1), 50)
    assert (steps[1:] != steps[:-1]).all()


def test_a_copy_that_starts_anew_gets_new_noise_at_once_and_others_keep_theirs():
    noise = make_noise(1, 400, 2)
    before = noise.draw().copy()
    ended = np.zeros((1, 400), bool)
    ended[:, :200] = True
    noise.restart(ended)
    after = noise.draw()
    assert (before[:, :200] != after[:, :200]).all()
    assert (before[:, 200:] == after[:, 200:]).any()


def test_the_same_generator_gives_the_same_noise():
    assert torch.equal(drawn(make_noise(2, 3, 4, seed=5), 40), drawn(make_noise(2, 3, 4, seed=5), 40))
