"""The trainer: learning, states, versions, scales and errors."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtray.config.learner import LearnerConfig
from mtray.data.batch import Batch, unpack_batches
from mtray.data.rows import STEPS_SHIFT
from mtray.data.specs import TaskSpec
from mtray.errors import RunError
from mtray.learn.trainer import Trainer
from mtray.policy.policy import MultiTaskPolicy
from tests.learn.trainers import (
    NETWORK,
    TARGETS,
    batch_of,
    extend,
    filled_replay,
    learner_of,
    networks,
    parameters,
    specs_of,
    with_nan,
)
from tests.oracles import load


@pytest.mark.parametrize("changes", [{}, {"atoms": 1}, {"algorithm": "td3"}], ids=["sac", "scalar", "td3"])
def test_policy_learns_each_tasks_best_action(tasks, changes):
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


def test_a_lazy_stack_and_its_dense_batch_give_the_same_update(tasks, replay):
    batch = batch_of(replay)
    specs = {spec.name: spec for spec in replay.specs}
    first, second = learner_of(tasks), learner_of(tasks)
    first.update(batch)
    second.update(batch.to_stack(specs))
    assert torch.equal(parameters(first.critic), parameters(second.critic))
    assert torch.equal(parameters(first.policy), parameters(second.policy))
    back = Batch.from_stack(batch.to_stack(specs), replay.specs)
    for name in ("observation", "action", "reward", "next_observation", "flags"):
        assert torch.equal(getattr(back, name), getattr(batch, name))


def test_an_update_on_one_task_does_not_change_other_heads(tasks, replay):
    learner = learner_of(tasks, weight_decay=0.0)
    before = [p.detach().clone() for heads in (learner.critic.heads, learner.policy.heads) for p in heads.parameters()]
    rows = replay.sample_rows(32, 1, ("right",)).rows
    learner.update(unpack_batches(rows, replay.specs)[0])
    now = [p.detach() for heads in (learner.critic.heads, learner.policy.heads) for p in heads.parameters()]
    for old, new in zip(before, now, strict=True):
        assert torch.equal(old[0], new[0])
        assert not torch.equal(old[1], new[1])


def test_padding_of_actions_is_ignored(tasks, replay):
    batch = batch_of(replay)
    action = batch.action.clone()
    action[0, :, 1:] = 123.0
    dirty = Batch(batch.tasks, batch.observation, action, batch.reward, batch.next_observation, batch.flags)
    first, second = learner_of(tasks), learner_of(tasks)
    first.update(batch)
    second.update(dirty)
    assert torch.equal(parameters(first.critic), parameters(second.critic))


def test_a_time_limit_is_bootstrapped_and_a_termination_is_not(tasks, replay):
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


def test_n_step_targets_discount_the_value_by_the_number_of_steps(tasks, replay):
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


def test_equal_seeds_give_equal_weights(tasks, replay):
    batch = batch_of(replay)
    results = []
    for seed in (0, 0, 1):
        learner = Trainer(specs_of(tasks), NETWORK, LearnerConfig(atoms=21), seed=seed)
        for _ in range(3):
            learner.update(batch)
        results.append(learner.weights().values)
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_loaded_state_continues_bit_for_bit(tasks, replay):
    from mtray.rundir.checkpoints.checkpoint import from_bytes, to_bytes

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


def test_a_state_of_another_kind_of_device_continues_with_other_numbers(tasks, replay):
    """A GPU's generator has a state of another size."""
    batches = [batch_of(replay) for _ in range(3)]
    saved = learner_of(tasks)
    saved.update(batches[0])
    state = saved.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)}
    streams = []
    for updates in (1, 2):
        learner = learner_of(tasks)
        first = learner.algorithm.draw_(torch.empty(5))
        learner.load_state_dict({**state, "updates": updates})
        learner.update(batches[1])
        assert learner.updates == updates + 1
        streams += [first, learner.algorithm.draw_(torch.empty(5))]
    assert not torch.equal(streams[0], streams[1])
    assert not torch.equal(streams[1], streams[3])


def test_weights_hold_the_actor_and_states_its_average_with_equal_statistics(tasks, replay):
    learner = learner_of(tasks, actor_polyak=0.5, actor_period=1)
    passed = [parameters(learner.policy)]
    for _ in range(2):
        learner.update(batch_of(replay))
        passed.append(parameters(learner.policy))
    learner.set_statistics(replay.sample_rows(4).statistics)
    acting, saved = (MultiTaskPolicy(specs_of(tasks), NETWORK) for _ in range(2))
    load(acting, learner.weights())
    saved.load_state_dict(learner.state_dict()["average"])
    assert torch.equal(parameters(acting), passed[2])
    torch.testing.assert_close(parameters(saved), passed[0] / 4 + passed[1] / 4 + passed[2] / 2)
    assert saved.mean.any()
    for name, buffer in acting.named_buffers():
        assert torch.equal(saved.get_buffer(name), buffer)


@pytest.mark.parametrize("graphs", [False, True])
def test_the_average_that_spans_all_updates_is_the_mean_of_all_actors(tasks, replay, graphs):
    """Also where updates are recorded, and over a resume."""
    config = {"actor_polyak": 1.0, "actor_average": 1.0, "actor_period": 1, "graphs": graphs}
    learner, passed = learner_of(tasks, **config), []
    for made in range(8):
        if made == 5:
            state, learner = learner.state_dict(), learner_of(tasks, **config)
            learner.load_state_dict(state)
        learner.update(batch_of(replay))
        passed.append(parameters(learner.policy))
    torch.testing.assert_close(parameters(learner.algorithm.average), torch.stack(passed).mean(0))


