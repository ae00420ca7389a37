"""Pushes and draws on a real Ray: the same rows from this node and from another, and no block written too early."""

import os
import pickle
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from mtray.cluster.actors.draws import Draws
from mtray.cluster.actors.pushes import Pusher
from mtray.cluster.actors.replay import Replay
from mtray.config.settings import Config, ReplayConfig
from mtray.data.rows import TRANSITION, row_flags
from mtray.data.statistics import TaskStatistics
from mtray.errors import UnreachableError
from tests.makers import make_spec
from tests.processes import ray_without_token

SPECS = (make_spec("left", 3, 2), make_spec("right", 1, 3))
CONFIG = Config(tasks=("left", "right"), replay=ReplayConfig(capacity_rows=1000))


class Near(Replay):
    """A replay that begins anew for each test: a process takes seconds to start."""

    def forget(self):
        self._is_ready = False


class Far(Near):
    """A replay on another node."""

    def reaches(self, address):
        return False

    def sample_rows(self, rows_per_task, batches, steps=1, out=None):
        assert out is None
        return super().sample_rows(rows_per_task, batches, steps)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with ray_without_token(num_cpus=2):
        yield


@pytest.fixture(scope="module", params=[Near, Far], ids=["near", "far"])
def process(request):
    actor = ray.remote(request.param).options(num_cpus=0).remote(SPECS, CONFIG)
    yield actor
    ray.kill(actor)


@pytest.fixture
def replay(process):
    ray.get([process.forget.remote(), process.reserve.remote(), process.load.remote(None)])
    return process


def push(pusher, fill, count=5):
    """Push rows of one value; return them."""
    rows = {spec.name: np.full((count, spec.row_size), fill, np.float32) for spec in SPECS}
    for spec in SPECS:
        row_flags(rows[spec.name])[:] = [TRANSITION] * (count - 1) + [0]
    statistics = {spec.name: TaskStatistics.of(rows[spec.name], spec.observation_size) for spec in SPECS}
    pusher.push(rows, statistics, {"left": float(fill)})
    return rows


def rows_of(replay):
    _, state = ray.get(replay.snapshot.remote())
    return {
        task: ray.get(replay.read_rows.remote(task, state["start"][task], written))[1]
        for task, written in state["written"].items()
    }


def assert_holds(replay, pushes):
    for task, held in rows_of(replay).items():
        assert held.tobytes() == np.concatenate([push[task] for push in pushes]).tobytes()


def test_what_is_pushed_is_held(replay):
    pusher = Pusher(replay, "here", 1, 60.0)
    pushes = [push(pusher, fill, count=fill + 1) for fill in range(1, 8)]
    pusher.wait()
    assert_holds(replay, pushes)


@pytest.mark.parametrize("limit", [1, 3])
def test_pushes_under_way_hold_what_they_held(replay, limit):
    pusher = Pusher(replay, "here", limit, 60.0)
    pushes = [push(pusher, 1)]
    pusher.wait()
    pid = ray.get(replay.hello.remote(Path("/nowhere/logs"), "replay"))[0]
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(0.5, os.kill, (pid, signal.SIGCONT))
    timer.start()
    # The last one is made while as many pushes as may be are under way and none of them is read.
    pushes += [push(pusher, fill) for fill in range(2, 3 + limit)]
    timer.join()
    pusher.wait()
    assert_holds(replay, pushes)


def test_a_push_that_is_sent_again_holds_what_it_held(replay):
    pid = ray.get(replay.hello.remote(Path("/nowhere/logs"), "replay"))[0]
    pusher = Pusher(replay, "here", 1, 0.3)
    pushes = [push(pusher, 1)]
    pusher.wait()
    os.kill(pid, signal.SIGSTOP)
    pushes.append(push(pusher, 2))
    with pytest.raises(UnreachableError, match="did not answer push 1 of here"):
        pusher.wait()
    os.kill(pid, signal.SIGCONT)
    pusher.wait()
    pushes.append(push(pusher, 3))
    pusher.wait()
    assert_holds(replay, pushes)
    assert ray.get(replay.count.remote())["frames"] == {"left": 12, "right": 12}


def test_the_time_of_sending_counts_as_push():
    def remote(message):
        time.sleep(0.1)
        return ray.put(None)

    slow = SimpleNamespace(insert=SimpleNamespace(remote=remote))
    pusher = Pusher(slow, "here", 1, 60.0)
    push(pusher, 1)
    # As if by a new process of the replay.
    pusher.connect(slow)
    pusher.clock.lap("idle")
    assert pusher.clock.take()["push"] >= 0.2


def test_draws_are_the_replays_in_its_order(replay):
    pusher = Pusher(replay, "here", 1, 60.0)
    for fill in range(1, 20):
        push(pusher, fill)
    pusher.wait()
    oracle = Replay(SPECS, CONFIG)
    oracle.reserve()
    for task, rows in rows_of(replay).items():
        oracle.write_rows(task, 0, rows)
    oracle.load(ray.get(replay.snapshot.remote())[1])
    size = {"left": 6, "right": 12}
    draws = Draws(replay, SPECS, size, 4, calls_ahead=2)
    for _ in range(8):
        found, expected = draws.next(), oracle.sample_rows(size, 4)
        assert {task: part.shape[:2] for task, part in found.rows.items()} == {"left": (4, 6), "right": (4, 12)}
        assert {task: part.tobytes() for task, part in found.rows.items()} == {
            task: part.tobytes() for task, part in expected.rows.items()
        }
        assert pickle.dumps(found.statistics["left"].mean) == pickle.dumps(expected.statistics["left"].mean)


def test_a_task_that_is_set_aside_and_whose_rows_are_lost_is_left_out_of_draws(replay):
    draws = Draws(replay, SPECS, {"left": 6, "right": 12}, 4, calls_ahead=2)
    pusher = Pusher(replay, "here", 1, 60.0)
    rows = {"left": np.full((500, SPECS[0].row_size), 3, np.float32)}
    row_flags(rows["left"])[:] = [TRANSITION] * 499 + [0]
    for _ in range(3):
        pusher.push(rows, {}, {})
    pusher.wait()
    assert not ray.get(replay.count.remote())["is_warm"]
    assert ray.get(replay.count.remote({"right"}))["is_warm"]
    sampled = draws.next()
    assert {task: part.shape[:2] for task, part in sampled.rows.items()} == {"left": (4, 6)}
    assert sampled.ages.keys() == {"left"}
    assert (sampled.rows["left"][..., 0] == 3).all()
    # Once there are rows of it they are drawn, as of every task that is set aside.
    push(pusher, 3)
    pusher.wait()
    draws.drop()
    assert draws.next().rows.keys() == {"left", "right"}


@pytest.mark.parametrize("ahead", [1, 3])
def test_draws_stay_as_they_are_until_the_next_is_asked_for(replay, ahead):
    pusher = Pusher(replay, "here", 1, 60.0)
    for fill in range(1, 20):
        push(pusher, fill)
    pusher.wait()
    draws = Draws(replay, SPECS, {"left": 6, "right": 6}, 4, calls_ahead=ahead)
    for _ in range(2 * ahead + 3):
        found = draws.next().rows["left"]
        before = found.tobytes()
        draws.settle()
        assert found.tobytes() == before
