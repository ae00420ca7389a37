"""The cores that actors leave to the learner."""

import os
import subprocess
import sys
import threading

import psutil
import pytest

from mtray.cluster.actors import cores
from mtray.cluster.actors.cores import LearnersCore
from mtray.replay.waiting import FRAMES, REPLAY, WARM_UP

SCRIPT = """
import os, subprocess, sys
from mtray.cluster.actors.cores import give_way

with subprocess.Popen(["sleep", "60"]) as child, subprocess.Popen(["true"]) as ended:
    ended.wait()
    give_way([child.pid, ended.pid])
    print(*(os.getpriority(os.PRIO_PROCESS, process) for process in (0, child.pid)))
    child.kill()
"""


def test_a_process_gives_way_with_those_that_it_started_before():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    own, child = map(int, done.stdout.split())
    assert own == child >= 10


MINE = frozenset(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(MINE) < 2, reason="one core")


@pytest.fixture
def collector():
    """A process with a child, as a collector has simulators."""
    with subprocess.Popen(["sh", "-c", "sleep 100 & wait"]) as process:
        while not psutil.Process(process.pid).children():
            pass
        (child,) = psutil.Process(process.pid).children()
        yield process.pid, child.pid
        child.kill()
        process.kill()


def affinities(processes):
    return [frozenset(os.sched_getaffinity(process)) for process in processes]


def test_others_leave_the_learner_its_core_while_it_has_data(collector):
    shared = LearnersCore()
    learner = os.getpid()
    shared.share(learner, collector[:1], {WARM_UP: 1.0}, 0.0)
    assert affinities(collector) == [MINE, MINE]
    shared.share(learner, collector[:1], {REPLAY: 0.5}, 5.0)
    (left,) = set(affinities(collector))
    assert left < MINE
    assert len(MINE - left) == 1
    assert affinities([learner]) == [MINE], "the learner may use all"
    # A simulator that is built anew has its parent's cores, and gets all back too.
    shared.share(learner, collector[:1], {FRAMES: 0.1}, 10.0)
    assert affinities(collector) == [MINE, MINE]


def test_a_learner_that_waited_for_frames_is_given_a_core_again_after_longer_and_longer(collector):
    shared, now, kept = LearnersCore(), 0.0, []
    for _ in range(3):
        # It has a core to itself as soon as it may, and then waits for frames.
        while affinities(collector)[0] == MINE:
            shared.share(1, collector, {}, now)
            now += 5.0
        kept.append(now)
        shared.share(1, collector, {FRAMES: 0.5}, now)
        assert affinities(collector)[0] == MINE
    assert kept[1] - kept[0] == pytest.approx(cores._PAUSE_SECONDS, abs=10)
    assert kept[2] - kept[1] == pytest.approx(2 * cores._PAUSE_SECONDS, abs=10)


def test_a_start_or_a_new_learner_costs_no_pause(collector):
    shared = LearnersCore()
    shared.share(1, collector, {}, 0.0)
    shared.share(1, collector, {"start": 0.9}, 5.0)
    assert affinities(collector)[0] == MINE
    shared.share(1, collector, {}, 10.0)
    assert affinities(collector)[0] < MINE


def test_threads_with_cores_of_their_own_keep_them_and_processes_that_end_do_no_harm(collector):
    core = max(MINE)
    os.sched_setaffinity(collector[1], {core})
    ended = subprocess.Popen(["true"])
    ended.wait()
    shared = LearnersCore()
    shared.share(ended.pid, [collector[0], ended.pid], {}, 0.0)
    assert affinities(collector) == [MINE - {core}, frozenset({core})]
    shared.give_back([collector[0], ended.pid])
    shared.give_back([collector[0]])
    assert affinities(collector) == [MINE, frozenset({core})]


def test_every_thread_of_a_process_is_kept_from_it():
    begun, end, found = threading.Event(), threading.Event(), []

    def work():
        found.append(threading.get_native_id())
        begun.set()
        end.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(60)
    shared = LearnersCore()
    try:
        shared.share(1, [os.getpid()], {}, 0.0)
        assert len(set(affinities([os.getpid(), *found]))) == 1
        assert affinities(found)[0] < MINE
    finally:
        shared.give_back([os.getpid()])
        end.set()
        thread.join()
    assert affinities([os.getpid()]) == [MINE]


def test_with_one_core_nothing_is_kept(collector):
    shared = LearnersCore({0})
    shared.share(1, collector, {}, 0.0)
    assert affinities(collector) == [MINE, MINE]
