"""The actors on a real Ray: pushes counted once, weights pulled when newer and never waited for."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from mtray.cluster.actors.collector import Collector
from mtray.cluster.actors.learner import Learner
from mtray.cluster.actors.replay import Replay
from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.settings import CollectorConfig, Config, ReplayConfig
from mtray.errors import NotFiniteError
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import snapshot
from mtray.rundir.checkpoints.checkpoint import from_bytes, to_bytes
from mtray.tasks.plan import Task
from mtray.testing import CountingMaker
from tests.processes import ray_without_token

TASKS = [
    Task("a", "torchrl", CountingMaker(truncate_after=20)),
    Task("b", "torchrl", CountingMaker(observation_size=4)),
]
SPECS = tuple(task.spec for task in TASKS)
SHARE = {"a": 2, "b": 2}
CONFIG = Config(
    device="cpu",
    tasks=("a", "b"),
    workers=1,
    envs_per_task=2,
    host="inline",
    collector=CollectorConfig(rollout_steps=8, push_timeout_seconds=0.5),
    network=NetworkConfig(actor_width=8, critic_width=8, embedding_size=2),
    replay=ReplayConfig(capacity_rows=1000),
    learner=LearnerConfig(batch_rows=16, batches_per_call=4, n_step=1),
)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with ray_without_token(num_cpus=4):
        yield


@pytest.fixture
def replay():
    actor = empty_replay()
    yield actor
    ray.kill(actor)


@pytest.fixture
def collector(replay):
    actor = collector_of(replay)
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def filled():
    """A replay that holds rollouts, which learners only read, and their collector."""
    replay = empty_replay()
    collector = collector_of(replay)
    ray.get([collector.collect.remote(0, []) for _ in range(10)])
    ray.get(collector.flush.remote())
    yield replay, collector
    ray.kill(collector)
    ray.kill(replay)


def empty_replay():
    actor = ray.remote(Replay).options(num_cpus=0).remote(SPECS, CONFIG)
    ray.get([actor.reserve.remote(), actor.load.remote(None)])
    return actor


def collector_of(replay):
    actor = ray.remote(Collector).options(num_cpus=0).remote("here", TASKS, CONFIG, replay)
    ray.get(actor.build.remote(SHARE, [1, 2, 3]))
    return actor


def policy_weights(version):
    torch.manual_seed(version)
    return snapshot(MultiTaskPolicy(SPECS, CONFIG.network), version)


def test_law_8_pushes_that_are_sent_again_count_once(replay, collector):
    ray.get(collector.collect.remote(0, []))
    assert ray.get(collector.flush.remote()) == 32
    pid = ray.get(replay.hello.remote(Path("/nowhere/logs"), "replay"))[0]
    # The replay stands still for longer than a push waits: the push is sent again, more than once.
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(1.8, os.kill, (pid, signal.SIGCONT))
    timer.start()
    try:
        started = time.monotonic()
        ray.get([collector.collect.remote(0, []) for _ in range(3)])
        assert ray.get(collector.flush.remote()) == 4 * 32
        assert time.monotonic() - started > 1.0
    finally:
        timer.join()
    stats = ray.get(replay.count.remote())
    assert stats["frames"] == {"a": 4 * 16, "b": 4 * 16}
    assert ray.get(replay.fence.remote("here")) == 4 * 32
    counts, state = ray.get(replay.snapshot.remote())
    assert state["frames"] == stats["frames"] == counts["frames"]
    for task, written in state["written"].items():
        _, held = ray.get(replay.read_rows.remote(task, 0, written))
        assert (held[:, -1].view("int32") & 1).sum() == stats["frames"][task]


def test_newer_weights_are_taken_older_ones_are_not(collector):
    versions = []
    for version in (0, 2, 1, 3):
        weights = ray.put(policy_weights(version))
        versions.append(ray.get(collector.act.remote(version, [weights])).weights_version)
    assert versions == [0, 2, 2, 3]


def test_a_collector_does_not_wait_for_weights_that_are_not_here_yet(collector):
    gate = ray.remote(Gate).options(num_cpus=0, max_concurrency=2).remote()
    late = gate.weights.remote()
    assert ray.get(collector.act.remote(5, [late]), timeout=60).weights_version == 0
    ray.get(gate.open.remote())
    ray.wait([late])
    assert ray.get(collector.act.remote(5, [late])).weights_version == 5


def test_a_real_head_passes_the_check_of_its_address():
    from mtray.cluster.session.session import check_address

    check_address(ray.get_runtime_context().gcs_address)


class Gate:
    """Holds weights back until it is opened."""

    def __init__(self):
        self._event = threading.Event()

    def open(self):
        self._event.set()

    def weights(self):
        self._event.wait()
        return policy_weights(5)


def test_the_learner_draws_from_the_replay_and_gives_weights_as_a_return_value(filled):
    replay, collector = filled
    learner = ray.remote(Learner).options(num_cpus=0).remote(SPECS, CONFIG, replay)
    learner.build.remote()
    figures, weights = learner.train.options(num_returns=2).remote(10, 60.0)
    figures = ray.get(figures)
    assert figures["updates"] == figures["made"] == 10
    assert figures["version"] == 1
    assert set(figures["tasks"]) == {"a", "b"}
    assert ray.get(collector.act.remote(1, [weights], True)).weights_version == 1
    # Nothing on the way wrote into the snapshot, which lies in memory that processes share.
    assert not ray.get(weights).values.flags.writeable
    ray.kill(learner)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_loss_that_is_not_finite_names_its_task_and_update(filled, graphs):
    config = replace(CONFIG, learner=replace(CONFIG.learner, graphs=graphs))
    # Both start at once.
    learner, resumed = (ray.remote(Learner).options(num_cpus=0).remote(SPECS, config, filled[0]) for _ in range(2))
    learner.build.remote()
    figures, _ = learner.train.options(num_returns=2).remote(4, 60.0)
    assert ray.get(figures)["updates"] == 4
    state = from_bytes(ray.get(learner.state.remote()).whole)
    state["critic"]["raw_embedding"][1] = float("inf")
    ray.kill(learner)
    resumed.build.remote(to_bytes(state))
    figures, _ = resumed.train.options(num_returns=2).remote(4, 60.0)
    with pytest.raises(NotFiniteError, match=r"critic's loss of b or.* at update 4"):
        ray.get(figures)
    ray.kill(resumed)


@pytest.mark.parametrize(("is_deterministic", "used"), [(False, "ONEDNN"), (True, "MKL")])
def test_the_learner_takes_the_fastest_library_for_products_unless_numbers_must_repeat(filled, is_deterministic, used):
    class Probe(Learner):
        def prefer(self):
            from mtray.learn.execution import products

            sizes = []
            products.fastest = lambda *size: sizes.append(size) or products.Library.ONEDNN
            self._sizes = sizes

        def library(self):
            from mtray.learn.execution import products

            return products.library().name, self._sizes

    config = replace(CONFIG, deterministic=is_deterministic)
    learner = ray.remote(Probe).options(num_cpus=0).remote(SPECS, config, filled[0])
    learner.prefer.remote()
    ray.get(learner.build.remote())
    assert ray.get(learner.library.remote()) == (used, [] if is_deterministic else [(16, 8)])
    ray.kill(learner)


def test_a_slice_ends_in_time_with_at_least_one_update(filled):
    learner = ray.remote(Learner).options(num_cpus=0).remote(SPECS, CONFIG, filled[0])
    learner.build.remote()
    figures, _ = learner.train.options(num_returns=2).remote(1_000_000, 0.2)
    assert 1 <= ray.get(figures, timeout=60)["made"] < 1_000_000
    ray.kill(learner)
