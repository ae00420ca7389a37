"""A run directory in which a run begins: what is kept, what is cut off, and for how long it has run already."""

import json

import pytest

from mtray.config.plain import to_dict
from mtray.config.presets import fill
from mtray.config.settings import Config
from mtray.errors import RunError
from mtray.rundir.checkpoints.checkpoint import latest, read
from mtray.rundir.directory import begin, describe, run_dir_of
from tests.rundir.test_checkpoint import make_checkpoint, write


def write_times(path, *times):
    path.write_text("".join(json.dumps({"time": time}) + "\n" for time in times))


def times_in(path):
    return [json.loads(line)["time"] for line in path.read_text().splitlines()]


@pytest.fixture
def saved(tmp_path):
    """A run's older checkpoint, at 10 s, beside a newer one."""
    found = []
    for frames, seconds in ((100, 10.0), (200, 20.0)):
        made = make_checkpoint(frames, rows=False)
        made.meta["metrics"] = {"seconds": seconds}
        found.append(write(tmp_path, made, keep=9))
    (tmp_path / "summary.json").write_text("{}")
    return read(found[0])


def test_the_clock_goes_on_from_the_last_that_is_written(tmp_path, saved):
    write_times(tmp_path / "metrics.jsonl", 5.0, 10.0, 15.0, 25.0)
    write_times(tmp_path / "events.jsonl", 1.0, 31.5)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 4')
    assert begin(tmp_path, saved, print) == 31.5
    # Figures are of the checkpoint's line of descent; events tell all that happened.
    assert times_in(tmp_path / "metrics.jsonl") == [5.0, 10.0]
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("text", [None, "", "{}\n", "[]\n", '{"time": null}\n'])
def test_the_clock_goes_on_from_the_checkpoint_if_nothing_else_can_be_read(tmp_path, saved, text):
    if text is not None:
        (tmp_path / "events.jsonl").write_text(text)
    assert begin(tmp_path, saved, print) == 10.0


def test_a_fork_goes_on_from_its_checkpoints_time_and_leaves_the_run_as_it_is(tmp_path, saved, capsys):
    write_times(tmp_path / "events.jsonl", 99.0)
    (tmp_path / "fork").mkdir()
    assert begin(tmp_path / "fork", saved, print) == 10.0
    assert latest(tmp_path).name == "000000000200"
    assert capsys.readouterr().out == f"resuming {saved.path}\n"


def test_a_start_over_a_start_without_a_checkpoint_keeps_its_events_and_their_clock(tmp_path):
    write_times(tmp_path / "metrics.jsonl", 5.0)
    write_times(tmp_path / "events.jsonl", 1.0, 4.0)
    assert begin(tmp_path, None, print) == 5.0
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_an_older_checkpoint_is_the_newest_at_once_and_the_fate_of_newer_ones_is_one_line(tmp_path, saved, capsys):
    begin(tmp_path, saved, print)
    assert latest(tmp_path) == saved.path
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(
        f"resuming {saved.path}; newer ones will be removed when this run has saved (000000000200): "
    )


def test_a_full_disk_is_told(tmp_path, saved, monkeypatch):
    monkeypatch.setattr(
        "mtray.rundir.checkpoints.newest.replace_file", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(RunError, match="full"):
        begin(tmp_path, saved, print)


def test_a_checkpoint_without_its_meta_still_belongs_to_its_run(tmp_path, saved):
    (saved.path / "meta.json").unlink()
    assert run_dir_of(saved.path) == tmp_path
    assert run_dir_of(tmp_path) == tmp_path


def test_a_run_may_be_in_a_folder_named_as_a_checkpoint(tmp_path):
    run_dir = tmp_path / "checkpoints" / "001"
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(str(Config())))
    assert run_dir_of(run_dir) == run_dir


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("preset", ["fast", "frugal"])
def test_all_that_a_preset_fills_is_told_beside_what_was_given(preset, device):
    given = Config(preset=preset, device=device)
    filled = fill(given, 2, can_compile=True, has_bfloat16=True)
    described = json.loads(json.dumps(describe(given, filled)))
    assert described["config"] == to_dict(given)
    for section, settings in to_dict(filled).items():
        if isinstance(settings, dict):
            before = described["config"][section]
            changed = {name: value for name, value in settings.items() if value != before[name]}
            assert changed.items() <= described["chosen"].get(section, {}).items(), section
    assert described["chosen"]["replay"] == {"recent_share": filled.replay.recent_share}
