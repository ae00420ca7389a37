"""Updates that are recorded, compiled, in other precisions or on a GPU, and their deferred failures."""

import copy

import numpy as np
import pytest
import torch

from mtray.config.learner import LearnerConfig
from mtray.data.batch import unpack_batches
from mtray.errors import RunError
from mtray.learn.execution.runner import matmul_precision
from mtray.learn.trainer import Trainer
from tests.learn.trainers import (
    NETWORK,
    TARGETS,
    batch_of,
    extend,
    filled_replay,
    networks,
    parameters,
    specs_of,
    with_nan,
)


def sampled_batches(replay, count=8):
    """Return batches of both tasks, with a batch of one task in the middle."""
    batches = unpack_batches(replay.sample_rows(32, count).rows, replay.specs)
    return [*batches[:5], *unpack_batches(replay.sample_rows(32, 1, ("right",)).rows, replay.specs), *batches[5:]]


def trained(tasks, batches, device="cpu", threads=None, **changes):
    learner = Trainer(specs_of(tasks), NETWORK, LearnerConfig(atoms=21, learning_rate=3e-3, **changes), device=device)
    if threads is not None:
        learner.set_threads(threads)
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
        (True, {"balance": True}),
    ],
)
def test_recorded_updates_equal_eager_updates(tasks, replay, weighted, changes):
    batches = sampled_batches(replay)
    if weighted:
        batches += unpack_batches(replay.sample_rows({"left": 16, "right": 48}, 4).rows, replay.specs)
    copies = [batch.observation.clone() for batch in batches]
    eager, recorded = (trained(tasks, batches, graphs=graphs, **changes) for graphs in (False, True))
    assert recorded._runner._recorded[1]._critic[0][0]._recording is not None
    assert torch.equal(numbers(eager), numbers(recorded))
    assert eager.metrics() == recorded.metrics()
    assert all(torch.equal(batch.observation, copy) for batch, copy in zip(batches, copies, strict=True))
    smaller = batch_of(replay, rows=8)
    eager.update(smaller)
    recorded.update(smaller)
    assert torch.equal(numbers(eager), numbers(recorded))


@pytest.mark.parametrize("changes", [{}, {"algorithm": "td3"}, {"n_step": 2}])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_out_an_update(tasks, replay, threads, changes):
    """Sums are rounded differently, and the same in each run."""
    batches = sampled_batches(replay)
    alone, *shared = (trained(tasks, batches, graphs=True, threads=count, **changes) for count in (1, threads, threads))
    assert len(shared[0]._runner._recorded[threads]._parts) == threads
    torch.testing.assert_close(numbers(shared[0]), numbers(alone), rtol=1e-3, atol=1e-4)
    assert not torch.equal(numbers(shared[0]), numbers(alone))
    assert torch.equal(*map(numbers, shared))
    for name, metrics in alone.metrics().items():
        assert shared[0].metrics()[name] == pytest.approx(metrics, rel=1e-2, abs=1e-3)


def test_no_thread_is_left_without_rows(tasks, replay):
    learner = trained(tasks, [batch_of(replay, rows=2)], graphs=True, threads=4)
    assert learner._runner._recorded.keys() == {2}


