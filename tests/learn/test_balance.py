"""Weights that give every task's gradient an equal say."""

import copy

import pytest
import torch

from mtray.learn.actor_critic import write
from mtray.learn.balance import Balance
from tests.learn.test_recorded import sampled_batches, trained
from tests.learn.trainers import batch_of, learner_of, parameters, with_nan

CPU, MADE = torch.device("cpu"), torch.zeros(())


def balanced(*norms, balance=None):
    """Return the weights after gradients with such norms, if all weights are 1."""
    balance = balance or Balance(len(norms[0]), CPU)
    for each in norms:
        write(balance.tensors, balance.after(torch.tensor(each) * balance.weights, MADE))
    return balance


def test_weighted_gradients_are_equally_large_and_weights_are_1_on_average():
    balance = balanced(*[(4.0, 1.0, 2.0)] * 3)
    weighted = balance.weights * torch.tensor([4.0, 1.0, 2.0])
    torch.testing.assert_close(weighted, weighted.mean().expand(3))
    assert balance.weights.mean() == pytest.approx(1)


def test_weights_follow_the_norms_slowly():
    balance = balanced((1.0, 1.0), *[(2.0, 1.0)] * 500)
    ratio = (balance.weights[1] / balance.weights[0]).item()
    assert ratio == pytest.approx(2 - 0.999**500, rel=1e-3)


def test_a_single_task_has_the_weight_1():
    assert balanced((0.1,), (7.0,), (1e-9,)).weights.tolist() == [1.0]


def test_no_task_is_weighted_out_of_bounds():
    weights = balanced((1e6, 1.0, 1.0)).weights
    assert (weights[1] / weights[0]).item() == pytest.approx(30, rel=1e-3)


@pytest.mark.parametrize("without", [0.0, float("nan"), float("inf")])
def test_a_task_without_a_gradient_keeps_its_weight_and_one_that_had_none_counts_as_the_mean(without):
    balance = balanced((1.0, 3.0, without))
    assert balance.weights[2].item() == pytest.approx(balance.weights[0].item() / 2)
    first = balanced((1.0, 3.0, 2.0))
    before = first.weights.clone()
    balanced((1.0, 3.0, without), balance=first)
    torch.testing.assert_close(first.weights, before)


def test_an_update_that_was_not_made_changes_nothing():
    balance = balanced((1.0, 3.0))
    norms, weights = balance.state().clone(), balance.weights.clone()
    write(balance.tensors, balance.after(torch.tensor([5.0, 1.0]), torch.ones(())))
    assert torch.equal(balance.state(), norms)
    assert torch.equal(balance.weights, weights)


@pytest.mark.parametrize("weights", [(), ("right=20",)])
def test_critic_gradients_of_unequal_tasks_are_balanced_on_top_of_weights_that_were_given(tasks, replay, weights):
    learner = learner_of(tasks, balance=True, loss_weights=weights)
    # Returns of one task are beyond the support: its loss is larger.
    learner.reward_scale[:] = torch.tensor([0.02, 2.0])
    batches = sampled_batches(replay, count=16)
    for batch in batches:
        learner.update(batch)
    balance, given = learner.algorithm.balance.weights, learner.algorithm.loss_weight
    assert (balance != 1).all()
    norms = learner.algorithm.critic_group.norms(2) / given
    plain = learner_of(tasks, loss_weights=weights)
    assert (plain.algorithm.balance.weights == 1).all()
    # The smaller gradient has the larger weight, whatever was given.
    assert (norms / balance).argmax() == balance.argmin()


def test_weights_come_back_with_the_state_and_a_state_without_them_is_of_an_earlier_version(tasks, replay):
    batches = sampled_batches(replay)
    learner = trained(tasks, batches, balance=True)
    state = copy.deepcopy(learner.state_dict())
    resumed = trained(tasks, [], balance=True)
    resumed.load_state_dict(copy.deepcopy(state))
    assert torch.equal(resumed.algorithm.balance.weights, learner.algorithm.balance.weights)
    batch = batch_of(replay)
    for each in (learner, resumed):
        each.update(batch)
    assert torch.equal(resumed.algorithm.balance.weights, learner.algorithm.balance.weights)
    without = trained(tasks, [], balance=False)
    without.load_state_dict(copy.deepcopy(state))
    assert without.algorithm.balance.weights.tolist() == [1.0, 1.0], "a run that does not ask for them has none"
    earlier = trained(tasks, [], balance=True)
    state.pop("balance")
    earlier.load_state_dict(state)
    assert earlier.algorithm.balance.weights.tolist() == [1.0, 1.0]


def test_a_batch_that_is_not_finite_leaves_the_weights(tasks, replay):
    batch = batch_of(replay)
    learner = trained(tasks, [batch] * 4, graphs=True, balance=True)
    before, critic = learner.algorithm.balance.weights.clone(), parameters(learner.critic)
    learner.update(with_nan(batch, 1))
    learner.update(batch)
    assert torch.equal(learner.algorithm.balance.weights, before)
    assert torch.equal(parameters(learner.critic), critic)
