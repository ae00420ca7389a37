"""Which checkpoint is read: the newest whole one, the one that was named, or none with a remedy."""

import json

import pytest

from mtray.errors import UsageError
from mtray.rundir.checkpoints.checkpoint import latest, order, read
from mtray.rundir.checkpoints.newest import go_on_from, read_chosen, read_newest
from mtray.rundir.checkpoints.policies import load_policy
from mtray.rundir.checkpoints.writer import CheckpointWriter
from tests.rundir.test_checkpoint import folders, make_checkpoint, write

REMEDY = ": no checkpoint is whole; restore the files of one from a backup, or start anew in another --run-dir"


def damage(path, *names):
    for name in names:
        (path / name).write_bytes(b"half")


def writer_after(run_dir, path, keep=2):
    """A writer of the run that goes on from this checkpoint."""
    return CheckpointWriter(run_dir, keep, {}, read(path))


def save(writer, frames):
    return writer.write(make_checkpoint(frames, rows=False), None)


@pytest.fixture
def three(tmp_path):
    """A run directory's three checkpoints."""
    return [write(tmp_path, make_checkpoint(frames, rows=False), keep=9) for frames in (100, 200, 300)]


@pytest.mark.parametrize("reader", [read_newest, load_policy, lambda run_dir: read_chosen(run_dir, read)])
def test_if_all_are_damaged_every_one_is_named_and_none_is_advised(tmp_path, three, reader):
    for path in three:
        damage(path, "policy.pt")
    with pytest.raises(UsageError) as caught:
        reader(tmp_path)
    text = str(caught.value)
    assert text.endswith(REMEDY)
    for path in three:
        assert text.count(f"{path}/policy.pt can't be read") == 1


def test_a_damaged_one_that_was_chosen_names_the_newest_whole_one(tmp_path, three):
    damage(three[1], "learner.pt")
    damage(three[2], "learner.pt")
    with pytest.raises(UsageError, match=rf"{three[1]}/learner.pt can't be read .*: give a .* whole, {three[0]}$"):
        read_chosen(three[1], read)
    # What is needed of it is whole.
    read_chosen(three[1], lambda path: (path / "policy.pt").read_bytes())


def test_every_damaged_file_of_a_checkpoint_is_named_the_first_of_many(tmp_path):
    path = write(tmp_path, make_checkpoint(100), keep=9)
    damage(path, "policy.pt", "replay.json")
    with pytest.raises(UsageError, match=r"policy\.pt can't be read .*, .*replay\.json can't be read [^,]*$"):
        read(path)
    damage(path, "learner.pt", *(rows.name for rows in path.glob("*.npy")))
    with pytest.raises(UsageError, match=r", and 1 more files of it$"):
        read(path)


def test_a_checkpoint_of_that_name_is_not_there(tmp_path, three):
    with pytest.raises(UsageError, match=rf"000000000999/meta.json can't be read .* whole, {three[2]}$"):
        read_chosen(three[0].parent / "000000000999", read)


def test_a_run_without_a_checkpoint_and_what_is_no_run_have_remedies(tmp_path):
    with pytest.raises(UsageError, match=r"is no run directory: .*give the folder of a run"):
        read_chosen(tmp_path / "nonsense", read)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=rf"has not saved yet; .* --run-dir {tmp_path} --resume auto"):
        read_chosen(tmp_path, read)
    assert read_newest(tmp_path) == (None, [])


def test_another_versions_checkpoint_is_not_skipped(tmp_path, three):
    meta = json.loads((three[2] / "meta.json").read_text())
    (three[2] / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    for reader in (read_newest, load_policy):
        with pytest.raises(UsageError, match="has format 99"):
            reader(tmp_path)


def test_the_one_that_a_run_goes_on_from_is_the_newest_at_once(tmp_path, three):
    assert go_on_from(three[0], tmp_path) == three[1:]
    assert latest(tmp_path) == three[0]
    # As after a kill before the first save.
    assert read_newest(tmp_path)[0].frames == 100
    assert len(folders(tmp_path)) == 3


def test_another_runs_checkpoint_changes_nothing(tmp_path, three):
    (tmp_path / "fork").mkdir()
    assert go_on_from(three[0], tmp_path / "fork") == []
    assert latest(tmp_path) == three[2]
    assert writer_after(tmp_path / "fork", three[0]).superseded == []


def test_newer_ones_are_removed_when_another_is_whole_and_the_chosen_one_stays(tmp_path, three, monkeypatch):
    go_on_from(three[0], tmp_path)
    writer = writer_after(tmp_path, three[0])
    assert writer.superseded == three[1:]
    with monkeypatch.context() as patch:
        patch.setattr("mtray.rundir.checkpoints.writer.replace_file", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
        with pytest.raises(OSError, match="28"):
            save(writer, 150)
    assert set(three) <= {*three[0].parent.iterdir()}
    save(writer, 160)
    assert latest(tmp_path).name == "000000000160"
    assert not three[1].exists()
    assert not three[2].exists()


def test_a_name_that_is_taken_gets_a_number(tmp_path, three):
    writer = writer_after(tmp_path, three[0], keep=9)
    assert save(writer, 200).name == "000000000200.1"
    assert save(writer, 200).name == "000000000200.2"
    assert folders(tmp_path) == ["000000000100", "000000000200.1", "000000000200.2"]


def test_the_oldest_go_first_however_they_were_copied(tmp_path, three):
    """Their times of change are those of the copy."""
    three[0].touch()
    write(tmp_path, make_checkpoint(400, rows=False), keep=2)
    assert folders(tmp_path) == ["000000000300", "000000000400"]


def test_folders_of_other_names_are_no_checkpoints(tmp_path, three):
    mine = three[0].parent / "000000000100-mine"
    three[0].rename(mine)
    assert order(mine) is None
    save(CheckpointWriter(tmp_path, 1, {}), 400)
    assert mine.is_dir()
