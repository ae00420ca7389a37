"""Evaluations during a run: when they are made, and what comes of them. With real processes: `tests/test_faults.py`."""

import json
import types
from concurrent.futures import Future

import pytest
from ray.exceptions import ActorDiedError

from mtray.cluster import evaluations
from mtray.cluster.actors.hello import Hello
from mtray.cluster.actors.learner import LearnerState
from mtray.collect.evaluation import summarise
from mtray.config.settings import Config, RunConfig
from mtray.errors import UsageError
from mtray.rundir.checkpoints.best import best_of
from mtray.rundir.metrics import Metrics
from tests.makers import make_spec

TASK, OTHER = "cartpole-balance", "other"


def state_of(name, updates):
    """Return the state of a learner, whose policy's bytes and weights have this name."""
    return LearnerState(name.encode(), b"", updates, name)


class Remote:
    """An actor's method: its calls end when the test says so."""

    def __init__(self):
        self.calls = []

    def remote(self, *arguments):
        future = Future()
        self.calls.append((arguments, future))
        return types.SimpleNamespace(future=lambda: future)


_NO_STATE = LearnerState()


class World:
    """What evaluations see of a run, and a clock that the test moves."""

    def __init__(self, monkeypatch, run_dir, *, every=1.0, state=_NO_STATE):
        self.now, self.told, self.started, self.killed = 100.0, [], [], []
        monkeypatch.setattr(evaluations.ray, "kill", self.killed.append)
        self.processes = types.SimpleNamespace(weights=(0, [OTHER]), aside={OTHER}, start_evaluator=self._start)
        self.answers = types.SimpleNamespace(state=state, made=(7, 3.5))
        self.metrics = Metrics([TASK])
        config = Config(tasks=(TASK,), run=RunConfig(evaluate_every=every))
        specs = [make_spec(TASK), make_spec(OTHER)]
        self.evaluations = evaluations.Evaluations(
            config, specs, run_dir, self.processes, self.answers, self.metrics, self.told.append
        )

    def _start(self):
        self.started.append(types.SimpleNamespace(hello=Remote(), evaluate=Remote()))
        return self.started[-1]

    def turn(self, seconds):
        """Let time pass in turns of a second."""
        for _ in range(round(seconds)):
            self.now += 1.0
            self.evaluations.turn(self.now)

    @property
    def calls(self):
        return [call for actor in self.started for call in actor.evaluate.calls]

    def end(self, value, failures=None, infos=None, busy=1.0):
        self.calls[-1][1].set_result(({TASK: summarise([value, value], infos)}, failures or {}, busy))

    @property
    def evaluated(self):
        return self.metrics.line()["tasks"][TASK]["return_evaluated"]


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """A new run whose learner is there and whose first frames have come."""
    world = World(monkeypatch, tmp_path)
    world.processes.weights = 0, ["untrained"]
    world.metrics.tasks[TASK].frames = 10
    return world


def begin_last(begun):
    """Play the untrained policy, and begin to play what the run came to."""
    begun.turn(12)
    begun.end(3.0)
    begun.turn(1)
    begun.answers.state = state_of("last", 70)
    assert begun.evaluations.goes_on(begun.now)


def test_the_process_is_known_once_it_has_said_so_from_this_node(monkeypatch, begun):
    here = types.SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(evaluations.ray, "get_runtime_context", lambda: here)
    assert begun.evaluations.processes == []
    begun.turn(20)
    (actor,) = begun.started
    ((_, hello),) = actor.hello.calls
    assert begun.evaluations.processes == []
    hello.set_result(Hello(123, None, "here", "10.0.0.1", {}))
    assert begun.evaluations.processes == [123]
    here.get_node_id = lambda: "elsewhere"
    assert begun.evaluations.processes == []
    here.get_node_id = lambda: "here"
    begun.evaluations.close()
    assert begun.evaluations.processes == []


def test_nothing_is_played_before_the_first_frame(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)
    world.turn(100)
    assert world.started == []


