"""What environments report beside their rewards: figures of a task, in training and in evaluation."""

import numpy as np
import pytest
from torchrl.data import Composite

import mtray
from mtray.collect import evaluation
from mtray.collect.episodes import InfoTracker
from mtray.collect.hosts.make import make_host
from mtray.collect.loop import ActingLoop
from mtray.config.learner import NetworkConfig
from mtray.data.messages import Episode, Report
from mtray.data.specs import TaskSpec, check_specs
from mtray.errors import UsageError
from mtray.policy.layout import PolicyLayout
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import snapshot
from mtray.rundir.metrics import Metrics
from mtray.tasks.makers import make_makers
from mtray.tasks.plan import Task
from tests.makers import ReportingEnv, reporting

TASK = Task("reporting", "torchrl", reporting)


def info(*rows):
    return np.array(rows, np.float32)


def test_an_episode_has_its_last_value_and_its_highest_success():
    tracker = InfoTracker(["success", "distance"], 2)
    assert tracker.add(info([0, 5], [1, 5]), np.array([False, False])) == {}
    assert tracker.add(info([0, 3], [0, 2]), np.array([False, True])) == {1: {"success": 1.0, "distance": 2.0}}
    # The next episode of the copy knows nothing of the one before.
    ended = tracker.add(info([1, 4], [0, 9]), np.array([True, True]))
    assert ended == {0: {"success": 1.0, "distance": 4.0}, 1: {"success": 0.0, "distance": 9.0}}


@pytest.mark.parametrize("kind", ["inline", "parallel"])
def test_a_loop_reports_them_with_each_episode(kind):
    assert TASK.spec.info == ("steps", "success"), "numbers, and no more"
    host = make_host(kind, make_makers([TASK], 2, [7]))
    layout = PolicyLayout((TASK.spec,), NetworkConfig(actor_width=16))
    loop = ActingLoop(host, layout, rollout_steps=4, discounts={"reporting": 0.9})
    try:
        episodes = [episode for _ in range(4) for episode in loop.collect().episodes]
    finally:
        host.close()
    assert len(episodes) >= 4
    for episode in episodes:
        assert episode.info == {"success": float(episode.steps >= 2), "steps": episode.steps}


def other_order(num_envs, seed):
    """In the driver, which asks for two copies, and elsewhere its entries have different orders, as those of a set."""
    env = ReportingEnv(num_envs, seed)
    if num_envs != 2:
        entries = dict(reversed(list(env.observation_spec.items())))
        env.observation_spec = Composite(entries, shape=env.batch_size)
    return env


@pytest.mark.parametrize("kind", ["inline", "parallel"])
def test_values_keep_their_names_in_every_process(kind):
    task = Task("mine", "torchrl", other_order)
    host = make_host(kind, make_makers([task], 3, [7]))
    host.step()
    host.step()
    assert {name: host.slots[0].info[0, index] for index, name in enumerate(task.spec.info)} == {
        "steps": 2.0,
        "success": 1.0,
    }
    host.close()


@pytest.mark.parametrize("kind", ["inline", "parallel"])
def test_a_simulator_that_reports_something_else_than_the_drivers_is_refused(kind):
    def maker(num_envs, seed):
        env = ReportingEnv(num_envs, seed)
        if num_envs != 2:
            del env.observation_spec["success"]
        return env

    message = "task 'mine': it reports steps beside its reward, but steps, success when the task was resolved"
    with pytest.raises(UsageError, match=message):
        make_host(kind, make_makers([Task("mine", "torchrl", maker)], 3, [7]))


def test_their_means_are_figures_of_the_task_and_go_on_after_a_resume():
    episodes = [episode_of(0.0), episode_of(1.0)]
    metrics = Metrics(["a"])
    metrics.add_rollout(Report(episodes=tuple(episodes), weights_version=0))
    assert metrics.line()["tasks"]["a"]["info_success"] == 0.5
    resumed = Metrics(["a"])
    resumed.load_state(metrics.state())
    resumed.add_rollout(Report(episodes=(episode_of(1.0),), weights_version=0))
    assert resumed.line()["tasks"]["a"]["info_success"] == pytest.approx(2 / 3)


def episode_of(success):
    return Episode("a", 1.0, 5, 0, {"success": success})


def test_an_evaluation_has_them():
    policy = MultiTaskPolicy([TASK.spec], NetworkConfig(actor_width=16)).requires_grad_(False)
    figures = mtray.evaluate_policy(policy, ["tests.makers:reporting"], episodes=3)["reporting"]
    assert figures["info_success"] == 1.0
    assert 2 <= figures["info_steps"] <= 5


def test_episodes_that_an_evaluation_cuts_count_as_they_are_then(monkeypatch):
    monkeypatch.setattr(evaluation, "_MOST_STEPS", 3)
    policy = MultiTaskPolicy([TASK.spec], NetworkConfig(actor_width=16)).requires_grad_(False)
    returns, infos = evaluation.play(policy.layout, snapshot(policy, 0), TASK, 8)
    assert len(returns) == len(infos["success"]) == len(infos["steps"]) == 8
    assert 3.0 in infos["steps"], "one was cut"


def test_a_task_whose_reports_changed_is_the_same_task():
    spec = TASK.spec
    saved = {name: value for name, value in spec.to_dict().items() if name != "info"}
    check_specs([TaskSpec.from_dict(saved)], [spec], "before")
    assert TaskSpec.from_dict(spec.to_dict()) == spec
