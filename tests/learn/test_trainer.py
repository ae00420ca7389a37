"""The learner: what an update may touch, what it refuses, and that it learns."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtray.collect.host import make_host
from mtray.collect.loop import ActingLoop
from mtray.config.settings import LearnerConfig, NetworkConfig, ReplayConfig
from mtray.data.batch import Batch, unpack_batches
from mtray.data.messages import Push
from mtray.data.rollout import pack
from mtray.data.rows import NEXT_BITS, STEPS_SHIFT
from mtray.data.specs import TaskSpec
from mtray.errors import RunError
from mtray.learn import losses
from mtray.learn.execution.runner import matmul_precision
from mtray.learn.trainer import Trainer
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import load
from mtray.replay.buffer import ReplayBuffer
from mtray.tasks.makers import make_makers
from mtray.tasks.plan import Task
from mtray.testing import CountingMaker
from tests import oracles

NETWORK = NetworkConfig(actor_width=32, critic_width=32, embedding_size=4)
# Two tasks of different widths whose best actions differ: one policy must tell them apart.
TARGETS = {"left": -0.6, "right": 0.4}
MAKERS = {
    "left": CountingMaker(target=-0.6, truncate_after=20, observation_size=2, action_size=1),
    "right": CountingMaker(target=0.4, truncate_after=20, observation_size=3, action_size=2),
}


@pytest.fixture
def tasks():
    return [Task(name, "torchrl", maker) for name, maker in MAKERS.items()]


def specs_of(tasks):
    return tuple(task.spec for task in tasks)


def filled_replay(tasks, rollouts=20, action_noise=None):
    specs = specs_of(tasks)
    host = make_host("inline", make_makers(tasks, 4, [1, 2]))
    policy = MultiTaskPolicy(specs, NETWORK, action_noise=action_noise).requires_grad_(False)
    discounts = {spec.name: spec.discount for spec in specs}
    collector = ActingLoop(host, policy, rollout_steps=16, discounts=discounts)
    replay = ReplayBuffer(specs, ReplayConfig(capacity_rows=50_000))
    for _ in range(rollouts):
        extend(replay, collector.collect())
    return replay, collector


def extend(replay, rollout):
    rows = {task: pack(arrays) for task, arrays in rollout.tasks.items()}
    number = sum(replay.source_frames().values())
    replay.insert(Push(source="local", number=number, rows=rows, largest_returns=rollout.largest_returns))


def learner_of(tasks, **changes):
    settings = {"atoms": 21, "learning_rate": 3e-3, "initial_temperature": 0.01, **changes}
    return Trainer(specs_of(tasks), NETWORK, LearnerConfig(**settings))


def batch_of(replay, rows=32):
    return unpack_batches(replay.sample_rows(rows).rows, replay.specs)[0]


def spoiled(batch, task, name="reward"):
    parts = {part: getattr(batch, part).clone() for part in vars(batch) if part != "tasks"}
    parts[name][task, 0] = float("nan")
    return Batch(batch.tasks, **parts)


def parameters(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


@pytest.mark.parametrize("changes", [{}, {"atoms": 1}, {"algorithm": "td3"}], ids=["sac", "scalar", "td3"])
def test_it_learns_each_tasks_own_best_action(tasks, changes):
    learner = learner_of(tasks, **changes)
    replay, collector = filled_replay(tasks, action_noise=learner.config.policy_noise)
    for _ in range(25):
        sampled = replay.sample_rows(64, 16)
        learner.set_statistics(sampled.statistics)
        for batch in unpack_batches(sampled.rows, replay.specs):
            learner.update(batch)
        collector.load(learner.weights())
        extend(replay, collector.collect())
    start = torch.zeros(2, 1, 3)
    action = learner.policy.act(start, deterministic=True)[:, 0, 0]
    for index, target in enumerate(TARGETS.values()):
        assert abs(action[index].item() - target) < 0.1


def test_a_lazy_stack_and_its_dense_form_give_the_same_update(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batch = batch_of(replay)
    known = {spec.name: spec for spec in replay.specs}
    first, second = learner_of(tasks), learner_of(tasks)
    first.update(batch)
    second.update(batch.to_stack(known))
    assert torch.equal(parameters(first.critic), parameters(second.critic))
    assert torch.equal(parameters(first.policy), parameters(second.policy))
    back = Batch.from_stack(batch.to_stack(known), replay.specs)
    for name in ("observation", "action", "reward", "next_observation", "flags"):
        assert torch.equal(getattr(back, name), getattr(batch, name))


def test_an_update_on_one_task_leaves_the_others_heads_alone(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    learner = learner_of(tasks, weight_decay=0.0)
    before = [p.detach().clone() for heads in (learner.critic.heads, learner.policy.heads) for p in heads.parameters()]
    rows = replay.sample_rows(32, 1, ("right",)).rows
    learner.update(unpack_batches(rows, replay.specs)[0])
    after = [p.detach() for heads in (learner.critic.heads, learner.policy.heads) for p in heads.parameters()]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[0], new[0])
        assert not torch.equal(old[1], new[1])


def test_values_behind_a_narrow_tasks_widths_change_nothing(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batch = batch_of(replay)
    action = batch.action.clone()
    action[0, :, 1:] = 123.0
    dirty = Batch(batch.tasks, batch.observation, action, batch.reward, batch.next_observation, batch.flags)
    first, second = learner_of(tasks), learner_of(tasks)
    first.update(batch)
    second.update(dirty)
    assert torch.equal(parameters(first.critic), parameters(second.critic))


def test_a_time_limit_is_bootstrapped_and_a_termination_is_not(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batch = batch_of(replay)
    learners = []
    for bit in (4, 8):
        learner = learner_of(tasks)
        flags = torch.full_like(batch.flags, 1 | 2 | bit)
        ended = Batch(batch.tasks, batch.observation, batch.action, batch.reward, batch.next_observation, flags)
        learner.update(ended)
        learners.append(parameters(learner.critic))
    plain = learner_of(tasks)
    flags = torch.ones_like(batch.flags)
    plain.update(Batch(batch.tasks, batch.observation, batch.action, batch.reward, batch.next_observation, flags))
    assert torch.equal(learners[1], parameters(plain.critic))
    assert not torch.equal(learners[0], parameters(plain.critic))


def test_the_value_after_several_steps_is_discounted_by_as_many(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batch = batch_of(replay)
    many = unpack_batches(replay.sample_rows(32, steps=3).rows, replay.specs)[0]
    assert set(many.steps.flatten().tolist()) >= {1, 3}
    learner, plain = learner_of(tasks, n_step=3), learner_of(tasks, n_step=1)
    learner.update(batch)
    plain.update(batch)
    assert torch.equal(parameters(learner.critic), parameters(plain.critic)), "steps of one each"
    learner.update(many)
    plain.update(many)
    assert not torch.equal(parameters(learner.critic), parameters(plain.critic))
    same = replace(many, flags=many.flags & 255 | 2 << STEPS_SHIFT)
    cubed, three = learner_of(tasks, n_step=1), learner_of(tasks, n_step=3)
    cubed.algorithm.discount.pow_(3)
    for each in (cubed, three):
        each.update(same)
    torch.testing.assert_close(
        cubed.algorithm.critic_group.gradients, three.algorithm.critic_group.gradients, rtol=1e-4, atol=1e-7
    )


def test_same_seed_same_weights_other_seed_others(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batch = batch_of(replay)
    results = []
    for seed in (0, 0, 1):
        learner = Trainer(specs_of(tasks), NETWORK, LearnerConfig(atoms=21), seed=seed)
        for _ in range(3):
            learner.update(batch)
        results.append(learner.weights().values)
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_state_continues_exactly(tasks):
    from mtray.rundir.checkpoints.checkpoint import from_bytes, to_bytes

    replay, _ = filled_replay(tasks, rollouts=3)
    batches = [batch_of(replay) for _ in range(6)]
    straight, first = learner_of(tasks), learner_of(tasks)
    for learner in (straight, first):
        learner.set_statistics(replay.sample_rows(4).statistics)
    assert (straight.algorithm.actor_loss_scale > 1).all()
    for batch in batches:
        straight.update(batch)
    for batch in batches[:3]:
        first.update(batch)
    second = Trainer(specs_of(tasks), NETWORK, first.config, seed=99)
    second.load_state_dict(from_bytes(to_bytes(first.state_dict())))
    for batch in batches[3:]:
        second.update(batch)
    for one, other in zip(networks(straight), networks(second), strict=True):
        assert torch.equal(parameters(one), parameters(other))
    assert torch.equal(straight.algorithm.log_temperature, second.algorithm.log_temperature)
    assert second.updates == 6


def test_the_actor_is_given_out_and_its_average_is_saved_with_the_same_statistics(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    learner = learner_of(tasks, actor_polyak=0.5, actor_period=1)
    passed = [parameters(learner.policy)]
    for _ in range(2):
        learner.update(batch_of(replay))
        passed.append(parameters(learner.policy))
    learner.set_statistics(replay.sample_rows(4).statistics)
    given, saved = (MultiTaskPolicy(specs_of(tasks), NETWORK) for _ in range(2))
    load(given, learner.weights())
    saved.load_state_dict(learner.state_dict()["average"])
    assert torch.equal(parameters(given), passed[2])
    torch.testing.assert_close(parameters(saved), passed[0] / 4 + passed[1] / 4 + passed[2] / 2)
    assert saved.mean.any()
    for name, buffer in given.named_buffers():
        assert torch.equal(saved.get_buffer(name), buffer)


def test_versions_count_what_is_given_out(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    learner = learner_of(tasks)
    assert learner.weights().version == 0
    learner.update(batch_of(replay))
    assert [learner.weights().version for _ in range(2)] == [1, 2]


def test_data_that_is_not_finite_stops_the_update_before_it_changes_anything(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batch = batch_of(replay)
    learner = learner_of(tasks, graphs=False)
    learner.update(batch)
    before = parameters(learner.critic), parameters(learner.policy)
    for name in ("reward", "observation", "next_observation", "action"):
        bad = spoiled(batch, 1, name)
        with pytest.raises(RunError, match="right is not finite"):
            learner.update(bad)
    assert torch.equal(before[0], parameters(learner.critic))
    assert torch.equal(before[1], parameters(learner.policy))
    assert learner.updates == 1


def test_weights_that_are_not_finite_are_never_given_out(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    learner = learner_of(tasks)
    learner.update(batch_of(replay))
    learner.weights()
    with torch.no_grad():
        learner.policy.backbone[0].weight[0, 0] = float("inf")
    with pytest.raises(RunError, match=r"backbone\.0\.weight.*not finite"):
        learner.weights()
    assert learner.version == 1


def test_the_inputs_statistics_and_reward_scale_follow_the_replay(tasks):
    replay, _ = filled_replay(tasks, rollouts=8)
    learner = learner_of(tasks)
    sampled = replay.sample_rows(4)
    learner.set_statistics(sampled.statistics)
    known = sampled.statistics["right"]
    deviation = np.sqrt(known.square / (known.count - 1) + 1e-6)
    np.testing.assert_allclose(learner.policy.mean[1, :3], known.mean, rtol=1e-5)
    np.testing.assert_allclose(learner.policy.scale[1, :3], 1 / deviation, rtol=1e-5)
    assert learner.policy.scale[0, 2] == 1
    assert learner.policy.mean[0, 2] == 0


def test_values_keep_their_meaning_in_rewards_when_the_reward_scale_follows(tasks):
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
            # Values around 2 and -4 with a spread that is not the same for each row.
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
    for critic, known in zip((learner.critic, learner.target), before, strict=True):
        torch.testing.assert_close(values(critic), known, atol=0.03, rtol=0)
    assert torch.equal(learner.critic.heads.output.bias[0], bias)
    scale = learner.reward_scale.clone()
    statistics["right"].largest_return = 9.1
    learner.set_statistics(statistics)
    assert torch.equal(learner.reward_scale, scale), "a move that small is not worth the blur"


def test_the_support_reaches_beyond_the_largest_return_but_not_beyond_the_largest_reward_for_ever(tasks):
    replay, _ = filled_replay(tasks, rollouts=8)
    learner = Trainer(specs_of(tasks), NETWORK, LearnerConfig(initial_temperature=1e-6, headroom=3.0))
    statistics = replay.sample_rows(4).statistics
    left, right = statistics["left"], statistics["right"]
    left.largest_return, left.largest_reward = 5.0, 100.0
    right.largest_return, right.largest_reward = 5.0, 8.0 * (1 - specs_of(tasks)[1].discount)
    learner.set_statistics(statistics)
    assert learner.reward_scale.tolist() == pytest.approx([1.5, 0.8], rel=1e-3)
    assert learner.algorithm.actor_loss_scale.tolist() == pytest.approx([3.0, 1.6], rel=1e-3)


@pytest.mark.parametrize(("horizon", "discount"), [(1000, 0.995), (500, 0.99), (50, 0.95), (None, 0.99)])
def test_discount_follows_the_episodes_length(horizon, discount):
    spec = TaskSpec(
        name="a",
        engine="test",
        observation=(("x", 1),),
        action_low=(-1.0,),
        action_high=(1.0,),
        horizon=horizon,
        time_step_seconds=None,
    )
    assert spec.discount == pytest.approx(discount)


def networks(learner):
    return learner.policy, learner.algorithm.average, learner.critic, learner.target


def copied(learner):
    """Copies of a learner's networks and generator, with torch's own optimisers over all parameters."""
    policy, critic, target = (copy.deepcopy(part) for part in (learner.policy, learner.critic, learner.target))
    generator = torch.Generator()
    generator.set_state(learner.algorithm.generator.get_state())
    settings = {"lr": learner.config.learning_rate, "weight_decay": learner.config.weight_decay}
    actor_parameters = [*policy.shared_parameters(), *policy.heads.parameters()]
    optimisers = [torch.optim.AdamW(each, **settings) for each in (list(critic.parameters()), actor_parameters)]
    return policy, critic, target, generator, actor_parameters, *optimisers


def plain_update(learner, batch):
    """The losses as the papers write them, differentiated by autograd with an optimiser over all parameters."""
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
            wanted = losses.soft_target(lowest.softmax(-1), reward, terminated, discount, bonus, atoms)
        else:
            wanted = reward + discount * ~terminated * (lowest.squeeze(-1) + bonus)
    outputs = critic(observation, policy.from_bounds(batch.action))
    loss = oracles.cross_entropy(outputs, wanted) if len(atoms) > 1 else (outputs.squeeze(-1) - wanted) ** 2 / 2
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
    """As above, TD3's, of two critics."""
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
        wanted = oracles.project(lowest, reached_atoms, atoms)
    oracles.cross_entropy(critic(observation, policy.from_bounds(batch.action)), wanted).mean((1, 2)).sum().backward()
    critic_optimiser.step()
    policy.embedding.copy_(critic.embedding.detach())
    value = oracles.expected_value(critic(observation, torch.tanh(policy.outputs(observation)) * mask), atoms).amin(0)
    (-value.mean(1) * learner.algorithm.actor_loss_scale).mean().backward(inputs=actor_parameters)
    actor_optimiser.step()
    return policy, critic


