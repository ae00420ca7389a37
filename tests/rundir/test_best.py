"""The best policy of a run: kept, compared over tasks of different scales, read again."""

import json
import math

import pytest

from mtray.config.learner import NetworkConfig
from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.errors import UsageError
from mtray.evaluate import _tell_age
from mtray.policy.policy import MultiTaskPolicy
from mtray.rundir.checkpoints import checkpoint
from mtray.rundir.checkpoints.best import BEST, BestPolicy, best_of
from mtray.rundir.checkpoints.policies import load_policy
from mtray.rundir.checkpoints.writer import CheckpointWriter
from tests.makers import make_spec


def meta(updates):
    return {"updates": updates, "frames": 10 * updates, "config": {}, "specs": []}


def held(run_dir):
    folder = best_of(run_dir)
    whole = json.loads((folder / "meta.json").read_text())
    return (folder / "policy.pt").read_bytes(), whole["updates"], whole["evaluation"]["returns"]


def test_the_first_is_kept_and_only_a_better_one_takes_its_place(tmp_path):
    best = BestPolicy(tmp_path)
    assert best.offer(b"one", {"a": 1.0}, meta(1))
    assert not best.offer(b"two", {"a": 0.5}, meta(2))
    assert not best.offer(b"three", {"a": 1.0}, meta(3))
    assert held(tmp_path) == (b"one", 1, {"a": 1.0})
    assert best.offer(b"four", {"a": 1.5}, meta(4))
    assert held(tmp_path) == (b"four", 4, {"a": 1.5})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "best-000000000004", "ranges.json"], "the one before is gone, and nothing partial is left"


def test_tasks_of_different_scales_count_alike(tmp_path):
    best = BestPolicy(tmp_path)
    assert best.offer(b"", {"small": 0.0, "large": 0.0}, meta(1))
    assert best.offer(b"", {"small": 1.0, "large": 1000.0}, meta(2))
    # A tenth of the large range is lost, half of the small one is gained.
    assert best.offer(b"", {"small": 1.5, "large": 900.0}, meta(3))
    assert not best.offer(b"", {"small": 1.4, "large": 901.0}, meta(4))


def test_a_task_that_is_set_aside_is_left_out_of_the_comparison_until_it_is_back(tmp_path):
    best = BestPolicy(tmp_path)
    assert best.offer(b"", {"a": 1.0, "b": 5.0}, meta(1))
    assert not best.offer(b"", {"a": 0.0}, meta(2))
    assert best.offer(b"", {"a": 2.0}, meta(3))
    # A run that was resumed tries it again.
    assert best.offer(b"", {"a": 1.9, "b": 20.0}, meta(4))
    assert not best.offer(b"", {"a": 2.0, "b": 5.0}, meta(5))


def test_the_noise_of_a_task_that_is_solved_from_the_start_does_not_outweigh_another(tmp_path):
    best = BestPolicy(tmp_path)
    assert best.offer(b"", {"solved": 1000.0, "other": 100.0}, meta(1))
    assert best.offer(b"", {"solved": 999.6, "other": 900.0}, meta(2))
    assert not best.offer(b"", {"solved": 999.9, "other": 850.0}, meta(3))
    assert not best.offer(b"", {"solved": 500.0, "other": 910.0}, meta(4))


def test_equal_returns_of_zero_are_no_gain(tmp_path):
    best = BestPolicy(tmp_path)
    assert best.offer(b"", {"a": 0.0}, meta(1))
    assert not best.offer(b"", {"a": 0.0}, meta(2))
    assert best.offer(b"", {"a": 1e-9}, meta(3))


