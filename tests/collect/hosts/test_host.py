"""Hosts: an error of a task's code names the task, and no process outlives its collector."""

import functools
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import psutil
import pytest
from torchrl.envs import ParallelEnv

from mtray.collect.hosts.make import make_host
from mtray.errors import TaskError, UsageError
from mtray.tasks.makers import make_makers
from mtray.tasks.plan import Task
from mtray.testing import CountingEnv, CountingMaker
from tests import makers
from tests.failing import ClosingMaker, FailingMaker, RaisesElsewhere

HOSTS = ("inline", "parallel")


def host_of(name, *tasks, copies=2):
    return make_host(name, make_makers(tasks, copies, range(len(tasks))))


def run(host, steps=10):
    for _ in range(steps):
        host.step()


def fail(name, task):
    """Return the error of a host in which this task fails beside another one."""
    host = host_of(name, Task("sound", "torchrl", CountingMaker(truncate_after=4)), task)
    try:
        with pytest.raises(TaskError) as caught:
            run(host)
    finally:
        host.close()
    # As the driver gets it.
    for copy in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert copy.task == task.name
        assert f"task {task.name!r}" in str(copy)
        assert "\n" not in str(copy)
    return str(caught.value)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("step_raises", "its step raised ValueError: the arm hit the table (failing.py:"),
        ("strange", "its step raised TwoArguments: solver diverged (code 7) (failing.py:"),
        ("sys_exit", "its step called sys.exit(3) (failing.py:"),
        ("reset_raises", "its reset raised OSError: no licence left (failing.py:"),
    ],
)
def test_what_a_task_raises_is_named_under_both_hosts(name, what, message):
    assert message in fail(name, Task("mine", "torchrl", FailingMaker(what)))


@pytest.mark.parametrize(("what", "message"), [("os_exit", "ended with exit code 4"), ("killed", "killed by SIGKILL")])
def test_a_process_that_ends_is_named_with_its_code_or_signal(what, message):
    assert message in fail("parallel", Task("mine", "torchrl", FailingMaker(what)))


@pytest.mark.parametrize("name", HOSTS)
def test_an_observation_that_is_missing_later_is_named(name):
    host = host_of(name, Task("mine", "torchrl", FailingMaker("loses")))
    message = r"task 'mine': 'observation' is missing, the environment's spec says \(2, 2\)"
    with pytest.raises(TaskError, match=message):
        run(host)
    host.close()


def test_a_maker_that_fails_only_in_another_process_is_named():
    task = Task("mine", "torchrl", RaisesElsewhere(os.getpid()))
    assert task.spec.observation_size == 2
    message = r"task 'mine': its maker, called as maker\(2, 0\) .*raised FileNotFoundError: arena\.xml is not on this"
    with pytest.raises(TaskError, match=message):
        host_of("parallel", task)


@pytest.mark.parametrize("name", HOSTS)
def test_simulators_are_closed_when_another_task_can_not_be_built(name, tmp_path):
    sound = Task("sound", "torchrl", ClosingMaker(tmp_path / "closed"))
    absent = Task("mine", "torchrl", makers.raising)
    for task in (sound, absent):
        # Computed beforehand, as in the driver.
        task.__dict__["spec"] = Task(task.name, "torchrl", CountingMaker()).spec
    with pytest.raises(TaskError, match=r"task 'mine': its maker.*no arena\.xml"):
        host_of(name, sound, absent)
    assert (tmp_path / "closed").read_text() == "closed"


@pytest.mark.parametrize("name", HOSTS)
def test_a_close_that_raises_is_a_warning(name, capfd, caplog):
    task = Task("mine", "torchrl", FailingMaker("close_raises"))
    with caplog.at_level(logging.WARNING, "mtray"):
        host = host_of(name, task)
        host.step()
        host.close()
    shown = caplog.text + capfd.readouterr().err
    assert "task 'mine': its close raised RuntimeError: the window is gone" in shown


def test_a_spec_that_differs_from_the_drivers_is_refused():
    sizes = iter((2, 2, 3))
    task = Task("mine", "torchrl", lambda num_envs, seed: CountingEnv(num_envs, observation_size=next(sizes)))
    assert task.spec.observation_size == 2
    host_of("inline", task).close()
    message = r"task 'mine': observation is \(\('observation', 3\),\), but was \(\('observation', 2\),\)"
    with pytest.raises(UsageError, match=message):
        host_of("inline", task)