def step_of_average(learner, replay):
    """The step size of the average in the next update."""
    before = parameters(learner.algorithm.average)
    learner.update(batch_of(replay))
    change = (parameters(learner.algorithm.average) - before).double()
    wanted = (parameters(learner.policy) - before).double()
    return float(change @ wanted / (wanted @ wanted))


def test_the_average_spans_a_share_of_the_updates_once_that_is_more_than_its_least(tasks, replay):
    learner = learner_of(tasks, actor_polyak=0.5, actor_average=0.5, actor_period=1)
    steps = [step_of_average(learner, replay) for _ in range(8)]
    assert steps == pytest.approx([0.5, 0.5, 0.5, 0.5, 2 / 5, 2 / 6, 2 / 7, 2 / 8], rel=1e-3)


@pytest.mark.parametrize(("polyak", "least"), [(0.002, 5e-5), (1e-5, 1e-5)])
def test_the_average_moves_on_after_any_number_of_updates(tasks, replay, polyak, least):
    """In float32 it would stand still with a step size that falls for ever."""
    learner = learner_of(tasks, actor_polyak=polyak, actor_average=0.02, actor_period=1)
    learner.update(batch_of(replay))
    group = learner.algorithm.actor_group
    group.optimiser.state[group.tensors[0]]["step"].fill_(1e7)
    for parameter in learner.policy.parameters():
        # Far from its average, whose change is then not rounded away.
        parameter.data.add_(100.0)
    assert step_of_average(learner, replay) == pytest.approx(least, rel=0.02)


def test_versions_count_snapshots(tasks, replay):
    learner = learner_of(tasks)
    assert learner.weights().version == 0
    learner.update(batch_of(replay))
    assert [learner.weights().version for _ in range(2)] == [1, 2]


def test_versions_go_on_rising_if_nothing_was_learned_before(tasks, replay):
    """Of a learner that takes the place of one which had sent seven and kept no state."""
    learner = learner_of(tasks)
    learner.version = 7
    assert learner.weights().version == 0
    learner.update(batch_of(replay))
    assert learner.weights().version == 8


@pytest.mark.parametrize("atoms", [1, 21])
def test_the_critics_loss_is_the_mean_over_critics(tasks, replay, atoms):
    losses = []
    for critics in (1, 2):
        network = replace(NETWORK, critics=critics)
        learner = Trainer(specs_of(tasks), network, LearnerConfig(atoms=atoms))
        # All critics are the same, and so is what they lose.
        for parameter in learner.critic.parameters():
            parameter.data.zero_()
        learner.update(batch_of(replay, rows=2000))
        learner.check()
        losses.append(learner.metrics()["left"]["critic_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_non_finite_data_stops_the_update_before_any_change(tasks, replay):
    batch = batch_of(replay)
    learner = learner_of(tasks, graphs=False)
    learner.update(batch)
    before = parameters(learner.critic), parameters(learner.policy)
    for name in ("reward", "observation", "next_observation", "action"):
        bad = with_nan(batch, 1, name)
        with pytest.raises(RunError, match="right is not finite"):
            learner.update(bad)
    assert torch.equal(before[0], parameters(learner.critic))
    assert torch.equal(before[1], parameters(learner.policy))
    assert learner.updates == 1


def test_non_finite_weights_are_an_error(tasks, replay):
    learner = learner_of(tasks)
    learner.update(batch_of(replay))
    learner.weights()
    with torch.no_grad():
        learner.policy.backbone[0].weight[0, 0] = float("inf")
    with pytest.raises(RunError, match=r"backbone\.0\.weight.*not finite"):
        learner.weights()
    assert learner.version == 1


@pytest.mark.parametrize(("horizon", "discount"), [(1000, 0.995), (500, 0.99), (50, 0.95), (None, 0.99)])
def test_discount_depends_on_the_horizon(horizon, discount):
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


@pytest.mark.parametrize(("part", "name"), [("critic", "raw_embedding"), ("policy", "heads.output.bias")])
def test_a_non_finite_loss_stops_the_update_and_names_the_task(tasks, replay, part, name):
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


def test_metrics_are_those_of_each_tasks_last_update(tasks, replay):
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


@pytest.mark.parametrize("graphs", [False, True])
def test_a_task_without_rows_in_the_last_update_has_no_gradient(tasks, replay, graphs):
    learner = learner_of(tasks, graphs=graphs)
    gradients = {"critic_gradient", "actor_gradient"}
    only_right = unpack_batches(replay.sample_rows(32, 1, ("right",)).rows, replay.specs)[0]
    # The actor is updated every second time.
    for batch, missing in ((batch_of(replay), set()), (only_right, {"critic_gradient"}), (only_right, gradients)):
        learner.update(batch)
        assert gradients - learner.metrics()["left"].keys() == missing
        assert learner.metrics()["right"].keys() >= gradients
    for _ in range(2):
        learner.update(batch_of(replay))
    assert all(learner.metrics()["left"][name] > 0 for name in gradients)


def test_a_state_that_is_loaded_takes_over_no_failure(tasks, replay):
    """Failures of recorded updates are noted on the device, and raised later."""
    learner = learner_of(tasks, graphs=True)
    learner.update(batch_of(replay))
    state = copy.deepcopy(learner.state_dict())
    before = parameters(learner.policy)
    with torch.no_grad():
        learner.critic.get_parameter("raw_embedding")[1] = float("inf")
    learner.update(batch_of(replay))
    learner.load_state_dict(state)
    assert torch.equal(parameters(learner.policy), before)
    for _ in range(2):
        learner.update(batch_of(replay))
    learner.check()
    assert learner.updates == 3
    assert not torch.equal(parameters(learner.policy), before)
