"""Exploration: distribution and holding times of noise and random actions, and the choice of random episodes."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mtray.collect.exploration import NoiseFactors, RandomEpisodes, normal_noise, random_actions, zeta
from mtray.engines import states


def make_noise(*size, longest=16, seed=0):
    return normal_noise(size, longest, np.random.default_rng(seed))


def drawn(noise, steps):
    return torch.stack([torch.from_numpy(noise.draw().copy()) for _ in range(steps)])


def test_zeta_is_a_power_of_the_length():
    # 1 + 1/4 + 1/9 = 49/36; 1 + 1/2 + 1/3 = 11/6.
    np.testing.assert_allclose(zeta(3, 2), np.array([36, 9, 4]) / 49)
    np.testing.assert_allclose(zeta(3, 1), np.array([6, 3, 2]) / 11)


@pytest.mark.parametrize(("make", "exponent"), [(normal_noise, 2), (random_actions, 1)])
def test_values_are_held_for_zeta_distributed_lengths(make, exponent):
    steps = drawn(make((2, 50, 3), 4, np.random.default_rng(0)), 2000)
    starts = torch.ones(2000, 2, 50, dtype=torch.bool)
    starts[1:] = (steps[1:] != steps[:-1]).any(-1)
    assert ((steps[1:] != steps[:-1]).all(-1) == starts[1:]).all()
    lengths = torch.cat([torch.diff(column.nonzero()[:, 0]) for column in starts.flatten(1).T])
    shares = torch.bincount(lengths, minlength=5)[1:] / len(lengths)
    np.testing.assert_allclose(shares, zeta(4, exponent), rtol=0, atol=0.01)


def test_noise_is_standard_normal_and_differs_between_copies():
    steps = drawn(make_noise(2, 200, 3), 500)
    assert_close(steps.mean((0, 1, 2)), torch.zeros(3), rtol=0, atol=0.05)
    assert_close(steps.std((0, 1, 2)), torch.ones(3), rtol=0, atol=0.05)
    assert len(steps[0].reshape(-1, 3).unique(dim=0)) == 400


def test_a_longest_of_one_draws_at_every_step():
    steps = drawn(make_noise(1, 20, 2, longest=1), 50)
    assert (steps[1:] != steps[:-1]).all()


def test_a_restarted_copy_gets_new_noise_and_others_keep_theirs():
    noise = make_noise(1, 400, 2)
    before = noise.draw().copy()
    ended = np.zeros((1, 400), bool)
    ended[:, :200] = True
    noise.restart(ended)
    after = noise.draw()
    assert (before[:, :200] != after[:, :200]).all()
    assert (before[:, 200:] == after[:, 200:]).any()


def test_a_copy_keeps_its_factor_until_its_episode_ends():
    factors = NoiseFactors(2, 400, 0.5, 4.0, np.random.default_rng(0))
    none_beaten = np.zeros(2, bool)
    first = factors.draw(none_beaten).copy()
    assert first.shape == (2, 400, 1)
    assert (factors.draw(none_beaten) == first).all()
    # Uniform in the logarithm: a third in each octave.
    shares = np.histogram(first, [0.5, 1.0, 2.0, 4.0])[0] / first.size
    np.testing.assert_allclose(shares, 1 / 3, rtol=0, atol=0.05)
    ended = np.zeros((2, 400), bool)
    ended[1, :100] = True
    factors.restart(ended)
    second = factors.draw(none_beaten).copy()
    assert ((second != first)[..., 0] == ended).all()
    # Where random actions are beaten, the next episodes have the policy's own noise.
    factors.restart(ended)
    third = factors.draw(np.array([False, True]))[..., 0]
    assert (third[ended] == 1).all()
    assert (third[~ended] == second[..., 0][~ended]).all()


def test_equal_limits_leave_the_noise_as_it_is():
    assert (NoiseFactors(2, 50, 1.0, 1.0, np.random.default_rng(0)).draw(np.zeros(2, bool)) == 1).all()


def test_factors_go_on_from_a_state():
    one, other = (NoiseFactors(1, 8, 0.1, 10.0, np.random.default_rng(seed)) for seed in (0, 1))
    none_beaten = np.zeros(1, bool)
    one.draw(none_beaten)
    one.restart(np.arange(8)[None] < 3)
    other.load_state(states.from_bytes(states.to_bytes(one.state())))
    for _ in range(3):
        assert (one.draw(none_beaten) == other.draw(none_beaten)).all()
        for each in (one, other):
            each.restart(np.arange(8)[None] % 2 == 0)


def test_the_same_generator_gives_the_same_noise():
    assert torch.equal(drawn(make_noise(2, 3, 4, seed=5), 40), drawn(make_noise(2, 3, 4, seed=5), 40))


def test_random_actions_fill_their_range_evenly():
    steps = drawn(random_actions((2, 200, 3), 8, np.random.default_rng(0)), 500)
    shares = torch.histc(steps, 4, -1, 1) / steps.numel()
    assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.02)


def chosen_of(share, copies=500, seed=0):
    return RandomEpisodes(2, copies, share, np.random.default_rng(seed))


def test_a_share_of_episodes_is_random_until_they_end():
    chosen = chosen_of(0.2)
    first = chosen.draw().copy()
    assert all((chosen.draw() == first).all() for _ in range(999))
    np.testing.assert_allclose(first.mean(), 0.2, atol=0.05)
    # An episode of more than 1,000 steps chooses again.
    after = chosen.draw().copy()
    np.testing.assert_allclose((after & first).mean(), 0.04, atol=0.03)
    ended = np.zeros((2, 500), bool)
    ended[0] = True
    chosen.restart(ended)
    again = chosen.draw()
    assert (again[1] == after[1]).all()
    assert (again[0] != after[0]).any()
    np.testing.assert_allclose(again.mean(), 0.2, atol=0.05)


@pytest.mark.parametrize("share", [0, 1])
def test_all_or_no_episodes_may_be_random(share):
    assert (chosen_of(share).draw() == share).all()


def test_episodes_are_random_until_the_policy_returns_more_than_the_best_of_them():
    chosen = chosen_of(0.5)

    def shares():
        chosen.restart(np.ones((2, 500), bool))
        return chosen.draw().mean(1)

    for task, episode_return, of_policy, random in (
        (0, 5.0, True, True),  # Nothing to compare with.
        (0, -1.0, False, False),
        (0, 7.0, False, True),  # A random episode returned more.
        (0, 9.0, True, True),  # A mean of 7 does not exceed 7.
        (0, 8.0, True, False),
        (0, -50.0, True, True),  # The policy has become worse.
    ):
        chosen.add(task, episode_return, of_policy)
        np.testing.assert_allclose(shares(), [0.5 * random, 0.5], atol=0.1)
        assert chosen.is_beaten.tolist() == [not random, False]
    # The newest twenty count.
    for _ in range(20):
        chosen.add(0, 7.1, True)
    assert shares()[0] == 0
    chosen.add(0, 8.0, False)
    assert shares()[0] > 0.4
    for _ in range(20):
        chosen.add(0, 1.0, False)
    assert shares()[0] == 0


@pytest.mark.parametrize(("share", "more"), [(0.0, 0.0), (0.05, 0.2), (0.2, 0.5), (0.7, 0.7)])
def test_the_random_share_grows_while_the_policys_returns_are_all_equal(share, more):
    chosen = chosen_of(share)

    def shares():
        chosen.restart(np.ones((2, 500), bool))
        return chosen.draw().mean(1)

    for _ in range(4):
        chosen.add(0, 0.0, True)
    np.testing.assert_allclose(shares(), [share, share], atol=0.05)
    chosen.add(0, 0.0, True)
    np.testing.assert_allclose(shares(), [more, share], atol=0.05)
    chosen.add(0, 3.0, False)  # A return of a random episode does not change the share;
    np.testing.assert_allclose(shares(), [more, share], atol=0.05)
    chosen.add(0, 1.0, True)  # a different return of the policy does.
    np.testing.assert_allclose(shares(), [share, share], atol=0.05)
    for _ in range(20):
        chosen.add(0, 5.0, True)
    assert shares()[0] == 0  # All equal, but better.


def test_choices_go_on_from_a_state_with_the_returns_that_are_compared():
    one, other = (RandomEpisodes(2, 50, 0.5, np.random.default_rng(seed)) for seed in (0, 1))
    one.add(1, 3.0, False)
    one.add(1, 1.0, True)
    one.draw()
    other.add(1, 50.0, False)
    other.load_state({name: array.copy() for name, array in one.state().items()})
    assert (one.is_beaten == other.is_beaten).all()
    for chosen in (one, other):
        # Better than the random episode that was before.
        for _ in range(2):
            chosen.add(1, 6.0, True)
        chosen.restart(np.ones((2, 50), bool))
    assert (one.draw() == other.draw()).all()
    assert not other.draw()[1].any()
    for chosen in (one, other):
        # The policy's mean falls below the best random return.
        chosen.add(1, -5.0, True)
        chosen.restart(np.ones((2, 50), bool))
    assert (one.draw() == other.draw()).all()
    assert other.draw()[1].any()
