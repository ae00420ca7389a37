"""Placement: shares of equal cost, the choice of the host, and Ray's logical CPUs."""

import time
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchrl.data import Bounded

from mtray.cluster.plan import Shares
from mtray.cluster.session.session import cpus_per_actor
from mtray.collect.placement import choose_host, partition, replicate, step_seconds
from mtray.config.settings import CollectorConfig, Config
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve
from tests.makers import PointEnv


def cost_of(share, costs):
    return sum(costs[task] * copies for task, copies in share.items())


def test_replicate_puts_every_task_in_every_collector():
    assert replicate(["a", "b"], 4, 3) == [{"a": 4, "b": 4}] * 3


def test_an_expensive_task_is_split_and_cheap_ones_share_a_collector():
    costs = {"expensive": 6.0, "cheap": 1.0, "cheaper": 1.0}
    assert partition(costs, 4, 2) == [{"expensive": 3}, {"expensive": 1, "cheap": 4, "cheaper": 4}]


COSTS = st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=40)


@given(COSTS, st.integers(1, 20), st.data())
def test_every_copy_is_placed_once_and_no_collector_is_empty(costs, copies, data):
    names = {f"t{index}": cost for index, cost in enumerate(costs)}
    collectors = data.draw(st.integers(1, min(40, copies * len(costs))))
    shares = partition(names, copies, collectors)
    total = Counter()
    for share in shares:
        assert share
        assert min(share.values()) > 0
        total.update(share)
    assert len(shares) == collectors
    assert total == dict.fromkeys(names, copies)


class Strict(PointEnv):
    def _step(self, tensordict):
        if not self.action_spec.is_in(tensordict["action"]):
            raise ValueError(f"throttle {tensordict['action'].tolist()} is outside [0, 1]")
        return super()._step(tensordict)


def test_a_cost_is_measured_with_actions_within_their_bounds():
    task = Task("mine", "torchrl", lambda n, seed: Strict(n, seed, action=Bounded(0.0, 1.0, (n, 1))))
    assert step_seconds(task, 0) > 0


class Waiting(PointEnv):
    def _step(self, tensordict):
        time.sleep(0.05)
        return super()._step(tensordict)


def test_time_in_which_an_environment_waits_is_a_cost_and_ends_the_measurement():
    begin = time.monotonic()
    # Four copies wait together.
    assert step_seconds(Task("mine", "torchrl", Waiting)) >= 0.05 / 4
    assert time.monotonic() - begin < 5


@given(COSTS, st.integers(4, 20), st.integers(1, 4))
def test_no_share_exceeds_an_equal_part_by_more_than_a_copy(costs, copies, collectors):
    names = {f"t{index}": cost for index, cost in enumerate(costs)}
    part = copies * sum(costs) / collectors
    for share in partition(names, copies, collectors):
        assert cost_of(share, names) <= part + 1.01 * max(costs)


def test_measured_costs_distinguish_expensive_from_cheap_tasks():
    expensive, cheap = (step_seconds(Task(name, "mujoco")) for name in ("dog-run", "pendulum-swingup"))
    assert expensive > 5 * cheap


@pytest.mark.parametrize(
    ("tasks", "collectors", "cores", "host"),
    [
        (2, 1, 2, "parallel"),
        (2, 2, 2, "inline"),
        (2, 8, 2, "inline"),
        (2, 8, 64, "parallel"),
        (6, 2, 8, "parallel"),
        (1, 4, 64, "inline"),
        (50, 1, 1, "inline"),
        (8, 8, 64, "parallel"),
        # Exactly two processes per core.
        (8, 8, 32, "parallel"),
        (8, 8, 31, "inline"),
        # More than 8 tasks are partitioned over several collectors, which step them inline.
        (28, 8, 16, "inline"),
        (28, 8, 256, "inline"),
        # A single collector steps all tasks.
        (28, 1, 16, "parallel"),
        (28, 1, 8, "inline"),
    ],
)
def test_the_host_is_the_one_that_keeps_more_cores_busy(tasks, collectors, cores, host):
    assert choose_host([Task(str(index), "mujoco") for index in range(tasks)], collectors, cores, 8) == host


def test_simulators_with_threads_need_no_processes():
    assert choose_host([Task("a", "envpool"), Task("b", "envpool")], 1, 64, 8) == "inline"


def shares_of(tasks, **settings):
    config = Config(tasks=tuple(tasks), workers=3, envs_per_task=2, deterministic=True, **settings)
    return Shares(config, [SimpleNamespace(name=task) for task in tasks]).of(3)


def test_few_tasks_are_replicated_and_many_are_partitioned():
    few, many = [f"t{index}" for index in range(8)], [f"t{index}" for index in range(9)]
    assert shares_of(few, host="inline") == replicate(few, 2, 3)
    assert shares_of(many, host="parallel") == replicate(many, 2, 3)
    assert shares_of(many, host="inline") == [dict.fromkeys(many[start : start + 3], 6) for start in (0, 3, 6)]
    assert shares_of(few, host="inline", collector=CollectorConfig(tasks_each=7)) != replicate(few, 2, 3)


def test_resolved_tasks_have_the_given_action_repeat():
    assert [task.spec.action_repeat for task in resolve(["cartpole", "mujoco/reacher-easy"], action_repeat=2)] == [
        2
    ] * 7


@pytest.mark.parametrize(
    ("nodes", "actors", "expected"),
    [([10.0], 10, 1.0), ([64.0], 10, 1.0), ([2.0], 10, 0.2), ([2.0, 2.0], 5, 0.666), ([1.0, 3.0], 4, 1.0)],
)
def test_cpus_per_actor_is_the_largest_share_that_places_all(nodes, actors, expected):
    assert cpus_per_actor(nodes, actors) == expected


@given(st.lists(st.integers(1, 64), min_size=1, max_size=5), st.integers(1, 200))
def test_all_actors_are_placed(nodes, actors):
    share = cpus_per_actor([float(cpus) for cpus in nodes], actors)
    # As Ray does: each on a node with room, in units of a ten thousandth.
    left = [cpus * 10_000 for cpus in nodes]
    for _ in range(actors):
        node = next(index for index, room in enumerate(left) if room >= round(share * 10_000))
        left[node] -= round(share * 10_000)
