"""Checkpoints: whole or not there, whenever the writer was killed; and what was saved acts as it did."""

import dataclasses
import errno
import hashlib
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import LazyStackedTensorDict, TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from mtray.config.learner import NetworkConfig
from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.engines import states
from mtray.errors import UsageError
from mtray.learn.trainer import Trainer
from mtray.policy.policy import MultiTaskPolicy
from mtray.replay.buffer import ReplayBuffer
from mtray.rundir import files
from mtray.rundir.checkpoints import checkpoint, writer
from mtray.rundir.checkpoints.checkpoint import Checkpoint, from_bytes, latest, read, read_config, to_bytes
from mtray.rundir.checkpoints.newest import read_chosen
from mtray.rundir.checkpoints.policies import load_policy
from mtray.rundir.checkpoints.writer import CheckpointWriter
from mtray.rundir.files import replace_file
from tests.makers import awkward, make_spec

SPECS = (make_spec("left", 3, 2), make_spec("right", 5, 1, action_low=(-3.0,), action_high=(1.0,)))
CONFIG = Config(tasks=("left", "right"), network=NetworkConfig(actor_width=8, embedding_size=4))
PLAIN_SPECS = json.loads(json.dumps([spec.to_dict() for spec in SPECS]))


@pytest.fixture
def policy():
    torch.manual_seed(0)
    policy = MultiTaskPolicy(SPECS, CONFIG.network)
    policy.mean.normal_()
    policy.scale.uniform_(0.5, 2)
    policy.embedding.normal_()
    return policy


ROW_BYTES = {spec.name: 4 * spec.row_size for spec in SPECS}


def make_checkpoint(frames, policy=None, rows=True):
    """A checkpoint with arrays in place of chunks."""
    generator = np.random.default_rng(frames)
    names = [spec.name for spec in SPECS]
    return Checkpoint(
        frames,
        {
            "frames": frames,
            "config": to_dict(CONFIG),
            "specs": PLAIN_SPECS,
            "metrics": [1.5],
            "collectors": [{"left": 1}],
        },
        to_bytes(policy.state_dict() if policy else {}),
        to_bytes({"updates": frames, "weights": torch.full((3,), float(frames))}),
        {
            "frames": {"left": frames},
            "written": dict.fromkeys(names, 4),
            "start": dict.fromkeys(names, 0),
            "receipts": {},
            "sources": {},
        },
        {spec.name: awkward(generator, 4, spec.row_size) for spec in SPECS} if rows else {},
        collectors=[states.to_bytes({"steps": np.arange(frames)})],
    )


def assert_same_checkpoint(found, expected):
    for field in ("frames", "meta", "policy", "learner", "replay", "collectors"):
        assert getattr(found, field) == getattr(expected, field), field
    assert found.rows.keys() == expected.rows.keys()
    for task, rows in expected.rows.items():
        held = rows_in(found, task)
        assert (held.dtype, held.shape) == (rows.dtype, rows.shape)
        assert held.tobytes() == rows.tobytes()


def rows_in(saved, task):
    return np.concatenate([chunk.load() for chunk in saved.rows[task]])


def write(run_dir, saved, keep):
    """Write a checkpoint whose rows are arrays."""
    arrays = saved.rows

    def fetch(task, begin, end):
        return begin, arrays[task][begin:end]

    made = CheckpointWriter(run_dir, keep, {task: 4 * rows.shape[1] for task, rows in arrays.items()})
    return made.write(dataclasses.replace(saved, rows={}), fetch if arrays else None)


def folders(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir() if path.name[0].isdigit())


# Writing and reading


@pytest.mark.parametrize("rows", [True, False], ids=["with rows", "without rows"])
def test_what_is_written_is_read(tmp_path, policy, rows):
    saved = make_checkpoint(1234, policy, rows)
    path = write(tmp_path, saved, keep=2)
    assert path == latest(tmp_path)
    assert_same_checkpoint(read(path), saved)


def test_state_of_tensors_and_plain_values_comes_back_from_bytes():
    state = {"a": torch.arange(3.0), "nested": {"b": [1, 2.5, "three", None]}, "flag": torch.tensor([True])}
    found = from_bytes(to_bytes(state))
    assert torch.equal(found["a"], state["a"])
    assert torch.equal(found["flag"], state["flag"])
    assert found["nested"] == state["nested"]