def test_the_number_of_threads_may_change_between_updates(tasks, replay):
    batches = sampled_batches(replay)
    learner, alone = (trained(tasks, [], graphs=True) for _ in range(2))
    for count, batch in zip((1, 2, 1, 3, 2, 2, 1, 1), batches, strict=False):
        learner.set_threads(count)
        learner.update(batch)
        alone.update(batch)
        # Those of this update, not of the last one with another number.
        for task, metrics in alone.metrics().items():
            assert learner.metrics()[task] == pytest.approx(metrics, rel=1e-2, abs=1e-3)
    torch.testing.assert_close(numbers(learner), numbers(alone), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_any_thread_is_raised(tasks, replay, threads, monkeypatch):
    learner = trained(tasks, [], graphs=True, threads=threads)
    calls = []

    def fails(batch, *args):
        calls.append(batch)
        if len(calls) == threads:
            raise RuntimeError("broken")
        return gradient(batch, *args)

    gradient = learner.algorithm.critic_gradient
    monkeypatch.setattr(learner.algorithm, "critic_gradient", fails)
    with pytest.raises(RuntimeError, match="broken"):
        learner.update(batch_of(replay))


def test_recorded_updates_use_new_statistics_and_states(tasks):
    replay, collector = filled_replay(tasks, rollouts=3)
    learners = [trained(tasks, [], graphs=graphs) for graphs in (False, True)]
    for growth in range(1, 6):
        extend(replay, collector.collect())
        sampled = replay.sample_rows(32, 4)
        for statistics in sampled.statistics.values():
            statistics.largest_return, statistics.largest_reward = 3.0**growth, 100.0
        for learner in learners:
            learner.set_statistics(sampled.statistics)
            for batch in unpack_batches(sampled.rows, replay.specs):
                learner.update(batch)
        eager, recorded = learners
        assert torch.equal(numbers(eager), numbers(recorded)), growth
        assert torch.equal(eager.reward_scale, recorded.reward_scale)
        assert eager.metrics() == recorded.metrics()
        assert eager.weights().values.tobytes() == recorded.weights().values.tobytes()
        if growth == 3:
            recorded.load_state_dict(copy.deepcopy(eager.state_dict()))


def test_a_deferred_failure_stops_later_updates_until_it_is_raised(tasks, replay):
    batches = sampled_batches(replay)
    learner = trained(tasks, batches[:3], graphs=True)
    learner.check()
    before = parameters(learner.critic), parameters(learner.policy), learner.algorithm.log_temperature.detach().clone()
    learner.update(with_nan(batches[3], 1))
    learner.update(with_nan(batches[3], 0))
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
def test_a_deferred_non_finite_loss_names_its_task_and_update(tasks, replay, part, name):
    before, learner = trained(tasks, sampled_batches(replay)[:2]), trained(tasks, [], graphs=True)
    learner.load_state_dict(before.state_dict())
    with torch.no_grad():
        getattr(learner, part).get_parameter(name)[1] = float("inf")
    before = parameters(learner.policy)
    learner.update(batch_of(replay))
    learner.update(batch_of(replay))
    with pytest.raises(RunError, match=r"loss of right or its gradient is not finite at update 2"):
        learner.state_dict()
    assert torch.equal(before, parameters(learner.policy))


def test_deferred_failures_are_raised_after_200_updates(tasks, replay):
    batch = batch_of(replay, rows=2)
    learner = trained(tasks, [with_nan(batch, 0)], graphs=True)
    for _ in range(198):
        learner.update(batch)
    with pytest.raises(RunError, match="data of left"):
        learner.update(batch)


# Compilers read the .grad of tensors that are no leaves.
ignores_warnings = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore::DeprecationWarning")


@ignores_warnings
@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16"}, pytest.param({"compile": "aot_eager"}, marks=pytest.mark.slow)]
)
def test_bfloat16_and_compiled_updates_are_nearly_equal(tasks, replay, changes):
    batches = sampled_batches(replay)
    plain, other = trained(tasks, batches), trained(tasks, batches, **changes)
    assert {part.dtype for part in other.critic.parameters()} == {torch.float32}
    start = numbers(trained(tasks, []))
    moved, apart = numbers(plain) - start, numbers(other) - numbers(plain)
    assert apart.norm() < 0.2 * moved.norm()
    assert "precision" not in changes or apart.norm() > 0
    assert "compile" not in changes or other.algorithm._critic_outputs is not other.critic
    for task, figures in plain.metrics().items():
        assert other.metrics()[task]["critic_loss"] == pytest.approx(figures["critic_loss"], rel=0.02)


@pytest.mark.gpu
@ignores_warnings
@pytest.mark.parametrize(
    "changes",
    [{"graphs": False}, {}, {"precision": "float32"}, {"precision": "bfloat16"}, {"compile": "inductor"}],
    ids=["eager", "graphs", "float32", "bfloat16", "inductor"],
)
def test_updates_on_a_gpu_learn_each_tasks_best_action(tasks, changes):
    # Random numbers differ from those on the CPU, so only the learned actions are compared.
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
def test_matmul_precision_is_set_inside_and_restored(precision, inside):
    before = torch.get_float32_matmul_precision()
    with matmul_precision(precision):
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.gpu
def test_cuda_graphs_nearly_equal_eager_updates(tasks, replay):
    batches = sampled_batches(replay, count=16)
    plain, recorded = trained(tasks, batches, "cuda", graphs=False), trained(tasks, batches, "cuda")
    torch.testing.assert_close(numbers(plain), numbers(recorded), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_failure_in_a_cuda_graph_is_raised(tasks, replay):
    batches = sampled_batches(replay, count=16)
    learner = trained(tasks, batches, "cuda")
    learner.check()
    before = parameters(learner.critic)
    learner.update(with_nan(batches[0], 1))
    learner.update(batches[0])
    assert torch.equal(before, parameters(learner.critic))
    with pytest.raises(RunError, match="data of right is not finite"):
        learner.check()
