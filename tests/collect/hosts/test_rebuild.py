"""Simulators that fail in a step and are built anew, beside the others."""

import subprocess
import time

import numpy as np
import psutil
import pytest
from torchrl.envs import RenameTransform, TransformedEnv

from mtray.collect.episodes import EpisodeTracker
from mtray.collect.hosts import parallel as host_module
from mtray.collect.hosts.make import make_host
from mtray.collect.loop import ActingLoop
from mtray.config.learner import NetworkConfig
from mtray.data.rollout import pack
from mtray.data.rows import holds_transition
from mtray.engines.base import copy_seed
from mtray.errors import TaskError
from mtray.policy.layout import PolicyLayout
from mtray.tasks.makers import make_makers
from mtray.tasks.plan import Task
from mtray.testing import CountingMaker
from tests.failing import LATER, FailingMaker
from tests.makers import Drawing, drawing

SOUND = Task("sound", "torchrl", CountingMaker(truncate_after=4))
BAD_DATA = {
    "loses": "'observation' is missing",
    "widens": "'observation' has shape (2, ",
    "rewards_twice": "its step returns no 'reward' that fits its spec",
    "bad_reward": "its step gave the reward nan",
    "bad_observation": "its step gave the observation inf",
    "bad_reset": "its reset gave the observation nan",
}
CASES = [
    *[
        (host, what)
        for host in ("inline", "parallel")
        for what in ("step_raises", "strange", "sys_exit", "reset_raises", *BAD_DATA)
    ],
    *[("parallel", what) for what in ("os_exit", "killed", "hangs")],
]


def host_of(name, *tasks, rebuilds=True):
    return make_host(name, make_makers(tasks, 2, range(len(tasks))), rebuilds=rebuilds)


@pytest.mark.parametrize(("name", "what"), CASES)
def test_a_simulator_that_fails_is_built_anew_and_the_others_do_not_notice(name, what, monkeypatch):
    monkeypatch.setattr(host_module, "_HANG_SECONDS", 0.5)
    host, alone = host_of(name, SOUND, Task("mine", "torchrl", FailingMaker(what))), host_of("inline", SOUND)
    failed = []
    try:
        for step in range(12):
            for one in (host, alone):
                for slot in one.slots:
                    slot.action[:] = np.sin(step)
                one.step()
            sound, mine = host.slots
            for field in ("observation", "next_observation", "reward", "terminated", "truncated", "broken"):
                np.testing.assert_array_equal(getattr(sound, field), getattr(alone.slots[0], field))
            if mine.broken.any():
                failed.append(step)
                assert mine.broken.all()
                assert mine.truncated.all()
                assert not mine.terminated.any()
                assert (mine.observation == 0).all(), "a new episode begins"
        failures = host.take_failures()
    finally:
        host.close()
        alone.close()
    assert failed[0] == (2 if what in ("reset_raises", "bad_reset") else LATER - 1)
    assert len(failures) == len(failed) >= 2
    assert all(error.task == "mine" and "task 'mine'" in str(error) for error in failures)
    assert BAD_DATA.get(what, "") in str(failures[0])
    assert host.take_failures() == ()


@pytest.mark.parametrize("name", ["inline", "parallel"])
def test_one_that_can_not_be_built_again_is_an_error(name, tmp_path):
    (tmp_path / "licence").touch()

    def maker(num_envs, seed):
        if not (tmp_path / "licence").exists():
            raise OSError("no licence left")
        return FailingMaker("step_raises")(num_envs, seed)

    host = host_of(name, SOUND, Task("mine", "torchrl", maker))
    (tmp_path / "licence").unlink()
    for _ in range(LATER - 1):
        host.step()
    # Twice: a call may be under way when the first one fails.
    for _ in range(2):
        with pytest.raises(TaskError, match="no licence left"):
            host.step()
    host.close()


@pytest.mark.parametrize("name", ["inline", "parallel"])
def test_one_that_is_built_again_as_another_is_the_tasks_failure(name, tmp_path):
    """Not wrong input, which would end a run that has gone on for days."""
    (tmp_path / "first").touch()

    def maker(num_envs, seed):
        env = FailingMaker("step_raises")(num_envs, seed)
        return env if (tmp_path / "first").exists() else TransformedEnv(env, RenameTransform(["reward"], ["gain"]))

    host = host_of(name, SOUND, Task("mine", "torchrl", maker))
    (tmp_path / "first").unlink()
    for _ in range(LATER - 1):
        host.step()
    with pytest.raises(TaskError, match="reward"):
        host.step()
    host.close()


@pytest.mark.parametrize("what", ["killed", "hangs"])
def test_programs_that_a_simulator_started_end_with_it(what, monkeypatch, tmp_path):
    monkeypatch.setattr(host_module, "_HANG_SECONDS", 0.5)

    def maker(num_envs, seed):
        program = subprocess.Popen(["sleep", "1000"])
        with (tmp_path / "programs").open("a") as file:
            file.write(f"{program.pid}\n")
        return FailingMaker(what)(num_envs, seed)

    task = Task("mine", "torchrl", maker)
    task.__dict__["spec"] = Task("mine", "torchrl", FailingMaker(what)).spec
    host = host_of("parallel", task)
    while not host.take_failures():
        host.step()
    first, second = map(int, (tmp_path / "programs").read_text().split())
    assert has_ended(first)
    assert psutil.Process(second).status() != psutil.STATUS_ZOMBIE
    host.close()
    assert has_ended(second)


