"""Where processes of a run are put on a cluster, and how many there is room for."""

import time
import types
from collections import Counter

import pytest

from mtray.cluster.session import nodes
from mtray.cluster.session.nodes import Node, choose_home, room, roomiest
from mtray.cluster.session.session import _joined

HEAD, SMALL, LARGE, GPU = (
    Node("head", cpus=0, free_cpus=0),
    Node("small", cpus=2, free_cpus=2),
    Node("large", cpus=64, free_cpus=60),
    Node("gpu", cpus=16, free_cpus=16, gpus=1),
)


@pytest.mark.parametrize(
    ("there", "driver", "needs_gpu", "home"),
    [
        ([HEAD, SMALL, LARGE, GPU], "head", True, "gpu"),
        ([HEAD, SMALL, LARGE, GPU], "small", False, "small"),
        ([HEAD, SMALL, LARGE, GPU], "head", False, "large"),
        ([HEAD, GPU], "head", False, "gpu"),
        ([HEAD, SMALL], "head", True, None),
        ([HEAD, Node("one", cpus=4, free_cpus=1)], "head", False, None),
        ([SMALL, Node("going", cpus=64, free_cpus=64, is_draining=True)], "going", False, "small"),
    ],
)
def test_learner_and_replay_share_a_node_with_a_gpu_the_drivers_or_the_freest(there, driver, needs_gpu, home):
    chosen = choose_home(there, 1.0, driver, needs_gpu=needs_gpu)
    assert (chosen and chosen.id) == home


def test_collectors_go_where_most_cores_are_free():
    taken = Counter()
    for _ in range(78):
        taken[roomiest([HEAD, SMALL, LARGE, GPU], taken, 1.0).id] += 1
    assert taken == {"large": 60, "gpu": 16, "small": 2}
    assert roomiest([HEAD, SMALL, LARGE, GPU], taken, 1.0) is None
    assert roomiest([SMALL, LARGE], Counter(large=59), 1.0).id == "small"


def test_room_is_what_is_free_and_what_the_run_has_already_without_nodes_that_will_go():
    nodes = [HEAD, SMALL, Node("going", cpus=8, free_cpus=8, is_draining=True)]
    assert room(nodes, 1.0, Counter(small=3, going=2)) == 5
    assert room(nodes, 0.1, Counter()) == 20


@pytest.mark.parametrize(
    ("nodes", "cpus", "collectors"),
    [
        ([HEAD, SMALL, LARGE], 1.0, 60),
        ([SMALL], 0.666, 1),
        ([HEAD], 1.0, 1),
        ([Node("a", cpus=1, free_cpus=1)], 0.333, 1),
        # What is left on one node is of no use to a process on the other.
        ([Node("a", cpus=1, free_cpus=1), Node("b", cpus=1, free_cpus=1)], 0.5, 2),
        ([SMALL, Node("going", cpus=2, free_cpus=2, is_draining=True)], 0.666, 1),
    ],
)
def test_a_cluster_of_fewer_than_three_cores_has_room_for_three_processes(nodes, cpus, collectors):
    session = _joined(nodes, None)
    assert (session.cpus_per_actor, session.room) == (cpus, collectors)


@pytest.mark.parametrize(
    ("left", "removed_at_once"), [(Node("a", is_draining=True), []), (None, ["first"])], ids=["drained", "gone"]
)
def test_a_process_that_starts_elsewhere_leaves_the_other_of_the_two_alive(monkeypatch, left, removed_at_once):
    """Ray ends all that a placement group holds when it is removed."""
    found, removed, made = [[Node("a", cpus=4, free_cpus=4)]], [], iter(["first", "second"])
    monkeypatch.setattr(nodes, "look", lambda: found[-1])
    monkeypatch.setattr("ray.util.placement_group", lambda *_, **options: next(made))
    monkeypatch.setattr("ray.util.remove_placement_group", removed.append)
    monkeypatch.setattr("ray.util.placement_group_table", lambda group: {"bundles_to_node_id": {0: "a"}})
    monkeypatch.setattr("ray.get_runtime_context", lambda: types.SimpleNamespace(get_node_id=lambda: "driver"))
    monkeypatch.setattr("ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy", lambda group: group)
    placement = nodes.Placement(1.0, needs_gpu=False)
    for kind in ("replay", "learner"):
        assert placement.options(kind)["scheduling_strategy"] == "first"
    found.append([Node("b", cpus=4, free_cpus=4), *([left] if left else [])])
    assert placement.options("learner")["scheduling_strategy"] == "second"
    assert removed == removed_at_once
    placement.release()
    assert sorted(removed) == ["first", "second"]


def test_a_thousand_collectors_are_placed_without_asking_for_the_nodes_each_time(monkeypatch):
    looks = []

    def look():
        looks.append(None)
        return [Node(id=f"{index:056x}", cpus=64, free_cpus=64) for index in range(16)]

    monkeypatch.setattr(nodes, "look", look)
    placement = nodes.Placement(1.0, needs_gpu=False)
    begin = time.monotonic()
    homes = Counter(placement.options("collector")["scheduling_strategy"].node_id for _ in range(1000))
    assert len(looks) <= 1 + (time.monotonic() - begin) / nodes._SEEN_SECONDS
    assert max(homes.values()) - min(homes.values()) <= 1, "they are spread evenly"
    assert sum(homes.values()) == 1000