def test_latest_names_the_newest(tmp_path):
    for frames in (9, 10, 100):
        write(tmp_path, make_checkpoint(frames), keep=5)
        assert read(latest(tmp_path)).frames == frames
        assert (tmp_path / "checkpoints" / "latest").read_text() == f"{frames:012d}"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_all_but_the_newest_are_dropped(tmp_path, keep):
    every = [5, 50, 500, 5000, 50000]
    for frames in every:
        write(tmp_path, make_checkpoint(frames), keep)
    assert folders(tmp_path) == [f"{frames:012d}" for frames in every[-keep:]]
    assert read(latest(tmp_path)).frames == 50000


def test_same_frames_again_stand_beside_those_before(tmp_path):
    write(tmp_path, make_checkpoint(7), keep=2)
    saved = dataclasses.replace(make_checkpoint(7), meta={**make_checkpoint(7).meta, "metrics": ["new"]})
    write(tmp_path, saved, keep=2)
    assert folders(tmp_path) == ["000000000007", "000000000007.1"]
    assert_same_checkpoint(read(latest(tmp_path)), saved)


def test_the_one_just_written_is_kept_also_beside_one_of_a_higher_number_that_was_never_named(tmp_path):
    write(tmp_path, make_checkpoint(100), keep=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_at(monkeypatch, 9)
        with pytest.raises(KilledError):
            write(tmp_path, make_checkpoint(200), keep=1)
    assert folders(tmp_path) == ["000000000100", "000000000200"]
    write(tmp_path, make_checkpoint(150), keep=1)
    assert read(latest(tmp_path)).frames == 150
    assert folders(tmp_path) == ["000000000150"]


@pytest.mark.parametrize("step", range(12))
def test_writer_of_the_same_frames_killed_at_any_step_leaves_a_whole_one(tmp_path, step):
    write(tmp_path, make_checkpoint(100), keep=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_at(monkeypatch, step)
        with pytest.raises(KilledError):
            write(tmp_path, make_checkpoint(100), keep=2)
    assert_same_checkpoint(read(latest(tmp_path)), make_checkpoint(100))


def test_nothing_partial_is_left_behind(tmp_path):
    write(tmp_path, make_checkpoint(7), keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000000000007", "latest"]


# A writer that is killed


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_at(monkeypatch, step, error=KilledError):
    """End the writer when it flushes or renames for the ``step``-th time."""
    steps = itertools.count()

    def counted(function):
        def call(*args, **kwargs):
            if next(steps) == step:
                raise error
            return function(*args, **kwargs)

        return call

    for module in (writer, files):
        monkeypatch.setattr(module, "sync", counted(files.sync))
    path_class = writer.Path
    monkeypatch.setattr(path_class, "rename", counted(path_class.rename))
    monkeypatch.setattr(path_class, "replace", counted(path_class.replace))


# The flush of five files, of two tasks' rows and of the folder, its rename and its parent's flush, the flush and the
# rename of `latest`.
@pytest.mark.parametrize("step", range(12))
def test_writer_killed_at_any_step_leaves_the_one_before(tmp_path, step):
    before, after = make_checkpoint(100), make_checkpoint(200)
    write(tmp_path, before, keep=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_at(monkeypatch, step)
        with pytest.raises(KilledError):
            write(tmp_path, after, keep=2)
    assert_same_checkpoint(read(latest(tmp_path)), before)
    # Whoever resumes and comes there again writes it whole.
    write(tmp_path, after, keep=2)
    assert_same_checkpoint(read(latest(tmp_path)), after)
    assert len(folders(tmp_path)) == 2


def test_writer_has_no_more_steps_than_are_killed_above(tmp_path, monkeypatch):
    # And the flush of the folder that holds `latest`.
    kill_at(monkeypatch, 13)
    write(tmp_path, make_checkpoint(100), keep=2)
    with pytest.raises(KilledError):
        replace_file(tmp_path / "other", "")


def test_partial_folder_of_a_killed_writer_is_ignored_and_written_over(tmp_path):
    whole = write(tmp_path, make_checkpoint(100), keep=1)
    partial = whole.with_name(".000000000200.partial")
    shutil.copytree(whole, partial)
    (partial / "policy.pt").write_bytes(b"half")
    (partial / "stray").touch()
    assert read(latest(tmp_path)).frames == 100
    written = write(tmp_path, make_checkpoint(200), keep=1)
    assert_same_checkpoint(read(latest(tmp_path)), make_checkpoint(200))
    assert not (written / "stray").exists()
    assert not partial.exists()


def test_small_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    replace_file(path, "old")
    kill_at(monkeypatch, 0)
    with pytest.raises(KilledError):
        replace_file(path, "new")
    assert path.read_text() == "old"
    replace_file(path, "new")
    assert path.read_text() == "new"


# What is missing or damaged


def test_run_without_a_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="no checkpoint") as caught:
        latest(tmp_path / "runs" / "a")
    assert str(tmp_path / "runs" / "a") in str(caught.value)


def test_latest_that_names_no_whole_checkpoint_is_refused_by_name(tmp_path):
    path = write(tmp_path, make_checkpoint(100), keep=2)
    (path / "meta.json").unlink()
    with pytest.raises(UsageError, match=r"not whole: meta\.json is missing") as caught:
        latest(tmp_path)
    assert str(path) in str(caught.value)


EVERY_FILE = (
    "meta.json",
    "policy.pt",
    "learner.pt",
    "replay.json",
    "collector-0.npz",
    *(f"rows_{side}_000000000000-000000000004.npy" for side in ("left", "right")),
)
DAMAGE = {
    "gone": None,
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "noise": lambda data: bytes(byte ^ 0x5A for byte in data),
    "foreign": lambda data: b'{"format": 6, "frames": 1}',
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", EVERY_FILE)
def test_damaged_file_is_refused_by_name_and_the_older_checkpoint_is_offered(tmp_path, name, how):
    older = write(tmp_path, make_checkpoint(50), keep=2)
    path = write(tmp_path, make_checkpoint(100), keep=2)
    data = (path / name).read_bytes()
    (path / name).unlink()
    if how != "gone":
        (path / name).write_bytes(DAMAGE[how](data))
    with pytest.raises(UsageError) as caught:
        read_chosen(tmp_path, read)
    assert str(path) in str(caught.value)
    assert name in str(caught.value)
    assert str(caught.value).endswith(f": give a checkpoint that is whole, {older}")
    assert "\n" not in str(caught.value)
    assert_same_checkpoint(read_chosen(older, read), make_checkpoint(50))


@pytest.mark.parametrize("name", EVERY_FILE[1:])
def test_one_bit_that_has_changed_is_noticed(tmp_path, name):
    path = write(tmp_path, make_checkpoint(100), keep=2)
    data = bytearray((path / name).read_bytes())
    data[-9] ^= 4
    (path / name).write_bytes(data)
    with pytest.raises(UsageError, match=f"{name} can't be read .*checksum"):
        read(path)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"../../elsewhere", b"nonsense", b"0" * 4000, b"000000000050/../x"])
def test_damaged_name_of_the_latest_is_refused(tmp_path, text):
    write(tmp_path, make_checkpoint(100), keep=2)
    (tmp_path / "checkpoints" / "latest").write_bytes(text)
    with pytest.raises(UsageError, match=r"(latest is damaged|is not whole).*, .*/000000000100$"):
        read_chosen(tmp_path, read)


def test_receipts_of_earlier_runs_are_not_carried_on(tmp_path):
    saved = make_checkpoint(100)
    saved.replay["receipts"] = {"dead": [[0, {"left": 2}]]}
    saved.replay["sources"] = {"dead": 2}
    assert read(write(tmp_path, saved, keep=2)).replay == make_checkpoint(100).replay


# What is left by writers that were killed, or that met a full disk


def test_owner_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    whole = write(tmp_path, make_checkpoint(100), keep=2)
    shutil.copytree(whole, whole.with_name(".000000000200.partial"))
    (tmp_path / "checkpoints" / ".latest.partial").touch()
    (tmp_path / ".config.json.partial").touch()
    checkpoint.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000000000100", "latest"]
    assert_same_checkpoint(read(latest(tmp_path)), make_checkpoint(100))


@pytest.mark.parametrize("step", range(12))
def test_writer_that_meets_a_full_disk_leaves_nothing_partial(tmp_path, monkeypatch, step):
    before = make_checkpoint(100)
    write(tmp_path, before, keep=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_at(monkeypatch, step, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space left") as caught:
            write(tmp_path, make_checkpoint(200), keep=2)
    assert step > 7 or "000000000200" in str(caught.value.filename)
    assert not list(tmp_path.rglob("*.partial"))
    assert_same_checkpoint(read(latest(tmp_path)), before)


def test_run_directory_that_was_deleted_is_not_made_again(tmp_path):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "gone", make_checkpoint(100), keep=2)
    assert not (tmp_path / "gone").exists()


# Names


NAMES = ("a.b.c", "läufer-走る", "x" * 300, "..", ".", "../../up", "/root", "a\\b", "a\0b", "a\rb", "-x", "a*b", "50%",
         "a\udc80b", "~", "x" * 299 + "y", "%2E.", "", "CON", "a/../b", "\x1b[2J")  # fmt: skip


def test_rows_of_tasks_of_any_name_lie_in_files_of_their_own_inside_the_checkpoint(tmp_path):
    specs = [make_spec(name, 2, 1) for name in NAMES]
    rows = {spec.name: np.full((1, spec.row_size), index, np.float32) for index, spec in enumerate(specs)}
    meta = {"config": to_dict(CONFIG), "specs": [json.loads(json.dumps(spec.to_dict())) for spec in specs]}
    replay = {"written": dict.fromkeys(NAMES, 1), "start": dict.fromkeys(NAMES, 0)}
    path = write(tmp_path, Checkpoint(7, meta, b"", b"", replay, rows), keep=2)
    found = read(path)
    assert {name: rows_in(found, name).tolist() for name in found.rows} == {
        name: held.tolist() for name, held in rows.items()
    }
    assert len(list(path.iterdir())) == len(NAMES) + 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoints"]


@given(st.lists(st.text(st.characters(), max_size=400), min_size=2, max_size=2, unique=True))
def test_file_names_are_different_printable_and_short(texts):
    one, other = map(files.file_name, texts)
    assert one != other
    for name in (one, other):
        assert name.isascii()
        assert name.isprintable()
        assert len(name) <= 200
        assert not set(name) & set("/\\: ")
        assert not name.startswith(".")


def test_usual_task_names_are_their_own_file_names():
    for name in ("humanoid-walk", "my_task.v2"):
        assert files.file_name(name) == name


def test_a_checkpoint_of_the_format_before_is_read(tmp_path):
    path = write(tmp_path, make_checkpoint(100), keep=2)
    meta = json.loads((path / "meta.json").read_text())
    assert meta["format"] == checkpoint.FORMAT
    (path / "meta.json").write_text(json.dumps({**meta, "format": 5}))
    assert read(path).meta["frames"] == 100


@pytest.mark.parametrize("found", [None, 4, checkpoint.FORMAT + 1])
def test_another_versions_format_is_refused_by_whatever_reads_it(tmp_path, policy, found):
    path = write(tmp_path, make_checkpoint(100, policy), keep=2)
    meta = json.loads((path / "meta.json").read_text())
    del meta["format"]
    (path / "meta.json").write_text(json.dumps(meta if found is None else {**meta, "format": found}))
    for reader in (read, load_policy):
        with pytest.raises(
            UsageError, match=f"has format {found or 1}, .* formats 5 and {checkpoint.FORMAT}: "
        ) as caught:
            reader(path)
        assert str(path) in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (shutil.rmtree, (str(tmp_path),))

    with pytest.raises(Exception, match="Weights only load failed"):
        from_bytes(to_bytes({"policy": Evil()}))
    assert tmp_path.exists()


# The config of a run


def test_config_of_a_run_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": to_dict(CONFIG), "versions": {}}))
    assert read_config(tmp_path) == dataclasses.replace(CONFIG, run_dir=tmp_path)


def test_the_config_of_a_run_that_was_moved_has_its_new_place(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "before")
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "config.json").write_text(json.dumps({"config": to_dict(config), "versions": {}}))
    monkeypatch.chdir(tmp_path)
    assert read_config("after").run_dir == tmp_path / "after"


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", '{"config": {"workers": "three"}}'])
def test_folder_without_a_config_of_this_version_is_refused_by_name(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"no run directory.*: (give|use)") as caught:
        read_config(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_config_of_a_version_with_other_settings_is_refused_with_the_setting(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {**to_dict(CONFIG), "wrokers": 3}}))
    with pytest.raises(UsageError, match="wrokers"):
        read_config(tmp_path)


# The policy of a run


def observations(seed=0, size=(6,)):
    generator = torch.Generator().manual_seed(seed)
    elements = []
    for spec in SPECS:
        own = torch.randn(*size, spec.observation_size, generator=generator)
        common = torch.nn.functional.pad(own, (0, 5 - spec.observation_size))
        elements.append(TensorDict({"observation": common, spec.key: own}, size))
    return LazyStackedTensorDict.lazy_stack(elements, 0)


@pytest.mark.parametrize("named", ["run", "checkpoint", "text"])
def test_loaded_policy_acts_as_the_saved_one(tmp_path, policy, named):
    write(tmp_path, make_checkpoint(50), keep=5)
    path = write(tmp_path, make_checkpoint(100, policy), keep=5)
    loaded = load_policy({"run": tmp_path, "checkpoint": path, "text": str(tmp_path)}[named])
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = policy(observations())
    found = loaded(observations())
    for one, other, spec in zip(found.tensordicts, expected.tensordicts, SPECS, strict=True):
        assert one["action"].shape == (6, spec.action_size)
        assert torch.equal(one["action"], other["action"])
        assert (one["action"] >= torch.tensor(spec.action_low)).all()
        assert (one["action"] <= torch.tensor(spec.action_high)).all()


def test_loaded_policy_is_deterministic_and_learns_nothing(tmp_path, policy):
    write(tmp_path, make_checkpoint(100, policy), keep=2)
    loaded = load_policy(tmp_path)
    first, second = loaded(observations()[0]), loaded(observations()[0])
    assert torch.equal(first["action"], second["action"])
    assert not first["action"].requires_grad
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    with set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(loaded(observations()[0])["action"], first["action"])


def test_policy_of_one_checkpoint_is_not_the_newest(tmp_path, policy):
    old = write(tmp_path, make_checkpoint(100, policy), keep=5)
    torch.manual_seed(1)
    write(tmp_path, make_checkpoint(200, MultiTaskPolicy(SPECS, CONFIG.network)), keep=5)
    action = [load_policy(path)(observations()[1])["action"] for path in (old, tmp_path)]
    assert not torch.equal(*action)
    assert torch.equal(load_policy(old).mean, policy.mean)


def test_policy_of_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"is no run directory: .*; give the folder of a run") as caught:
        load_policy(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize("damage", ["missing policy", "meta cut"])
def test_policy_that_can_not_be_read_is_refused_by_name(tmp_path, policy, damage):
    path = write(tmp_path, make_checkpoint(100, policy), keep=2)
    if damage == "meta cut":
        (path / "meta.json").write_text((path / "meta.json").read_text()[:-9])
    else:
        (path / "policy.pt").unlink()
    with pytest.raises(UsageError, match="can't be read") as caught:
        load_policy(tmp_path)
    assert str(path) in str(caught.value)


def damage(path, name, data):
    (path / name).write_bytes(data)


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04half"])
def test_a_damaged_policy_is_refused_by_name(tmp_path, data):
    path = write(tmp_path, make_checkpoint(100), keep=2)
    damage(path, "policy.pt", data)
    with pytest.raises(UsageError, match="can't be read"):
        load_policy(tmp_path)


@pytest.mark.parametrize("text", [f'{{"format": {checkpoint.FORMAT}}}'.encode(), b"[]", b""])
def test_a_damaged_meta_is_refused_by_name(tmp_path, text):
    path = write(tmp_path, make_checkpoint(100), keep=2)
    damage(path, "meta.json", text)
    for reader in (load_policy, read):
        with pytest.raises(UsageError, match="can't be read"):
            reader(path)


def test_rows_or_replay_that_are_gone_are_noticed(tmp_path):
    path = write(tmp_path, make_checkpoint(100), keep=2)
    damage(path, EVERY_FILE[4], b"")
    with pytest.raises(UsageError, match="can't be read"):
        read(path)
    path = write(tmp_path, make_checkpoint(200), keep=2)
    (path / "replay.json").unlink()
    with pytest.raises(UsageError, match="can't be read"):
        read(path)


def test_a_config_of_other_settings_is_refused_with_its_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"wrokers": 3}}))
    with pytest.raises(UsageError, match="wrokers") as caught:
        read_config(tmp_path)
    assert str(tmp_path) in str(caught.value)


def form_of(state):
    """What is named and how it is nested, without the values."""
    if isinstance(state, dict):
        return {name: form_of(value) for name, value in state.items()}
    return [form_of(value) for value in state] if isinstance(state, list) else "x"


def test_form_of_what_is_saved_belongs_to_the_format():
    """Whoever changes it, or what it means, raises `checkpoint.FORMAT`: none may go on from what it reads wrongly."""
    learner, replay = Trainer(SPECS, CONFIG.network, CONFIG.learner), ReplayBuffer(SPECS, CONFIG.replay)
    saved = form_of({"learner": learner.state_dict(), "replay": {**replay.state(), "generator": "numpy's own"}})
    found = hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()[:12]
    assert (checkpoint.FORMAT, found) == (6, "db5b2ef64681")