def has_ended(process_id):
    """Of processes whose parent is gone."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if not psutil.pid_exists(process_id) or psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_new_simulator_has_seeds_of_its_own():
    seeds = []

    def maker(num_envs, seed):
        seeds.append(seed)
        return FailingMaker("step_raises")(num_envs, seed)

    host = host_of("inline", Task("mine", "torchrl", maker))
    for _ in range(3 * LATER):
        host.step()
    host.close()
    made = seeds[-4:]
    assert len(set(made)) == 4
    # Nor is a new one's stream that of another copy of the one before.
    assert not {copy_seed(seed, copy) for seed in made for copy in range(1, 9)} & set(made)


@pytest.mark.parametrize("name", ["inline", "parallel"])
def test_a_new_simulator_draws_other_numbers_from_the_processs_generators(name):
    class Fails(Drawing):
        def _step(self, data):
            raise ValueError("the arm hit the table")

    task = Task("mine", "torchrl", lambda num_envs, seed: Fails(num_envs))
    task.__dict__["spec"] = Task("mine", "torchrl", drawing).spec
    host, starts = host_of(name, task), []
    for _ in range(3):
        starts.append(host.slots[0].observation.copy())
        host.step()
    host.close()
    assert len(np.unique(starts)) == np.size(starts)


def test_a_slow_step_does_not_count_as_a_hang(monkeypatch):
    monkeypatch.setattr(host_module, "_HANG_SECONDS", 0.2)

    class Slow(CountingMaker):
        def __call__(self, num_envs, seed):
            env = super().__call__(num_envs, seed)
            # The first step has no limit, and the others ten times its length.
            env._step = lambda data, step=env._step: (time.sleep(0.4), step(data))[1]
            return env

    host = host_of("parallel", Task("mine", "torchrl", Slow(truncate_after=4)))
    for _ in range(4):
        host.step()
    assert host.take_failures() == ()
    host.close()


def test_a_slow_reset_at_an_episodes_end_does_not_count_as_a_hang(monkeypatch):
    monkeypatch.setattr(host_module, "_HANG_SECONDS", 0.2)

    class Slow(CountingMaker):
        def __call__(self, num_envs, seed):
            env = super().__call__(num_envs, seed)
            env._reset = lambda data=None, reset=env._reset, **options: (time.sleep(0.7), reset(data, **options))[1]
            return env

    task = Task("mine", "torchrl", Slow(truncate_after=4))
    task.__dict__["spec"] = Task("mine", "torchrl", CountingMaker()).spec
    host = host_of("parallel", task)
    for _ in range(4):
        host.step()
    assert host.slots[0].truncated.all()
    assert host.take_failures() == ()
    host.close()


def test_a_failed_step_is_no_transition_and_its_episode_does_not_count():
    tasks = [SOUND, Task("mine", "torchrl", FailingMaker("step_raises"))]
    host = make_host("inline", make_makers(tasks, 2, [0, 1]), rebuilds=True)
    layout = PolicyLayout(tuple(task.spec for task in tasks), NetworkConfig(actor_width=8, embedding_size=2))
    loop = ActingLoop(host, layout, rollout_steps=8, discounts={"sound": 0.9, "mine": 0.9})
    rollout = loop.collect()
    host.close()
    # Truncated after 3 steps; then the second of the next episode fails.
    assert rollout.broken == {"mine": 2}
    assert [error.task for error in rollout.failures] == ["mine"]
    assert [(e.task, e.steps) for e in rollout.episodes if e.task == "mine"] == [("mine", 3)] * 2 + [("mine", 3)] * 2
    rows = pack(rollout.tasks["mine"])
    one = rows[: len(rows) // 2]
    is_transition = holds_transition(one)
    assert is_transition.sum() == 7
    # Each transition's next observation is that of the row behind it: one more, since these count steps.
    reached = one[1:, 0][is_transition[:-1]]
    np.testing.assert_array_equal(reached, one[:-1, 0][is_transition[:-1]] + 1)
    done = rollout.data[1]["next", "done"][0, :, 0]
    assert done.tolist() == [False, False, True, False, True, False, False, True]


def test_an_episode_that_broke_is_dropped_and_the_next_one_begins_at_zero():
    tracker = EpisodeTracker("mine", 1, 0.9)
    flags = {name: np.zeros((1, 6), bool) for name in ("done", "random", "broken")}
    flags["done"][0, [1, 4]] = True
    flags["broken"][0, 1] = True
    found = tracker.add(np.ones((1, 6), np.float32), flags["done"], flags["random"], flags["broken"])
    assert [(episode.steps, episode.episode_return) for episode in found] == [(3, 3.0)]