def test_the_untrained_policy_comes_first_then_the_newest_state_at_every_interval(begun, tmp_path):
    begun.turn(12)
    assert [arguments for arguments, _ in begun.calls] == [("untrained", [OTHER])]
    begun.answers.state = state_of("one", 50)
    begun.turn(2)
    begun.end(3.0)
    begun.turn(1)
    assert begun.evaluated == 3.0
    assert begun.metrics.evaluated_updates == 0
    assert json.loads((tmp_path / "checkpoints" / "ranges.json").read_text()) == {TASK: [3.0, 3.0]}
    with pytest.raises(UsageError, match="has no best policy"):
        best_of(tmp_path)
    begun.turn(55)
    assert len(begun.calls) == 1
    begun.turn(10)
    assert [arguments for arguments, _ in begun.calls][1:] == [("one", [OTHER])]
    begun.end(5.0)
    begun.turn(1)
    assert (best_of(tmp_path) / "policy.pt").read_bytes() == b"one"
    told = [(told.event, told.fields["updates"], told.fields["is_best"]) for told in begun.told]
    assert told == [("evaluated", 0, False), ("evaluated", 50, True)]
    assert len(begun.started) == 1


def test_the_last_evaluation_is_of_what_a_run_came_to_after_the_one_under_way(begun, tmp_path):
    begun.turn(12)
    begun.answers.state = state_of("last", 70)
    assert begun.evaluations.goes_on(begun.now)
    assert len(begun.calls) == 1, "the one under way goes on"
    begun.end(3.0)
    assert begun.evaluations.goes_on(begun.now)
    assert begun.calls[-1][0] == ("last", [OTHER])
    begun.end(5.0)
    assert not begun.evaluations.goes_on(begun.now)
    assert (begun.evaluated, begun.metrics.evaluated_updates) == (5.0, 70)
    assert (best_of(tmp_path) / "policy.pt").read_bytes() == b"last"
    assert begun.told[-1].fields["next_in"] == 0
    assert len(begun.calls) == 2, "what was evaluated is not evaluated again"


def test_a_run_that_ends_before_its_first_evaluation_has_no_last_one(begun):
    begun.turn(5)
    begun.answers.state = state_of("last", 70)
    assert not begun.evaluations.goes_on(begun.now)
    assert begun.started == []


def test_the_last_evaluation_is_made_by_a_new_process_where_the_one_before_has_died(begun):
    begun.turn(12)
    begun.answers.state = state_of("last", 70)
    begun.calls[-1][1].set_exception(ValueError("died"))
    begun.turn(1)
    assert begun.evaluations.goes_on(begun.now)
    assert len(begun.started) == 2
    begun.end(5.0)
    assert not begun.evaluations.goes_on(begun.now)
    assert begun.metrics.evaluated_updates == 70


def test_a_run_ends_when_its_last_evaluation_fails(begun):
    begin_last(begun)
    begun.calls[-1][1].set_exception(ValueError("no"))
    assert not begun.evaluations.goes_on(begun.now)
    assert [told.event for told in begun.told] == ["evaluated", "evaluation_failed"]
    assert begun.evaluated == 3.0


def test_a_last_evaluation_that_loses_ray_is_told_and_asks_ray_for_nothing(begun):
    begin_last(begun)
    begun.evaluations.leave_ray()
    begun.evaluations.fail("the raylet is gone")
    assert begun.told[-1].sentence == "the last evaluation failed, all is saved: the raylet is gone"
    assert not begun.evaluations.goes_on(begun.now)
    begun.evaluations.close()
    assert (len(begun.started), begun.killed) == (1, [])


def test_a_policy_that_has_not_changed_is_not_played_again(begun):
    begun.turn(12)
    begun.end(1.0)
    begun.answers.state = state_of("one", 50)
    begun.turn(70)
    begun.end(1.0)
    begun.turn(200)
    assert len(begun.calls) == 2
    begun.answers.state = state_of("two", 60)
    begun.turn(1)
    assert begun.calls[-1][0] == ("two", [OTHER])


def test_one_that_takes_long_is_made_less_often(begun):
    begun.turn(12)
    begun.answers.state = state_of("one", 50)
    begun.turn(60)
    begun.end(1.0, busy=30.0)
    begun.turn(1)
    begun.turn(9 * 30 - 40)
    assert len(begun.calls) == 1, "a tenth of the time of a core, at most"
    begun.turn(60)
    assert len(begun.calls) == 2


def test_one_that_waits_for_a_core_is_made_at_its_time(begun):
    begun.turn(12)
    begun.answers.state = state_of("one", 50)
    begun.turn(45)
    begun.end(1.0, busy=5.0)
    begun.turn(20)
    assert len(begun.calls) == 2


