"""Losses against numbers worked by hand, torch's distributions, autograd, and properties of any input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from mtray.learn import losses
from tests import oracles

ATOMS = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])


def close(found, expected):
    assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def atoms_of(number, limit):
    return torch.linspace(-limit, limit, number)


# The critic's target


def test_oracle_projection_splits_each_value_between_its_neighbours():
    atoms = torch.tensor([-1.0, 0.0, 1.0])
    # -1.5 is clipped to -1. 0.25: three quarters to 0, one to 1. 0.5: halves.
    found = oracles.project(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-1.5, 0.25, 0.5]), atoms)
    close(found, [0.2, 0.525, 0.275])


@st.composite
def moved_distributions(draw):
    """Atoms and probabilities [2, atoms], with a reward, discount and entropy bonus [2] that move the atoms."""
    atoms = atoms_of(draw(st.integers(2, 51)), draw(st.floats(0.5, 50.0)))
    size = atoms.numel()
    weights = torch.tensor(draw(st.lists(st.floats(0, 1), min_size=2 * size, max_size=2 * size))).view(2, size)
    weights[:, draw(st.integers(0, size - 1))] += 0.1
    reward, bonus = (torch.tensor(draw(st.lists(st.floats(-9.0, 9.0), min_size=2, max_size=2))) for _ in range(2))
    discount = torch.tensor(draw(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2)))
    terminated = torch.tensor(draw(st.lists(st.booleans(), min_size=2, max_size=2)))
    return atoms, weights / weights.sum(-1, keepdim=True), reward, terminated, discount, bonus


@settings(max_examples=200, deadline=None)
@given(moved_distributions())
def test_target_is_the_projection_of_the_moved_atoms(drawn):
    atoms, probabilities, reward, terminated, discount, bonus = drawn
    found = losses.soft_target(probabilities, reward, terminated, discount, bonus, atoms)
    reached = (discount * ~terminated).unsqueeze(-1) * (atoms + bonus.unsqueeze(-1))
    values = reward.unsqueeze(-1) + reached
    # Shares are differences of positions up to 50, in single precision.
    assert_close(found, oracles.project(probabilities, values, atoms), rtol=0, atol=1e-4)
    assert found.min() >= -2e-5
    assert_close(found.sum(-1), torch.ones(2), rtol=0, atol=1e-5)
    mean, limit = (probabilities * values.clamp(atoms[0], atoms[-1])).sum(-1), float(atoms[-1])
    assert_close((found * atoms).sum(-1), mean, rtol=0, atol=1e-5 * limit)


def test_target_without_reward_and_discount_equals_the_distribution():
    atoms = atoms_of(101, 10.0)
    probabilities = torch.softmax(torch.arange(101) / 30.0, 0)
    zero = torch.tensor(0.0)
    found = losses.soft_target(probabilities, zero, torch.tensor(False), torch.tensor(1.0), zero, atoms)
    assert_close(found, probabilities, rtol=0, atol=1e-6)


def test_target_of_a_nan_reward_has_nan():
    assert target(terminated=False, reward=math.nan).isnan().any()


def target(terminated, reward=0.5, discount=0.5, bonus=0.5):
    return losses.soft_target(
        torch.tensor([0.0, 0.0, 0.5, 0.5, 0.0]),
        torch.tensor(reward),
        torch.tensor(terminated),
        torch.tensor(discount),
        torch.tensor(bonus),
        ATOMS,
    )


def test_target_is_bootstrapped_unless_the_episode_terminated():
    # 0.5 + 0.5 (0 + 0.5) = 0.75 and 0.5 + 0.5 (1 + 0.5) = 1.25, each with half of the mass.
    close(target(terminated=False), [0.0, 0.0, 0.125, 0.75, 0.125])


def test_target_of_a_terminated_episode_is_the_reward():
    close(target(terminated=True), [0.0, 0.0, 0.5, 0.5, 0.0])


def test_negative_entropy_bonus_lowers_the_target():
    # -1 + 1 (0 - 0.5) = -1.5 and -1 + 1 (1 - 0.5) = -0.5.
    close(target(terminated=False, reward=-1.0, discount=1.0, bonus=-0.5), [0.25, 0.5, 0.25, 0.0, 0.0])


def test_target_uses_each_tasks_and_rows_reward_termination_and_discount():
    probabilities = torch.zeros(2, 2, 5)
    probabilities[..., 4] = 1.0
    found = losses.soft_target(
        probabilities,
        torch.tensor([[0.0, 1.0], [0.0, -1.0]]),
        torch.tensor([[False, True], [False, False]]),
        torch.tensor([[0.5], [0.25]]),
        torch.zeros(2, 2),
        ATOMS,
    )
    # 0.5 * 2; 1; 0.25 * 2; -1 + 0.25 * 2.
    close(found, [[[0, 0, 0, 1.0, 0], [0, 0, 0, 1.0, 0]], [[0, 0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0, 0]]])


def test_cross_entropy_of_worked_numbers():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])
    # Probabilities 1/4 and 3/4: -(ln 1/4 + ln 3/4) / 2; then ln 2.
    close(oracles.cross_entropy(logits, torch.tensor([[0.5, 0.5], [1.0, 0.0]])), [0.8369882, 0.6931472])


def test_cross_entropy_has_zero_gradient_at_its_target():
    logits = torch.tensor([0.3, -1.0, 2.0], requires_grad=True)
    oracles.cross_entropy(logits, logits.detach().softmax(-1)).backward()
    close(logits.grad, [0.0, 0.0, 0.0])
    oracles.cross_entropy(logits, torch.tensor([0.0, 1.0, 0.0])).backward()
    assert logits.grad[1] < 0 < logits.grad[0]


def test_expected_value_of_worked_numbers():
    logits = torch.tensor([[0.0, math.log(3)], [1.0, 1.0]])
    close(oracles.expected_value(logits, torch.tensor([-1.0, 3.0])), [2.0, 1.0])


# The policy's sample


def sample(mean, log_std, noise, mask):
    return losses.tanh_gaussian_sample(*(torch.tensor(value) for value in (mean, log_std, noise, mask)))


def test_squashed_sample_of_the_standard_normals_mean():
    action, log_density = sample([0.0], [0.0], [0.0], [1.0])
    close(action, [0.0])
    close(log_density, -0.9189385)


def test_squashed_sample_of_worked_numbers():
    # u = 1 + 0.5 * 0.5 = 1.25; log N = -0.125 + ln 2 - 0.9189385 = -0.3507914; ln(1 - tanh(u)^2) = -1.2714801.
    action, log_density = sample([1.0], [-math.log(2)], [0.5], [1.0])
    close(action, [0.8482836])
    close(log_density, 0.9206887)


def test_squashed_sample_equals_torchs_transformed_distribution():
    generator = torch.Generator().manual_seed(0)
    mean, noise = (torch.randn(3, 7, 4, generator=generator) for _ in range(2))
    log_std = torch.rand(3, 7, 4, generator=generator) * 3 - 2.5
    action, log_density = losses.tanh_gaussian_sample(mean, log_std, noise, torch.ones(4))
    pre_tanh = mean + noise * log_std.exp()
    base = TransformedDistribution(Normal(torch.zeros_like(mean), 1.0), [AffineTransform(mean, log_std.exp())])
    oracle = TransformedDistribution(base, [TanhTransform(cache_size=1)])
    assert_close(action, torch.tanh(pre_tanh), rtol=0, atol=1e-6)
    # In double precision, from the value before the tanh: torch's own form inverts a saturated tanh.
    double = pre_tanh.double()
    exact = Independent(Normal(mean.double(), log_std.double().exp()), 1).log_prob(double)
    exact = exact - torch.log1p(-torch.tanh(double).square()).sum(-1)
    assert_close(log_density.double(), exact, rtol=1e-5, atol=1e-5)
    mild = (pre_tanh.abs() < 2).all(-1)
    assert mild.any()
    found = oracle.log_prob(action).sum(-1)
    assert_close(log_density[mild], found[mild], rtol=1e-5, atol=2e-5)


def test_density_of_a_saturated_action_is_finite_and_has_a_gradient():
    mean = torch.tensor([30.0, -30.0], requires_grad=True)
    action, log_density = losses.tanh_gaussian_sample(mean, torch.zeros(2), torch.zeros(2), torch.ones(2))
    close(action.detach(), [1.0, -1.0])
    # log N - 2 (ln 2 - 30) each way.
    close(log_density.detach(), 2 * (-0.9189385 + 60 - 2 * 0.6931472))
    log_density.backward()
    close(mean.grad, [2.0, -2.0])


def test_padded_dimension_is_zero_and_does_not_change_the_density():
    action, log_density = sample([0.3, 5.0], [0.1, 1.0], [0.7, -2.0], [1.0, 0.0])
    alone, density_alone = sample([0.3], [0.1], [0.7], [1.0])
    assert action.tolist() == [alone.item(), 0.0]
    assert log_density.item() == pytest.approx(density_alone.item(), abs=1e-6)


# Temperature


def test_temperature_gradient_of_worked_numbers():
    # Entropies of mean 2 and 0: 1 (-2 - (-1)), 2 (0 - (-3)).
    found = losses.temperature_gradient(
        torch.tensor([0.0, math.log(2)]), torch.tensor([-2.0, 0.0]), torch.tensor([-1.0, -3.0])
    )
    close(found, [-1.0, 6.0])


def terminal_target(value, atoms):
    """Return the target of an episode that terminated with this reward."""
    reward, ended, zero = torch.tensor(value), torch.tensor(True), torch.tensor(0.0)
    return losses.soft_target(torch.eye(1, atoms.numel())[0], reward, ended, zero, zero, atoms)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 200), st.floats(0.1, 100.0), st.floats(-300.0, 300.0))
def test_projected_probabilities_are_never_negative(atoms, limit, value):
    assert (terminal_target(value, atoms_of(atoms, limit)) >= 0).all()
    # This pair of limit and clipped value rounds above the last atom.
    assert (terminal_target(20.0, atoms_of(101, 13.25)) >= 0).all()


# Gradients in closed form


def test_cross_entropy_and_its_gradient_by_hand():
    # softmax(0, ln 3) is (1/4, 3/4); to (1/2, 1/2): -(ln 1/4 + ln 3/4) / 2.
    loss, gradient = losses.cross_entropy_gradient(torch.tensor([0.0, math.log(3)]), torch.tensor([0.5, 0.5]))
    close(loss, -(math.log(0.25) + math.log(0.75)) / 2)
    close(gradient, [-0.25, 0.25])


def test_expected_value_and_its_gradient_by_hand():
    # Mean of (-2, 2) under (1/4, 3/4) is 1; the gradient p * (z - 1) is (-3/4, 3/4).
    value, gradient = losses.expected_value_gradient(torch.tensor([0.0, math.log(3)]), torch.tensor([-2.0, 2.0]))
    close(value, 1.0)
    close(gradient, [-0.75, 0.75])


def test_closed_form_gradients_equal_those_of_autograd():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, requires_grad=True)
    target = torch.softmax(torch.randn(3, 4, 5), -1)
    for plain, closed in (
        (oracles.cross_entropy(logits, target), losses.cross_entropy_gradient(logits.detach(), target)),
        (oracles.expected_value(logits, ATOMS), losses.expected_value_gradient(logits.detach(), ATOMS)),
    ):
        assert_close(closed[0], plain.detach())
        assert_close(closed[1], torch.autograd.grad(plain.sum(), logits)[0], rtol=1e-5, atol=1e-6)


def test_temperature_gradient_equals_that_of_its_loss():
    log_temperature = torch.tensor([0.1, -2.0], requires_grad=True)
    log_density, target_entropy = torch.tensor([[1.0, 2.0], [-3.0, 0.5]]), torch.tensor([-1.0, -0.5])
    loss = oracles.temperature_loss(log_temperature, log_density, target_entropy).sum()
    found = losses.temperature_gradient(log_temperature.detach(), -log_density.mean(-1), target_entropy)
    assert_close(found, torch.autograd.grad(loss, log_temperature)[0])


def test_most_pessimistic_takes_each_row_from_the_critic_of_least_value():
    value = torch.tensor([[1.0, 5.0], [2.0, 4.0]])
    table = torch.tensor([[[0.1, 0.9], [0.2, 0.8]], [[0.3, 0.7], [0.4, 0.6]]])
    close(losses.most_pessimistic(value, table), [[0.1, 0.9], [0.4, 0.6]])
    close(losses.most_pessimistic(value[:1], table[:1]), [[0.1, 0.9], [0.2, 0.8]])


def test_stretched_logits_by_hand():
    atoms = atoms_of(5, 2.0)
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0, -4.0])
    # Halved values: atom 1 gets the logit of 2; beyond the old support logits fall by one per atom.
    close(losses.stretch_logits(logits, torch.tensor(2.0), atoms), [1.0 - 2.0, 1.0, 2.0, -4.0, -4.0 - 2.0])
    # Doubled values: atom 1 gets the logit of 0.5.
    close(losses.stretch_logits(logits, torch.tensor(0.5), atoms), [3.0, 2.5, 2.0, 1.0, 0.0])
    close(losses.stretch_logits(logits, torch.tensor(1.0), atoms), logits.tolist())


@pytest.mark.parametrize("ratio", [0.7, 1.02, 1.5, 4.0])
def test_stretching_logits_divides_the_mean(ratio):
    atoms = atoms_of(101, 10.0)
    middle = torch.tensor([[-5.0], [0.0], [3.0], [5.0]])
    logits = -((atoms - middle) ** 2) / 0.5
    ratios = torch.tensor([ratio, 1.0, ratio, ratio])
    found = oracles.expected_value(losses.stretch_logits(logits, ratios, atoms), atoms)
    torch.testing.assert_close(found, middle[:, 0] / ratios, atol=0.02, rtol=0)
