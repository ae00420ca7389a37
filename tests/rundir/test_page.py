"""The page of a report: every figure is in it, runs of other seeds are one curve, and what is missing is no error."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mtray.report import main
from mtray.rundir.page import _FAULTS, _MINUTES, _evaluated, _grouped, _together, _told, read_run

ROOT = Path(__file__).parents[2]
# Events that are no faults.
ORDINARY = {
    "placed", "up", "waiting", "spread", "left", "warm", "start", "resume", "save", "evaluated", "end", "stop",
}  # fmt: skip


def line(time, frames, **returns):
    tasks = {task: {"return_mean": value, "episodes": 1, "frames": frames} for task, value in returns.items()}
    waiting = {"learner": {"frames": 0.5}, "collectors": {}}
    return {"time": time, "frames": frames, "updates": 1, "frames_per_second": 1.0, "updates_per_second": 2.0,
            "tasks": tasks, "waiting": waiting}  # fmt: skip


@pytest.fixture
def make_run(tmp_path):
    def make(name, lines, events=(), chosen=None, **config):
        run_dir = tmp_path / name
        run_dir.mkdir()
        described = {"config": {"seed": 0, "run_dir": name, **config}} | ({"chosen": chosen} if chosen else {})
        (run_dir / "config.json").write_text(json.dumps(described))
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        (run_dir / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
        return run_dir

    return make


def test_a_page_has_every_figure_and_what_happened(tmp_path, make_run, capsys):
    death = {"time": 90.0, "event": "death", "part": "collector 1", "cause": "killed <9>"}
    runs = [
        make_run("a", [line(60.0, 10, walk=None), line(120.0, 20, walk=3.0), line(180.0, 30, walk=5.0)], [death]),
        make_run("b", [line(60.0, 10, walk=1.0), line(120.0, 20, walk=2.0)], workers=3),
    ]
    page = tmp_path / "report.html"
    assert main([*map(str, runs), "--page", str(page)]) == 0
    text = page.read_text()
    pictures = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    files = [path.read_bytes() for path in sorted(tmp_path.glob("report-*.png"))]
    assert len(files) == 4
    assert sorted(pictures) == sorted(files)
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert "<td>1.5</td>" in text
    assert "killed &lt;9&gt;" in text
    assert "nothing failed" in text
    assert "http" not in text
    assert "report-speed.png" in capsys.readouterr().out


def test_every_event_is_documented_and_is_a_fault_or_ordinary():
    code = "".join(path.read_text() for path in (ROOT / "mtray" / "cluster").rglob("*.py"))
    written = set(re.findall(r'\b(?:_tell|Tell)\(\s*"(\w+)"', code))
    _, _, rows = (ROOT / "docs" / "metrics.md").read_text().partition("| `event` |")
    documented = {name for names in re.findall(r"^\| (`.*?) \|", rows, re.MULTILINE) for name in names.split("`")[1::2]}
    assert documented == written
    assert written == _FAULTS | ORDINARY
    assert not _FAULTS & ORDINARY


def test_faults_are_listed_with_part_and_task_and_without_those_of_an_earlier_start(make_run):
    def event(name, **fields):
        return {"time": 60.0, "event": name, **fields}

    before = [event("start"), event("death", part="collector 0", cause="killed")]
    run = read_run(make_run("a", [], [*before, event("start"), event("up", part="collector 0")]))
    assert [row[2] for row in _told({"a": [run]})[1:]] == ["nothing failed"]
    after = [
        event("rebuilt", part="collector 1", task="walk", cause="it melted"),
        event("unsaved", cause="the disk is full"),
    ]
    run = read_run(make_run("b", [], [*before, event("start"), *after]))
    assert [row[2:] for row in _told({"b": [run]})[1:]] == [
        ["rebuilt", "collector 1, walk", "it melted"],
        ["unsaved", "", "the disk is full"],
    ]


def test_runs_that_differ_in_their_seed_are_one_curve(make_run):
    lines = [line(1.0, 1, walk=1.0)]
    paths = [make_run("a", lines), make_run("b", lines, seed=1), make_run("c", lines, seed=1, workers=2)]
    groups = _grouped(map(read_run, paths))
    assert [[run.config["seed"] for run in group] for group in groups.values()] == [[0, 1], [1]]
    assert next(iter(groups)) == f"{paths[0]} and 1 more"


def test_runs_for_which_other_settings_were_chosen_are_two_curves(make_run):
    """The same command on a CPU and on a GPU, and on machines of other cores."""
    chosen = [{"device": "cpu", "workers": 3}, {"device": "cuda", "workers": 3}, {"device": "cpu", "workers": 7}]
    paths = [
        make_run(f"{name}{seed}", [line(1.0, 1, walk=1.0)], seed=seed, chosen=each)
        for name, each in zip("abc", chosen, strict=True)
        for seed in range(2)
    ]
    groups = _grouped(map(read_run, paths))
    assert [[run.chosen for run in group] for group in groups.values()] == [[each] * 2 for each in chosen]


def test_curves_are_compared_where_all_of_them_are():
    places, values = _together([([0.0, 2.0], [0.0, 2.0]), ([1.0, 5.0], [7.0, 7.0])])
    assert (places[0], places[-1]) == (1.0, 2.0)
    assert values[:, 0].tolist() == [1.0, 7.0]
    assert values[:, -1].tolist() == [2.0, 7.0]


def test_a_curve_whose_frames_went_back_is_compared_in_order():
    # A replay that was lost after 90 frames came back with 10; returns rise all the time.
    frames = np.array([*range(91), *range(10, 101)], np.float64)
    lost = (frames, np.arange(len(frames), dtype=np.float64))
    places, values = _together([(np.array([0.0, 100.0]), np.zeros(2)), lost])
    assert (places[0], places[-1]) == (0.0, 100.0)
    before = places < 90
    assert values[1][before] == pytest.approx(places[before])
    assert (np.diff(values[1]) >= 0).all()
    assert values[1][-1] == lost[1][-1]
    # It ends at the most frames, also if it ends before it has them again.
    places, _ = _together([lost, (frames[:120], lost[1][:120])])
    assert places[-1] == 90.0


def test_evaluations_that_a_resume_has_left_are_not_drawn_and_the_others_at_their_frames(make_run):
    def evaluated(time, frames, value):
        event = {"time": time + 5, "event": "evaluated", "of_time": time, "frames": frames}
        return {**event, "returns": {"walk": [value - 1, value + 1]}}

    # As a resume of the checkpoint of 300 frames leaves the lines; `line` counts as many frames for the task.
    lines = [line(time, time, walk=1.0) for time in (100.0, 200.0, 300.0)]
    lines += [line(time, time - 600, walk=1.0) for time in (950.0, 1000.0, 1100.0)]
    before = [evaluated(time, time, time) for time in (200.0, 300.0, 600.0, 900.0)]
    resume = {"time": 900.0, "event": "resume", "checkpoint": "x", "frames": 300}
    events = [*before, resume, evaluated(1000.0, 400, 42.0)]
    run = read_run(make_run("a", lines, events))
    assert _evaluated([run], "walk", "frames of the task") == [(200.0, 200.0), (300.0, 300.0), (400.0, 42.0)]
    minutes = [place for place, _ in _evaluated([run], "walk", _MINUTES)]
    assert minutes == [200 / 60, 300 / 60, 1000 / 60]
    # A start in the folder of one that left no checkpoint.
    run = read_run(make_run("c", lines, [*before, {"time": 950.0, "event": "start"}, events[-1]]))
    assert _evaluated([run], "walk", "frames of the task") == [(400.0, 42.0)]
    # Of two tasks each has a share of the frames.
    halved = [{**each, "frames": 2 * each["frames"]} for each in lines]
    run = read_run(make_run("b", halved, [evaluated(150.0, 300, 7.0)]))
    assert _evaluated([run], "walk", "frames of the task") == [(150.0, 7.0)]


def test_a_run_without_a_return_is_drawn(tmp_path, make_run):
    assert main([str(make_run("a", [line(1.0, 1, walk=None)])), "--page", str(tmp_path / "page.html")]) == 0


def test_a_page_that_can_t_be_written_is_named(tmp_path, make_run, capsys):
    page = tmp_path / "nowhere" / "page.html"
    assert main([str(make_run("a", [line(1.0, 1, walk=None)])), "--page", str(page)]) != 0
    out, err = capsys.readouterr()
    assert f"--page {page} can't be written (No such file or directory): choose another place" in err
    assert out == "", "it is found before anything is drawn"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"config": 1}', "\xff"])
def test_a_run_whose_settings_can_t_be_read_is_named(tmp_path, make_run, capsys, text):
    run_dir = make_run("a", [line(1.0, 1, walk=None)])
    (run_dir / "summary.json").write_text(json.dumps({"exit_reason": "finished", "tasks": {}}))
    if text is None:
        (run_dir / "config.json").unlink()
    else:
        (run_dir / "config.json").write_text(text, encoding="latin-1")
    assert main([str(run_dir), "--page", str(tmp_path / "page.html")]) == 2
    assert f"error: {run_dir / 'config.json'} can't be read" in capsys.readouterr().err


def test_a_page_is_html(make_run, tmp_path, capsys):
    assert main([str(make_run("a", [line(1.0, 1, walk=None)])), "--page", str(tmp_path / "page.pdf")]) == 2
    assert "page.pdf: the name must end in .html" in capsys.readouterr().err
    assert not (tmp_path / "page.pdf").exists()
