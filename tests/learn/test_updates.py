"""Updates against the papers' losses with autograd and torch's optimisers."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtray.config.learner import LearnerConfig
from mtray.data.batch import unpack_batches
from mtray.data.rows import NEXT_BITS
from mtray.learn import losses
from mtray.learn.trainer import Trainer
from tests import oracles
from tests.learn.trainers import NETWORK, batch_of, learner_of, networks, parameters, specs_of


def copied(learner):
    """Return copies of a learner's networks and generator, and torch's optimisers over all parameters."""
    policy, critic, target = (copy.deepcopy(part) for part in (learner.policy, learner.critic, learner.target))
    generator = torch.Generator()
    generator.set_state(learner.algorithm.generator.get_state())
    settings = {"lr": learner.config.learning_rate, "weight_decay": learner.config.weight_decay}
    actor_parameters = [*policy.shared_parameters(), *policy.heads.parameters()]
    optimisers = [torch.optim.AdamW(each, **settings) for each in (list(critic.parameters()), actor_parameters)]
    return policy, critic, target, generator, actor_parameters, *optimisers


def plain_update(learner, batch):
    """Return the networks after an update with the papers' losses, autograd and torch's optimisers."""
    weight = learner.algorithm.loss_weight
    policy, critic, target, generator, actor_parameters, critic_optimiser, actor_optimiser = copied(learner)
    log_temperature = learner.algorithm.log_temperature.detach().clone().requires_grad_()
    temperature_optimiser = torch.optim.Adam(
        [log_temperature], lr=learner.config.temperature_learning_rate, betas=(0.5, 0.999)
    )
    scale, atoms = learner.reward_scale.unsqueeze(-1), learner.algorithm.atoms
    temperature = log_temperature.detach().exp().unsqueeze(-1)

    def sample(observation):
        mean, log_std = policy.distribution(observation)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return losses.tanh_gaussian_sample(mean, log_std, noise, policy.action_mask.unsqueeze(1))

    def value_of(outputs):
        return oracles.expected_value(outputs, atoms) if len(atoms) > 1 else outputs.squeeze(-1)

    def least(logits):
        index = value_of(logits).argmin(0)
        return torch.stack([logits[index[t, b], t, b] for t in range(len(index)) for b in range(index.shape[1])]).view(
            logits.shape[1:]
        )

    observation, reached = policy.normalise(batch.observation), policy.normalise(batch.next_observation)
    with torch.no_grad():
        action_tp1, log_density_tp1 = sample(reached)
        lowest = least(target(reached, action_tp1))
        reward, terminated = batch.reward / scale, batch.flag("terminated")
        discount, bonus = learner.algorithm.discount.unsqueeze(-1), -temperature * log_density_tp1 / scale
        if len(atoms) > 1:
            expected = losses.soft_target(lowest.softmax(-1), reward, terminated, discount, bonus, atoms)
        else:
            expected = reward + discount * ~terminated * (lowest.squeeze(-1) + bonus)
    outputs = critic(observation, policy.from_bounds(batch.action))
    loss = oracles.cross_entropy(outputs, expected) if len(atoms) > 1 else (outputs.squeeze(-1) - expected) ** 2 / 2
    (weight * loss.mean(2)).mean(1).sum().backward()
    critic_optimiser.step()
    policy.embedding.copy_(critic.embedding.detach())
    action, log_density = sample(observation)
    value = value_of(critic(observation, action)).amin(0)
    weight = weight * learner.algorithm.actor_loss_scale
    (weight * (temperature * log_density / scale - value).mean(1)).mean().backward(inputs=actor_parameters)
    actor_optimiser.step()
    oracles.temperature_loss(log_temperature, log_density, learner.algorithm.target_entropy).sum().backward()
    temperature_optimiser.step()
    average = copy.deepcopy(learner.algorithm.average)
    with torch.no_grad():
        for old, new in zip(target.parameters(), critic.parameters(), strict=True):
            old.lerp_(new, learner.config.polyak)
        for old, new in zip(average.parameters(), policy.parameters(), strict=True):
            old.lerp_(new, learner.config.actor_polyak)
    return policy, average, critic, target, log_temperature.detach()


def plain_td3_update(learner, batch):
    """Return policy and critic after such an update of TD3 with two critics."""
    policy, critic, target, generator, actor_parameters, critic_optimiser, actor_optimiser = copied(learner)
    scale, atoms = learner.reward_scale.unsqueeze(-1), learner.algorithm.atoms
    mask = policy.action_mask.unsqueeze(1)
    observation, reached = policy.normalise(batch.observation), policy.normalise(batch.next_observation)
    with torch.no_grad():
        action_tp1 = torch.tanh(policy.outputs(reached)) * mask
        noise = torch.empty_like(action_tp1).normal_(generator=generator)
        action_tp1 = (action_tp1 + (0.2 * noise).clamp(-0.5, 0.5) * mask).clamp(-1, 1)
        logits = target(reached, action_tp1)
        first_is_less = oracles.expected_value(logits[0], atoms) <= oracles.expected_value(logits[1], atoms)
        lowest = torch.where(first_is_less.unsqueeze(-1), logits[0], logits[1]).softmax(-1)
        reward, discount = batch.reward / scale, learner.algorithm.discount.unsqueeze(-1)
        reached_atoms = reward.unsqueeze(-1) + (discount * ~batch.flag("terminated")).unsqueeze(-1) * atoms
        expected = oracles.project(lowest, reached_atoms, atoms)
    oracles.cross_entropy(critic(observation, policy.from_bounds(batch.action)), expected).mean((1, 2)).sum().backward()
    critic_optimiser.step()
    policy.embedding.copy_(critic.embedding.detach())
    value = oracles.expected_value(critic(observation, torch.tanh(policy.outputs(observation)) * mask), atoms).amin(0)
    (-value.mean(1) * learner.algorithm.actor_loss_scale).mean().backward(inputs=actor_parameters)
    actor_optimiser.step()
    return policy, critic


def test_a_td3_update_equals_autograd_on_the_plain_losses(tasks, replay):
    config = LearnerConfig(algorithm="td3", atoms=21)
    learner = Trainer(specs_of(tasks), replace(NETWORK, critics=2), config)
    learner.set_statistics(replay.sample_rows(4).statistics)
    learner.reward_scale[:], learner.algorithm.actor_loss_scale[:] = torch.tensor([0.3, 0.8]), torch.tensor([1.0, 2.5])
    batch = batch_of(replay)
    # These tasks truncate episodes only: let one terminate.
    batch.flags[0, 0] |= NEXT_BITS["terminated"]
    policy, critic = plain_td3_update(learner, batch)
    learner.update(batch)
    torch.testing.assert_close(parameters(learner.policy), parameters(policy), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(parameters(learner.critic), parameters(critic), rtol=1e-4, atol=2e-6)
    assert (learner.algorithm.temperature == 0).all()
    assert learner.metrics()["left"].keys() >= {"actor_loss", "value", "return_estimate"}


@pytest.mark.parametrize(
    ("critics", "weights", "atoms"), [(1, (), 21), (2, (), 21), (1, ("right=5",), 21), (1, (), 1), (2, ("left=2",), 1)]
)
def test_a_sac_update_equals_autograd_on_the_plain_losses(tasks, replay, critics, weights, atoms):
    # A fast average, so that its change in one update exceeds rounding errors.
    config = LearnerConfig(atoms=atoms, initial_temperature=0.3, loss_weights=weights, actor_polyak=0.3)
    learner = Trainer(specs_of(tasks), replace(NETWORK, critics=critics), config)
    learner.set_statistics(replay.sample_rows(4).statistics)
    learner.reward_scale[:], learner.algorithm.actor_loss_scale[:] = torch.tensor([0.3, 0.8]), torch.tensor([1.0, 2.5])
    batch = batch_of(replay)
    *plain, log_temperature = plain_update(learner, batch)
    learner.update(batch)
    for found, expected in zip(networks(learner), plain, strict=True):
        torch.testing.assert_close(parameters(found), parameters(expected), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(learner.algorithm.log_temperature.detach(), log_temperature)


def test_twice_the_rows_weigh_like_twice_the_loss(tasks, replay):
    sampled = replay.sample_rows({"left": 8, "right": 16}).rows
    weighted = unpack_batches(sampled, replay.specs)[0]
    assert weighted.tasks == ("left", "right", "right")
    specs = {spec.name: spec for spec in replay.specs}
    for task, rows in sampled.items():
        groups = [index for index, name in enumerate(weighted.tasks) if name == task]
        size = specs[task].observation_size
        assert torch.equal(weighted.observation[groups, :, :size].flatten(0, 1), torch.tensor(rows[0, :, :size]))
        assert torch.equal(weighted.reward[groups].flatten(), torch.tensor(rows[0, :, specs[task].row_size - 2]))
    even = unpack_batches({"left": np.tile(sampled["left"], (1, 2, 1)), "right": sampled["right"]}, replay.specs)[0]
    found = {}
    for name, batch, weights in (("rows", weighted, ()), ("losses", even, ("right=2",))):
        learner = learner_of(tasks, initial_temperature=1e-8, loss_weights=weights)
        with torch.no_grad():
            # A small deviation, since the two updates draw different noise.
            learner.policy.heads.output.bias[:, 2:] = -50.0
        learner.update(batch)
        found[name] = [
            part.gradients[0].clone() for part in (learner.algorithm.critic_group, learner.algorithm.actor_group)
        ]
        figures = learner.metrics()
        found[name] += [torch.tensor(figures[task]["critic_loss"]) for task in ("left", "right")]
        assert figures["right"]["update_share"] == 1
    critic, actor = found["rows"][:2]
    torch.testing.assert_close(critic, found["losses"][0] * 2 / 3, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(actor, found["losses"][1] * 2 / 3, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(found["rows"][2:], found["losses"][2:], rtol=1e-4, atol=1e-6)