def test_an_update_of_td3_is_what_autograd_makes_of_the_plain_losses(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    config = LearnerConfig(algorithm="td3", atoms=21)
    learner = Trainer(specs_of(tasks), replace(NETWORK, critics=2), config)
    learner.set_statistics(replay.sample_rows(4).statistics)
    learner.reward_scale[:], learner.algorithm.actor_loss_scale[:] = torch.tensor([0.3, 0.8]), torch.tensor([1.0, 2.5])
    batch = batch_of(replay)
    # One next state as if an episode had ended there by itself, of all that these tasks truncate only.
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
def test_an_update_is_what_autograd_makes_of_the_plain_losses(tasks, critics, weights, atoms):
    replay, _ = filled_replay(tasks, rollouts=3)
    # An average whose move in one update shows beside rounding.
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


def test_a_task_with_twice_the_rows_counts_twice(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    drawn = replay.sample_rows({"left": 8, "right": 16}).rows
    weighted = unpack_batches(drawn, replay.specs)[0]
    assert weighted.tasks == ("left", "right", "right")
    known = {spec.name: spec for spec in replay.specs}
    for task, rows in drawn.items():
        at = [index for index, name in enumerate(weighted.tasks) if name == task]
        size = known[task].observation_size
        assert torch.equal(weighted.observation[at, :, :size].flatten(0, 1), torch.tensor(rows[0, :, :size]))
        assert torch.equal(weighted.reward[at].flatten(), torch.tensor(rows[0, :, known[task].row_size - 2]))
    even = unpack_batches({"left": np.tile(drawn["left"], (1, 2, 1)), "right": drawn["right"]}, replay.specs)[0]
    found = {}
    for name, batch, weights in (("rows", weighted, ()), ("losses", even, ("right=2",))):
        learner = learner_of(tasks, initial_temperature=1e-8, loss_weights=weights)
        with torch.no_grad():
            # Without noise in the actions, for it would not be the same.
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


@pytest.mark.parametrize(("part", "name"), [("critic", "raw_embedding"), ("policy", "heads.output.bias")])
def test_a_loss_that_is_not_finite_stops_the_update_and_names_the_task(tasks, part, name):
    replay, _ = filled_replay(tasks, rollouts=3)
    learner = learner_of(tasks, graphs=False)
    learner.update(batch_of(replay))
    learner.update(batch_of(replay))
    with torch.no_grad():
        getattr(learner, part).get_parameter(name)[1] = float("inf")
    before = parameters(learner.policy)
    with pytest.raises(RunError, match=r"loss of right or its gradient is not finite at update 2"):
        learner.update(batch_of(replay))
    assert torch.equal(before, parameters(learner.policy))
    assert learner.updates == 2


def test_metrics_tell_each_task_what_the_last_update_saw_of_it(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    learner = learner_of(tasks)
    assert learner.metrics()["left"].keys() == {"temperature", "reward_scale", "update_share"}
    learner.update(unpack_batches(replay.sample_rows(32, 1, ("right",)).rows, replay.specs)[0])
    assert "critic_loss" not in learner.metrics()["left"]
    learner.update(batch_of(replay))
    assert learner.metrics()["left"]["update_share"] == 0.5
    learner.update(batch_of(replay))
    figures = learner.metrics()
    assert figures["right"]["update_share"] == 1
    for task in figures.values():
        assert task.keys() >= {"critic_loss", "actor_loss", "value", "entropy", "critic_gradient", "actor_gradient"}
        assert task["return_estimate"] == pytest.approx(task["value"] * task["reward_scale"], rel=0.05)
        assert task["critic_gradient"] > 0


def draws(replay, count=8):
    """Batches of both tasks, and in their middle one of a single task."""
    batches = unpack_batches(replay.sample_rows(32, count).rows, replay.specs)
    return [*batches[:5], *unpack_batches(replay.sample_rows(32, 1, ("right",)).rows, replay.specs), *batches[5:]]


def after(tasks, batches, device="cpu", **changes):
    learner = Trainer(specs_of(tasks), NETWORK, LearnerConfig(atoms=21, learning_rate=3e-3, **changes), device=device)
    for batch in batches:
        learner.update(batch)
    return learner


def numbers(learner):
    return torch.cat([*map(parameters, networks(learner)), learner.algorithm.temperature]).cpu()


@pytest.mark.parametrize(
    ("weighted", "changes"),
    [
        (False, {}),
        (True, {}),
        (False, {"n_step": 2}),
        (False, {"precision": "bfloat16"}),
        (False, {"algorithm": "td3"}),
    ],
)
def test_recorded_updates_are_those_made_kernel_by_kernel(tasks, weighted, changes):
    replay, _ = filled_replay(tasks, rollouts=3)
    batches = draws(replay)
    if weighted:
        batches += unpack_batches(replay.sample_rows({"left": 16, "right": 48}, 4).rows, replay.specs)
    kept = [batch.observation.clone() for batch in batches]
    plain, fixed = (after(tasks, batches, graphs=graphs, **changes) for graphs in (False, True))
    assert fixed._runner._recorded._critic._recording is not None
    assert torch.equal(numbers(plain), numbers(fixed))
    assert plain.metrics() == fixed.metrics()
    assert all(torch.equal(batch.observation, known) for batch, known in zip(batches, kept, strict=True))
    smaller = batch_of(replay, rows=8)
    plain.update(smaller)
    fixed.update(smaller)
    assert torch.equal(numbers(plain), numbers(fixed))


def test_recorded_updates_follow_what_the_learner_is_told_between_them(tasks):
    replay, collector = filled_replay(tasks, rollouts=3)
    learners = [after(tasks, [], graphs=graphs) for graphs in (False, True)]
    for growth in range(1, 6):
        extend(replay, collector.collect())
        sampled = replay.sample_rows(32, 4)
        for known in sampled.statistics.values():
            known.largest_return, known.largest_reward = 3.0**growth, 100.0
        for learner in learners:
            learner.set_statistics(sampled.statistics)
            for batch in unpack_batches(sampled.rows, replay.specs):
                learner.update(batch)
        plain, recorded = learners
        assert torch.equal(numbers(plain), numbers(recorded)), growth
        assert torch.equal(plain.reward_scale, recorded.reward_scale)
        assert plain.metrics() == recorded.metrics()
        assert plain.weights().values.tobytes() == recorded.weights().values.tobytes()
        if growth == 3:
            recorded.load_state_dict(copy.deepcopy(plain.state_dict()))


def test_failures_noted_stop_every_later_update_and_are_told_when_looked_at(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batches = draws(replay)
    learner = after(tasks, batches[:3], graphs=True)
    learner.check()
    before = parameters(learner.critic), parameters(learner.policy), learner.algorithm.log_temperature.detach().clone()
    learner.update(spoiled(batches[3], 1))
    learner.update(spoiled(batches[3], 0))
    learner.update(batches[4])
    now = parameters(learner.critic), parameters(learner.policy), learner.algorithm.log_temperature.detach()
    assert all(torch.equal(old, new) for old, new in zip(before, now, strict=True))
    with pytest.raises(RunError, match="data of right is not finite"):
        learner.weights()
    assert learner.updates == 3
    learner.update(batches[4])
    learner.check()
    assert not torch.equal(before[0], parameters(learner.critic))
    assert learner.updates == 4


@pytest.mark.parametrize(("part", "name"), [("critic", "raw_embedding"), ("policy", "heads.output.bias")])
def test_a_loss_that_is_not_finite_is_noted_with_its_task_and_update(tasks, part, name):
    replay, _ = filled_replay(tasks, rollouts=3)
    before, learner = after(tasks, draws(replay)[:2]), after(tasks, [], graphs=True)
    learner.load_state_dict(before.state_dict())
    with torch.no_grad():
        getattr(learner, part).get_parameter(name)[1] = float("inf")
    before = parameters(learner.policy)
    learner.update(batch_of(replay))
    learner.update(batch_of(replay))
    with pytest.raises(RunError, match=r"loss of right or its gradient is not finite at update 2"):
        learner.state_dict()
    assert torch.equal(before, parameters(learner.policy))


def test_failures_are_looked_at_when_nobody_asks(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batch = batch_of(replay, rows=2)
    learner = after(tasks, [spoiled(batch, 0)], graphs=True)
    for _ in range(198):
        learner.update(batch)
    with pytest.raises(RunError, match="data of left"):
        learner.update(batch)


# A compiler looks at its inputs' gradients, also where they have none of their own.
lets_compilers_look = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore::DeprecationWarning")


@lets_compilers_look
@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16"}, pytest.param({"compile": "aot_eager"}, marks=pytest.mark.slow)]
)
def test_other_ways_to_compute_give_nearly_the_same_updates(tasks, changes):
    replay, _ = filled_replay(tasks, rollouts=3)
    batches = draws(replay)
    plain, other = after(tasks, batches), after(tasks, batches, **changes)
    assert {part.dtype for part in other.critic.parameters()} == {torch.float32}
    start = numbers(after(tasks, []))
    moved, apart = numbers(plain) - start, numbers(other) - numbers(plain)
    assert apart.norm() < 0.2 * moved.norm()
    assert "precision" not in changes or apart.norm() > 0
    assert "compile" not in changes or other.algorithm._critic_outputs is not other.critic
    for task, figures in plain.metrics().items():
        assert other.metrics()[task]["critic_loss"] == pytest.approx(figures["critic_loss"], rel=0.02)


@pytest.mark.slow
@lets_compilers_look
def test_updates_compiled_to_machine_code_are_nearly_the_same(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batches = draws(replay)
    plain, compiled = after(tasks, batches), after(tasks, batches, compile="inductor")
    start = numbers(after(tasks, []))
    assert (numbers(compiled) - numbers(plain)).norm() < 0.05 * (numbers(plain) - start).norm()


@pytest.mark.gpu
@lets_compilers_look
@pytest.mark.parametrize(
    "changes",
    [{"graphs": False}, {}, {"precision": "float32"}, {"precision": "bfloat16"}, {"compile": "inductor"}],
    ids=["eager", "graphs", "float32", "bfloat16", "inductor"],
)
def test_updates_on_a_gpu_learn_what_those_on_the_cpu_do(tasks, changes):
    # Other random numbers than on the CPU: what is learned must be the same, not how.
    replay, _ = filled_replay(tasks)
    learner = Trainer(specs_of(tasks), NETWORK, LearnerConfig(atoms=21, learning_rate=3e-3, **changes), device="cuda")
    for _ in range(25):
        sampled = replay.sample_rows(64, 16)
        learner.set_statistics(sampled.statistics)
        for batch in unpack_batches(sampled.rows, replay.specs):
            learner.update(batch)
    assert np.isfinite(learner.weights().values).all()
    start = torch.zeros(2, 1, 3, device="cuda")
    action = learner.policy.act(start, deterministic=True)[:, 0, 0]
    for index, target in enumerate(TARGETS.values()):
        assert abs(action[index].item() - target) < 0.2


@pytest.mark.parametrize(
    ("precision", "inside"), [("tfloat32", "high"), ("float32", "highest"), ("bfloat16", "highest")]
)
def test_the_precision_of_products_is_as_asked_for_inside_only(precision, inside):
    before = torch.get_float32_matmul_precision()
    with matmul_precision(precision):
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.gpu
def test_updates_recorded_on_a_gpu_are_those_that_are_not(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batches = draws(replay, count=16)
    plain, recorded = after(tasks, batches, "cuda", graphs=False), after(tasks, batches, "cuda")
    torch.testing.assert_close(numbers(plain), numbers(recorded), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_failure_in_an_update_recorded_on_a_gpu_is_told(tasks):
    replay, _ = filled_replay(tasks, rollouts=3)
    batches = draws(replay, count=16)
    learner = after(tasks, batches, "cuda")
    learner.check()
    before = parameters(learner.critic)
    learner.update(spoiled(batches[0], 1))
    learner.update(batches[0])
    assert torch.equal(before, parameters(learner.critic))
    with pytest.raises(RunError, match="data of right is not finite"):
        learner.check()