@pytest.mark.parametrize("is_resumed", [False, True])
def test_what_is_never_kept_counts_for_the_ranges_also_after_a_resume(tmp_path, is_resumed):
    best = BestPolicy(tmp_path)
    best.widen({"a": -1000.0, "b": 0.0})
    with pytest.raises(UsageError, match="has no best policy"):
        best_of(tmp_path)
    # Without these the ranges would be 10 of each.
    assert best.offer(b"", {"a": 90.0, "b": 10.0}, meta(1))
    best = BestPolicy(tmp_path) if is_resumed else best
    assert best.offer(b"", {"a": 80.0, "b": 11.0}, meta(2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_returns_that_are_not_finite_are_never_the_best(tmp_path, value):
    best = BestPolicy(tmp_path)
    assert not best.offer(b"", {"a": value, "b": 1.0}, meta(1))
    assert best.offer(b"", {"a": 1.0, "b": 1.0}, meta(2))
    assert not best.offer(b"", {"a": value, "b": 9.0}, meta(3))
    assert not best.offer(b"", {"a": 0.9, "b": 1.0}, meta(4))
    assert best.offer(b"", {"a": 1.1, "b": 1.0}, meta(5))


def test_a_policy_whose_actions_have_no_bounds_is_read_again(tmp_path):
    spec = make_spec(action_low=(-math.inf, -1.0), action_high=(math.inf, 1.0))
    config = Config(tasks=(spec.name,), network=NetworkConfig(actor_width=8, critic_width=8, embedding_size=2))
    policy = MultiTaskPolicy([spec], config.network, action_noise=config.learner.policy_noise)
    whole = {**meta(1), "config": to_dict(config), "specs": [spec.to_dict()]}
    assert BestPolicy(tmp_path).offer(checkpoint.to_bytes(policy.state_dict()), {spec.name: 1.0}, whole)
    assert load_policy(tmp_path, "best").state_dict().keys() == policy.state_dict().keys()


def test_a_resumed_run_goes_on_from_the_best_that_is_there(tmp_path):
    BestPolicy(tmp_path).offer(b"one", {"a": 1.0}, meta(1))
    again = BestPolicy(tmp_path)
    assert not again.offer(b"two", {"a": 0.9}, meta(2))
    assert again.offer(b"three", {"a": 1.1}, meta(3))
    assert held(tmp_path)[0] == b"three"


def test_one_of_as_many_updates_is_replaced(tmp_path):
    best = BestPolicy(tmp_path)
    best.offer(b"one", {"a": 1.0}, meta(1))
    assert best.offer(b"other", {"a": 2.0}, meta(1))
    assert held(tmp_path)[0] == b"other"


def test_a_damaged_best_is_replaced_by_the_next(tmp_path):
    best = BestPolicy(tmp_path)
    best.offer(b"one", {"a": 1.0}, meta(1))
    (best_of(tmp_path) / "meta.json").write_text("{")
    assert BestPolicy(tmp_path).offer(b"two", {"a": 0.0}, meta(2))
    assert held(tmp_path)[0] == b"two"


@pytest.mark.parametrize("text", ["", "best-1", "../x", "best-/../../x", "\xff"])
def test_a_name_that_is_none_of_a_best_is_refused(tmp_path, text):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / BEST).write_text(text)
    with pytest.raises(UsageError, match=r"has no best policy: .*--run.evaluate-every"):
        best_of(tmp_path)


def test_it_is_no_checkpoint_that_a_run_continues_from(tmp_path):
    BestPolicy(tmp_path).offer(b"one", {"a": 1.0}, meta(1))
    assert checkpoint.checkpoints_of(tmp_path) == []
    with pytest.raises(UsageError, match="holds a policy only, the best of its run, and no run continues from it"):
        checkpoint.read(best_of(tmp_path))


def test_a_run_directory_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        BestPolicy(tmp_path / "gone").offer(b"one", {"a": 1.0}, meta(1))
    assert not (tmp_path / "gone").exists()


def test_its_updates_are_told_also_before_the_first_checkpoint(tmp_path, capsys):
    BestPolicy(tmp_path).offer(b"one", {"a": 1.0}, meta(7))
    _tell_age(tmp_path)
    assert capsys.readouterr().err == "the best of the evaluated policies has 7 updates\n"
    whole = {"specs": [], "metrics": {"updates": 90}}
    CheckpointWriter(tmp_path, 2, {}).write(checkpoint.Checkpoint(900, whole, b"", b"", {}), None)
    _tell_age(tmp_path)
    assert capsys.readouterr().err.endswith(" has 7 updates; the newest checkpoint has 90\n")
