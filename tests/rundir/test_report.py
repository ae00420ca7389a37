"""The report: totals and returns side by side, of runs that ended and of those that go on."""

import json

import pytest

from mtray.errors import UsageError
from mtray.report import main
from mtray.rundir.report import read_last, table

SUMMARY = {
    "frames": 1234567,
    "updates": 4000,
    "weights_version": 9,
    "restarts": 1,
    "tasks": {
        "left": {"frames": 1000000, "episodes": 12, "return_mean": 512.25, "return_last": 1.0},
        "right": {"frames": 234567, "episodes": 0, "return_mean": None, "return_last": None},
    },
    "wall_seconds": 3600.4,
    "exit_reason": "finished",
}
LINE = {
    "time": 61.5,
    "frames": 800,
    "updates": 20,
    "restarts": 0,
    "tasks": {"left": {"frames": 800, "episodes": 3, "return_mean": -0.04, "return_last": -1.0}},
}


def write_lines(run_dir, *lines, tail=""):
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def test_a_long_reason_is_shortened_in_the_table_and_stands_whole_below_it(tmp_path, capsys):
    for name, reason in (("a", "failed: " + "x" * 300), ("b", "finished")):
        write_lines(tmp_path / name, LINE)
        (tmp_path / name / "summary.json").write_text(json.dumps(SUMMARY | {"exit_reason": reason}))
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    *told, below = capsys.readouterr().out.splitlines()
    (ended,) = (row.split() for row in told if row.startswith("ended"))
    assert ended == ["ended", "failed:", "x" * 48, "...", "finished"]
    assert below == f"{tmp_path / 'a'}: failed: {'x' * 300}"


def test_tasks_that_were_set_aside_are_named(tmp_path):
    events = [{"time": 1.0, "event": "set_aside", "part": "left", "cause": "it melted"}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    rows = {row[0]: row[1] for row in table({str(tmp_path): SUMMARY})}
    assert rows["set aside"] == "left"


@pytest.mark.parametrize("begins", ["start", "resume"])
def test_a_task_that_was_set_aside_before_a_resume_is_not_named(tmp_path, begins):
    events = [
        {"time": 1.0, "event": "set_aside", "part": "left", "cause": "it melted"},
        {"time": 2.0, "event": begins},
        {"time": 3.0, "event": "set_aside", "part": "right", "cause": "it melted"},
    ]
    for count, named in ((2, None), (3, "right")):
        (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events[:count]))
        assert dict(row[:2] for row in table({str(tmp_path): SUMMARY})).get("set aside") == named


def test_run_that_ended_is_told_by_its_summary(tmp_path):
    write_lines(tmp_path, LINE)
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    assert read_last(tmp_path) == SUMMARY


def test_run_that_goes_on_is_told_by_its_last_line(tmp_path):
    write_lines(tmp_path, {**LINE, "frames": 1}, LINE)
    assert read_last(tmp_path) == {**LINE, "exit_reason": "running or killed"}


@pytest.mark.parametrize("length", [1, 20, None])
def test_line_that_is_only_half_written_is_left_out(tmp_path, length):
    half = json.dumps({**LINE, "frames": 900})[:length]
    write_lines(tmp_path, {**LINE, "frames": 1}, LINE, tail=half)
    assert read_last(tmp_path)["frames"] == 800


@pytest.mark.parametrize("tail", [None, "", '{"time": 1'])
def test_run_without_figures_is_told_to_wait(tmp_path, tail):
    (tmp_path / "config.json").write_text("{}")
    if tail is not None:
        write_lines(tmp_path, tail=tail)
    with pytest.raises(UsageError) as caught:
        read_last(tmp_path)
    lines = tmp_path / "metrics.jsonl"
    assert str(caught.value) == f"{tmp_path} has no figures to report yet: wait for the first line of {lines}"


@pytest.mark.parametrize(("name", "reason"), [("", "it has no config.json"), ("missing", "there is no such folder")])
def test_folder_of_no_run_is_refused_with_a_remedy(tmp_path, name, reason):
    with pytest.raises(UsageError) as caught:
        read_last(tmp_path / name)
    assert str(caught.value) == (
        f"{tmp_path / name} is no run directory ({reason}): give the folder of a run, as its --run-dir named it"
    )


def test_damaged_summary_is_refused_by_name_with_a_remedy(tmp_path):
    write_lines(tmp_path, LINE)
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY)[:-5])
    with pytest.raises(UsageError, match=r"summary\.json is damaged .*: remove it to report the last line") as caught:
        read_last(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "summary.json").unlink()
    assert read_last(tmp_path)["frames"] == 800


def test_damaged_line_is_refused_by_name(tmp_path):
    write_lines(tmp_path, tail="{]\n")
    with pytest.raises(UsageError, match=r"metrics\.jsonl is damaged "):
        read_last(tmp_path)


def test_table_sets_runs_side_by_side():
    goes_on = {**LINE, "exit_reason": "running or killed"}
    assert table({"runs/a": SUMMARY, "runs/b": goes_on}) == [
        ["", "runs/a", "runs/b"],
        ["frames", "1,234,567", "800"],
        ["updates", "4,000", "20"],
        ["restarts", "1", "0"],
        ["seconds", "3,600", "62"],
        ["ended", "finished", "running or killed"],
        ["left", "512.2 (12 episodes)", "-0.0 (3 episodes)"],
        ["right", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("episodes", "cell"),
    [
        (1, "512.2 (1 episode)"),
        (20, "512.2 (20 episodes)"),
        (1032, "512.2 (up to 20 newest of 1,032 episodes)"),
    ],
)
def test_a_mean_return_says_which_episodes_it_is_of(episodes, cell):
    figures = {**SUMMARY["tasks"]["left"], "episodes": episodes}
    assert table({"a": {**SUMMARY, "tasks": {"left": figures}}})[-1] == ["left", cell]


def test_tasks_of_every_run_have_a_row_in_the_order_met():
    runs = {
        name: {**LINE, "exit_reason": "finished", "tasks": {task: LINE["tasks"]["left"] for task in tasks}}
        for name, tasks in {"a": ("walk", "stand"), "b": ("run", "walk")}.items()
    }
    rows = table(runs)
    assert [row[0] for row in rows[-3:]] == ["walk", "stand", "run"]
    assert [cell == "-" for row in rows[-3:] for cell in row[1:]] == [False, False, False, True, True, False]


def test_command_prints_aligned_columns(tmp_path, capsys):
    write_lines(tmp_path / "one", LINE)
    write_lines(tmp_path / "another", {**LINE, "frames": 12})
    assert main([str(tmp_path / "one"), str(tmp_path / "another")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [["frames", "800", "12"], ["updates", "20", "20"]]
    column = lines[0].index(str(tmp_path / "another"))
    assert lines[1][column:] == "12"
    assert lines[2][column:] == "20"


def test_command_without_figures_ends_with_one_line_and_two(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.startswith(f"error: {tmp_path} is no run directory")
    assert caught.err.count("\n") == 1


@pytest.mark.parametrize("text", ["[]", "{}", '{"tasks": {"a": 1}}', "null", '"x"', "{", '{"tasks": {}}'])
def test_foreign_summary_is_refused(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UsageError, match=r"summary\.json is damaged"):
        read_last(tmp_path)
