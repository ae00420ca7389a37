"""The supervisor without Ray: what it puts into a checkpoint."""

import json
import types

from mtray.cluster.actors.learner import LearnerState
from mtray.cluster.plan import Shares
from mtray.cluster.supervisor import Supervisor
from mtray.config.presets import fill
from mtray.config.settings import Config
from mtray.rundir.checkpoints.checkpoint import read
from mtray.rundir.checkpoints.writer import CheckpointWriter
from mtray.rundir.screen import Picture, Screen
from mtray.tasks.registry import resolve

TASK = "cartpole-balance"


def supervisor_of(run_dir, **options):
    config = fill(Config(tasks=(TASK,), workers=1, replay={"save": False}), 1)
    tasks = resolve([TASK])
    screen = Screen(Picture(None, 1.0), "none")
    return Supervisor(config, tasks, run_dir, [], screen, shares=Shares(config, tasks), **options)


def told_in(run_dir):
    path = run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class LastEvaluation:
    """The last evaluation of a run, which goes on for so many looks, and the run's actors."""

    def __init__(self, supervisor, looks, on_close=lambda: None):
        self.looks, self.has_left_ray, self.ended, self.failures = looks, False, 0, []
        self.on_close, self.supervisor = on_close, supervisor
        supervisor._evaluations = self
        # Not all of what ends a run: Ray, which the evaluator needs, would end with it.
        supervisor.processes = types.SimpleNamespace(close_actors=self.close_actors)
        supervisor._evaluate_last()

    def goes_on(self, now):
        self.looks -= 1
        return self.looks >= 0

    def leave_ray(self):
        self.has_left_ray = True

    def fail(self, cause):
        assert self.has_left_ray, "no call of Ray's is made after its death"
        self.failures.append(cause)

    def close_actors(self):
        assert self.supervisor.is_evaluated_last
        self.ended += 1
        self.on_close()


def test_the_last_evaluation_is_waited_for_after_the_actors_have_ended(tmp_path):
    supervisor = supervisor_of(tmp_path)
    last = LastEvaluation(supervisor, 3)
    assert (last.looks, last.ended, last.has_left_ray) == (-1, 1, False)
    assert not supervisor.is_evaluated_last
    assert told_in(tmp_path) == []
    seconds = supervisor.metrics.seconds
    assert supervisor.metrics.seconds == seconds, "no part of the run's time"


def test_a_run_without_a_last_evaluation_leaves_its_actors_to_the_end(tmp_path):
    assert LastEvaluation(supervisor_of(tmp_path), 0).ended == 0


def test_ray_s_death_ends_the_last_evaluation_and_is_told(tmp_path):
    last = LastEvaluation(supervisor_of(tmp_path, ray_death=lambda: "Ray's process raylet was killed"), 10)
    assert (last.looks, last.failures) == (9, ["Ray's process raylet was killed"])


def test_signals_end_the_last_evaluation_and_the_run_has_finished(tmp_path):
    asked = ["interrupted"]
    assert LastEvaluation(supervisor_of(tmp_path, asked_to_stop=asked), 10).looks == 9

    def second():
        raise KeyboardInterrupt

    supervisor = supervisor_of(tmp_path, asked_to_stop=asked)
    LastEvaluation(supervisor, 10, second)
    assert not supervisor.is_evaluated_last


def test_a_checkpoint_has_the_faults_until_then(tmp_path):
    """Not those of the last line of figures."""
    supervisor = supervisor_of(tmp_path)
    supervisor._writer = CheckpointWriter(tmp_path, 2, {})
    supervisor._answers = types.SimpleNamespace(state=LearnerState(updates=3), snapshot={"frames": {TASK: 10}})
    supervisor._answers.collector_states = {}
    control = supervisor.control
    control.restarts, control.frames_lost, control.updates_lost = 2, 5, 7
    assert read(supervisor._writing(None)()).meta["metrics"]["faults"] == [2, 5, 7]
