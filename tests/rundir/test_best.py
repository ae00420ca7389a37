"""The best policy of a run: kept, compared over tasks of different scales, read again."""

import json

import pytest

from mtray.errors import UsageError
from mtray.rundir.checkpoints import checkpoint
from mtray.rundir.checkpoints.best import BEST, BestPolicy, best_of


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
    assert names == ["best", "best-000000000004"], "the one before is gone, and nothing partial is left"


def test_tasks_of_different_scales_count_alike(tmp_path):
    best = BestPolicy(tmp_path)
    assert best.offer(b"", {"small": 0.0, "large": 0.0}, meta(1))
    assert best.offer(b"", {"small": 1.0, "large": 1000.0}, meta(2))
    # A tenth of the large range is lost, half of the small one is gained.
    assert best.offer(b"", {"small": 1.5, "large": 900.0}, meta(3))
    assert not best.offer(b"", {"small": 1.4, "large": 901.0}, meta(4))


def test_a_task_that_failed_is_left_out_of_the_comparison(tmp_path):
    best = BestPolicy(tmp_path)
    assert best.offer(b"", {"a": 1.0, "b": 5.0}, meta(1))
    assert not best.offer(b"", {"a": 0.0}, meta(2))
    assert best.offer(b"", {"a": 2.0}, meta(3))


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
    with pytest.raises(UsageError, match=r"has no best policy yet: .*--run.evaluate-every"):
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