def scaled(size, num_envs, seed):
    return CountingEnv(num_envs, observation_size=size)


class Factory:
    def make(self, num_envs, seed):
        return makers.point(num_envs, seed)


@pytest.mark.parametrize(
    "maker",
    [
        lambda num_envs, seed: makers.point(num_envs, seed),
        functools.partial(scaled, 3),
        Factory().make,
        CountingMaker(),
    ],
    ids=["lambda", "partial", "method", "object"],
)
def test_makers_of_every_kind_are_pickled_and_both_hosts_agree(maker):
    # As a collector gets the task.
    task = cloudpickle.loads(cloudpickle.dumps(Task("mine", "torchrl", maker)))
    hosts = [host_of(name, task, copies=3) for name in HOSTS]
    for step in range(12):
        for host in hosts:
            host.slots[0].action[:] = np.sin(step)
            host.step()
        ours, theirs = (host.slots[0] for host in hosts)
        for field in ("observation", "next_observation", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    for host in hosts:
        host.step()
        host.close()


@pytest.mark.parametrize("name", HOSTS)
def test_draws_from_the_processs_generators_follow_the_seed(name):
    task, found = Task("mine", "torchrl", makers.drawing), []
    for seed in (1, 2, 1):
        host = make_host(name, make_makers([task], 2, [seed]))
        starts = [host.slots[0].observation.copy()]
        run(host, 3)
        found.append(np.concatenate([*starts, host.slots[0].observation]))
        host.close()
    first, second, again = found
    np.testing.assert_array_equal(first, again)
    drawn = np.concatenate([first, second])
    assert len(np.unique(drawn)) == drawn.size


def processes(num_envs, seed):
    return ParallelEnv(num_envs, functools.partial(makers.PointEnv, 1, 0, batched=False))


@pytest.mark.slow
def test_environments_may_start_processes_of_their_own():
    task = Task("mine", "torchrl", processes)
    host = host_of("parallel", task)
    children = psutil.Process(host.processes[0]).children(recursive=True)
    assert len(children) >= 2
    host.step()
    host.close()
    assert wait_until(lambda: not any(map(is_running, children)))


PARENT = """
import sys
from mtray.collect.hosts.make import make_host
from mtray.tasks.makers import make_makers
from mtray.tasks.plan import Task
from tests.failing import FailingMaker

host = make_host("parallel", make_makers([Task("mine", "torchrl", FailingMaker(sys.argv[1]))], 2, [0]))
print(*host.processes, flush=True)
for _ in range(10):
    host.step()
"""


def is_running(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["hangs", "computes", "nothing"])
def test_a_simulators_process_ends_with_its_collector_in_every_state(what):
    program = PARENT if what != "nothing" else PARENT + "import time; time.sleep(1e6)"
    with subprocess.Popen([sys.executable, "-c", program, what], stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        if what == "computes":
            begin = worker.cpu_times().user
            assert wait_until(lambda: worker.cpu_times().user > begin + 1)
        time.sleep(1)
        assert is_running(worker)
        parent.send_signal(signal.SIGKILL)
        ended = wait_until(lambda: not is_running(worker))
        if not ended:
            worker.kill()
    assert ended


def test_closing_ends_a_process_that_hangs(monkeypatch):
    monkeypatch.setattr("mtray.collect.hosts.worker._CLOSE_SECONDS", 0.3)
    host = host_of("parallel", Task("mine", "torchrl", FailingMaker("hangs")))
    [worker] = [psutil.Process(pid) for pid in host.processes]
    for _ in range(4):
        host.step()
    os.write(host._workers[0].descriptor, b"s")
    begin = time.monotonic()
    host.close()
    assert time.monotonic() - begin < 5
    assert not is_running(worker)


def test_a_host_leaves_no_process_and_no_descriptor():
    task = Task("mine", "torchrl", CountingMaker())
    assert task.spec
    host_of("parallel", task).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        host = host_of("parallel", task)
        host.step()
        host.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not multiprocessing.active_children()