def test_one_that_died_is_told_and_the_next_has_a_new_process(begun):
    begun.turn(12)
    begun.answers.state = state_of("one", 50)
    begun.calls[-1][1].set_exception(ActorDiedError())
    begun.turn(70)
    assert [told.event for told in begun.told] == ["evaluation_failed"]
    assert len(begun.started) == 2
    assert begun.calls[-1][0] == ("one", [OTHER])


def test_one_that_hangs_is_ended(begun):
    begun.turn(12)
    begun.turn(evaluations._STUCK_SECONDS + 5)
    assert begun.killed == begun.started
    assert "did not end within 600 s" in begun.told[0].fields["cause"]
    begun.answers.state = state_of("one", 50)
    begun.turn(10 * evaluations._STUCK_SECONDS)
    assert len(begun.started) == 2


def test_a_task_that_fails_is_told_and_the_others_count(begun):
    begun.turn(12)
    begun.end(2.0, {"other": "it broke"})
    begun.turn(1)
    assert begun.evaluated == 2.0
    assert [told.fields.get("task") for told in begun.told] == [None, "other"]


def test_a_policy_that_was_not_evaluated_in_every_task_is_not_kept(begun, tmp_path):
    begun.processes.aside.clear()
    begun.turn(12)
    begun.end(1.0)
    begun.answers.state = state_of("one", 50)
    begun.turn(70)
    begun.end(2.0, {OTHER: "it broke"})
    begun.turn(1)
    assert begun.told[-2].fields["is_best"] is False
    # Once it is set aside, nothing is missing.
    begun.processes.aside.add(OTHER)
    begun.answers.state = state_of("two", 60)
    begun.turn(200)
    begun.end(2.0)
    begun.turn(1)
    assert begun.told[-1].fields["is_best"] is True
    assert (best_of(tmp_path) / "policy.pt").read_bytes() == b"two"


def test_what_the_environment_reports_is_a_figure(begun):
    begun.turn(12)
    begun.end(2.0, infos={"success": [0.0, 1.0]})
    begun.turn(1)
    figures = begun.metrics.line()["tasks"][TASK]
    assert (figures["return_evaluated"], figures["info_success_evaluated"]) == (2.0, 0.5)
    resumed = Metrics([TASK])
    resumed.load_state(begun.metrics.state())
    assert resumed.line()["tasks"][TASK]["info_success_evaluated"] == 0.5


def test_tasks_that_are_set_aside_are_left_out(begun):
    begun.processes.aside = {"b", "a"}
    begun.turn(12)
    assert begun.calls[0][0][1] == ["a", "b"]


def test_a_full_disk_is_told_and_the_figures_count(begun, monkeypatch):
    begun.turn(12)
    begun.end(1.0)
    begun.answers.state = state_of("one", 50)
    begun.turn(70)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtray.rundir.checkpoints.best.write_synced", full)
    begun.end(2.0)
    begun.turn(1)
    assert begun.evaluated == 2.0
    assert [told.event for told in begun.told[1:]] == ["save_failed", "evaluated"]
    assert "No space left" in begun.told[1].sentence


def test_a_resumed_run_plays_the_first_state_that_its_learner_gives(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, state=LearnerState(b"saved", b"", 80))
    world.processes.weights = 7, ["weights"]
    world.metrics.tasks[TASK].frames = 10
    world.turn(20)
    assert world.calls == [], "weights are in no checkpoint, and a process without torch can't read its state"
    world.answers.state = state_of("saved", 80)
    world.turn(1)
    assert [arguments for arguments, _ in world.calls] == [("saved", [OTHER])]


def test_a_run_that_was_resumed_in_its_warm_up_has_no_best_policy_before_its_first_update(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, state=state_of("untrained", 0))
    world.metrics.tasks[TASK].frames = 10
    world.turn(12)
    world.end(3.0)
    world.turn(1)
    assert [(told.fields["updates"], told.fields["is_best"]) for told in world.told] == [(0, False)]
    with pytest.raises(UsageError, match="has no best policy"):
        best_of(tmp_path)
    assert json.loads((tmp_path / "checkpoints" / "ranges.json").read_text()) == {TASK: [3.0, 3.0]}


def test_none_is_made_where_none_is_wanted(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, every=0.0)
    world.processes.weights = 0, ["untrained"]
    world.metrics.tasks[TASK].frames = 10
    world.turn(1000)
    assert world.started == []
