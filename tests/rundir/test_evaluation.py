"""Evaluation of a saved run as a library: its own tasks, those registered here included."""

import os

import pytest

import mtray
from mtray.config.settings import Config, NetworkConfig
from mtray.data.specs import check_together
from mtray.errors import UnknownTaskError, UsageError
from mtray.policy.policy import MultiTaskPolicy
from mtray.rundir.checkpoint import Checkpoint, to_bytes, write
from mtray.rundir.directory import describe
from mtray.rundir.files import to_json
from mtray.tasks.registry import resolve
from mtray.testing import CountingMaker


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("mtray.tasks.registry._REGISTERED", {"counted-here": CountingMaker(truncate_after=5)})
    config = Config(tasks=("counted-here", "cartpole-balance"), network=NetworkConfig(actor_width=8))
    specs = [task.spec for task in resolve(config.tasks, action_repeat=2)]
    check_together(specs)
    described = describe(config)
    meta = {"config": described["config"], "specs": [spec.to_dict() for spec in specs], "metrics": {}}
    (tmp_path / "config.json").write_text(to_json(described))
    write(tmp_path, Checkpoint(100, meta, to_bytes(MultiTaskPolicy(specs, config.network).state_dict()), b""), keep=1)
    return tmp_path


def test_a_run_is_evaluated_on_its_tasks_one_after_the_other(run_dir):
    seen = []
    results = mtray.evaluate_run(run_dir, episodes=2, on_task=lambda task, figures: seen.append((task, figures)))
    assert list(results) == ["counted-here", "cartpole-balance"]
    assert seen == list(results.items())
    for figures in results.values():
        assert figures["episodes"] == len(figures["returns"]) == 2
    [checkpoint] = run_dir.glob("checkpoints/0*")
    assert mtray.evaluate_run(str(checkpoint), episodes=2, tasks=("counted-here",)) == {
        "counted-here": results["counted-here"]
    }


def test_what_can_not_be_evaluated_is_refused(run_dir, monkeypatch):
    with pytest.raises(UsageError, match="--episodes 0"):
        mtray.evaluate_run(run_dir, episodes=0)
    with pytest.raises(UsageError, match="'walker-walk' was not learned"):
        mtray.evaluate_run(run_dir, tasks=("walker-walk",))
    monkeypatch.setattr(
        "mtray.tasks.registry._REGISTERED", {"counted-here": CountingMaker(truncate_after=5, target=3.0)}
    )
    assert mtray.evaluate_run(run_dir, episodes=1, tasks=("counted-here",))
    monkeypatch.setattr("mtray.tasks.registry._REGISTERED", {})
    with pytest.raises(UnknownTaskError, match=r"mtray\.evaluate_run in a program that registers it first"):
        mtray.evaluate_run(run_dir)


def test_a_maker_that_moves_leaves_the_caller_where_it_was(run_dir, monkeypatch):
    class Mover(CountingMaker):
        def __call__(self, num_envs, seed):
            os.chdir("/")
            return super().__call__(num_envs, seed)

    monkeypatch.chdir(run_dir)
    monkeypatch.setattr("mtray.tasks.registry._REGISTERED", {"counted-here": Mover(truncate_after=5)})
    assert mtray.evaluate_run(".", episodes=1, tasks=("counted-here",))
    assert os.getcwd() == str(run_dir)
