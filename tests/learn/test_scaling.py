"""Reward scales against numbers worked by hand, and their effect on a trainer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mtray.config.learner import LearnerConfig
from mtray.learn import scaling
from mtray.learn.trainer import Trainer
from tests import oracles
from tests.learn.trainers import NETWORK, batch_of, filled_replay, learner_of, specs_of


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


def test_input_statistics_are_those_of_the_replay(tasks):
    replay, _ = filled_replay(tasks, rollouts=8)
    learner = learner_of(tasks)
    sampled = replay.sample_rows(4)
    learner.set_statistics(sampled.statistics)
    right = sampled.statistics["right"]
    deviation = np.sqrt(right.square / (right.count - 1) + 1e-6)
    np.testing.assert_allclose(learner.policy.mean[1, :3], right.mean, rtol=1e-5)
    np.testing.assert_allclose(learner.policy.scale[1, :3], 1 / deviation, rtol=1e-5)
    assert learner.policy.scale[0, 2] == 1
    assert learner.policy.mean[0, 2] == 0


def test_unnormalised_values_are_preserved_when_the_reward_scale_changes(tasks):
    replay, _ = filled_replay(tasks, rollouts=8)
    config = LearnerConfig(initial_temperature=1e-6, headroom=1.0)
    learner = Trainer(specs_of(tasks), replace(NETWORK, critics=2), config)
    statistics = replay.sample_rows(4).statistics
    statistics["left"].largest_return, statistics["right"].largest_return = 5.0, 5.0
    learner.set_statistics(statistics)
    assert learner.reward_scale.tolist() == pytest.approx([0.5, 0.5], rel=1e-3)
    batch = batch_of(replay)
    with torch.no_grad():
        for critic in (learner.critic, learner.target):
            # Values around 2 and -4, with another spread in each row.
            critic.heads.output.bias.copy_(
                -((learner.algorithm.atoms - torch.tensor([[2.0], [-4.0]]).repeat(2, 1)) ** 2)
            )
    learner.update(batch)

    def values(critic):
        logits = critic(learner.policy.normalise(batch.observation), learner.policy.from_bounds(batch.action))
        return oracles.expected_value(logits, learner.algorithm.atoms).detach() * learner.reward_scale.unsqueeze(-1)

    before, bias = [values(learner.critic), values(learner.target)], learner.critic.heads.output.bias[0].clone()
    statistics["right"].largest_return = 9.0
    learner.set_statistics(statistics)
    assert learner.reward_scale.tolist() == pytest.approx([0.5, 0.9], rel=1e-3)
    for critic, expected in zip((learner.critic, learner.target), before, strict=True):
        torch.testing.assert_close(values(critic), expected, atol=0.03, rtol=0)
    assert torch.equal(learner.critic.heads.output.bias[0], bias)
    scale = learner.reward_scale.clone()
    statistics["right"].largest_return = 9.1
    learner.set_statistics(statistics)
    assert torch.equal(learner.reward_scale, scale), "small changes are not applied"


def test_the_support_has_headroom_up_to_the_largest_reward_at_every_step(tasks):
    replay, _ = filled_replay(tasks, rollouts=8)
    learner = Trainer(specs_of(tasks), NETWORK, LearnerConfig(initial_temperature=1e-6, headroom=3.0))
    statistics = replay.sample_rows(4).statistics
    left, right = statistics["left"], statistics["right"]
    left.largest_return, left.largest_reward = 5.0, 100.0
    right.largest_return, right.largest_reward = 5.0, 8.0 * (1 - specs_of(tasks)[1].discount)
    learner.set_statistics(statistics)
    assert learner.reward_scale.tolist() == pytest.approx([1.5, 0.8], rel=1e-3)
    assert learner.algorithm.actor_loss_scale.tolist() == pytest.approx([3.0, 1.6], rel=1e-3)
