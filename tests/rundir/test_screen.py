"""The screen: what is left, who waits, each task's return; the same from a run's files."""

import io
import json
from time import monotonic

import pytest
from rich.console import Console

from mtray import watch
from mtray.rundir import screen
from mtray.rundir.claim import claim
from mtray.rundir.screen import Picture, Screen, duration, picture_of, published, trend


def figures(frames=0, episodes=0, mean=None, random=None):
    return {"frames": frames, "episodes": episodes, "return_mean": mean, "return_random": random}


def line(time, frames, waiting=None, **tasks):
    return {
        "time": time, "frames": frames, "updates": 7, "frames_per_second": 50.0, "updates_per_second": 3.0,
        "waiting": waiting or {}, "restarts": 0, "frames_lost": 0, "updates_lost": 0, "tasks": tasks,
    }  # fmt: skip


def drawn(picture, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(picture)
    return console.file.getvalue()


def test_time_left_is_what_frames_or_minutes_leave():
    picture = Picture(1000, None)
    assert picture.seconds_left() is None
    picture.add(line(10.0, 0))
    assert picture.seconds_left() is None
    picture.add(line(20.0, 100))
    picture.add(line(40.0, 500))
    assert picture.seconds_left() == pytest.approx(25.0)
    both = Picture(1000, 0.75)
    both.add(line(20.0, 100))
    both.add(line(40.0, 500))
    assert both.seconds_left() == pytest.approx(5.0)
    assert "500/1,000 (50 %) frames" in both.totals()
    assert both.totals().endswith("40 s, about 5 s left")
    only = Picture(None, 1.0)
    only.add(line(40.0, 500))
    assert "500 frames, 50/s" in only.totals()
    assert only.totals().endswith("about 20 s left")


def test_updates_that_are_owed_after_the_last_frame_are_told_with_their_time():
    picture = Picture(1000, None)
    picture.add(line(10.0, 500) | {"updates_owed": 70})
    assert "owed" not in picture.totals()
    picture.add(line(20.0, 1000) | {"updates_owed": 60})
    assert picture.totals().endswith("20 s, 60 updates are still owed, about 20 s left")
    picture.add(line(40.0, 1000) | {"updates_owed": 0})
    assert "owed" not in picture.totals()


def test_who_waits_long_is_told_with_the_remedy():
    picture = Picture(None, 1.0)
    picture.add(line(1.0, 1, {"collectors": {"learner": 0.82}, "learner": {"frames": 0.1}}))
    (text,) = picture.waits()
    assert text.startswith("the learner is the slower side: collectors wait 82 % of their time for it; a lower ")
    assert "--learner.least-updates-per-step" in text
    picture.add(line(2.0, 1, {"collectors": {}, "learner": {"frames": 0.5}}))
    (text,) = picture.waits()
    assert "--learner.updates-per-step" in text
    assert text.startswith("the learner waits 50 %")


def test_a_task_has_its_return_trend_and_the_published_one():
    picture = Picture(None, 1.0)
    for time, mean in enumerate((None, 1.0, 5.0, 3.0)):
        picture.add(line(time, 10, **{"humanoid-walk": figures(10, 4, mean, 2.5), "mine": figures(0, 1, None, 2.5)}))
    walk, mine = picture.tasks()
    assert walk == ("humanoid-walk", "10", "4", "3.0", "▁█▅", "", f"{published()['humanoid-walk']['return']:,.0f}", "")
    assert mine == ("mine", "0", "1", "2.5 random", "", "", "", "")
    text = drawn(picture)
    assert "humanoid-walk" in text
    assert "2.5 random" in text


def test_an_evaluation_is_shown_beside_the_training_return():
    picture = Picture(None, 1.0)
    picture.add(line(9.0, 10, mine=figures(0, 1, None, 2.5) | {"return_evaluated": 71.25}))
    assert picture.tasks() == [("mine", "0", "1", "2.5 random", "", "71.2", "", "")]
    assert "71.2" in drawn(picture)
    picture.add(line(9.5, 10, mine=figures(0, 1, None, 2.5) | {"return_evaluated": 1.5}) | {"evaluated_updates": 0})
    assert picture.tasks()[0].evaluated == "1.5 untrained"
    picture.tell("evaluated", {"updates": 0, "is_best": False})
    assert picture.news == "the untrained policy was evaluated"
    picture.tell("evaluated", {"updates": 1200, "is_best": True, "next_in": 570.3})
    assert picture.news == (
        "the policy after 1,200 updates was evaluated: the best so far, kept; the next is due in 9 min 30 s"
    )


def test_on_80_columns_the_trend_and_long_names_give_way_and_no_figure_does():
    picture = Picture(None, 60.0)
    for number in range(40):
        tasks = {
            "humanoid-stand": figures(8_145_678, 12_345, 912.3 - number) | {"return_evaluated": 23.2},
            "humanoid-run_pure_state": figures(1, 1, None, 5.1) | {"return_evaluated": 1.5},
        }
        picture.add(line(float(number), 10, **tasks) | {"evaluated_updates": 0})
    head, stand, run = drawn(picture, 80).splitlines()[:3]
    assert head.split() == ["task", "frames", "episodes", "return", "trend", "untrained", "published"]
    best = f"{published()['humanoid-stand']['return']:,.0f}"
    assert stand.split()[:4] == ["humanoid-stand", "8,145,678", "12,345", "873.3"]
    assert stand.split()[5:] == ["23.2", best]
    assert stand.split()[4].startswith("█")
    assert run.split() == ["humanoid-run_pure…", "1", "1", "5.1", "random", "1.5"]
    wide = drawn(picture, 120)
    assert "humanoid-run_pure_state" in wide
    assert trend(picture.returns["humanoid-stand"]) in wide


def test_success_is_shown_where_an_environment_reports_it(capsys):
    mine = figures(10, 4, 2.5)
    shown = Screen(Picture(None, 1.0), "plain")
    shown.write(line(9.0, 10, mine=mine, other=mine | {"info_success": 0.854}))
    shown.close()
    mines, others = (text for text in capsys.readouterr().err.splitlines() if text.startswith("    "))
    assert others.endswith("success 0.85")
    assert "success" not in mines
    assert "0.85" in drawn(shown.picture)
    without = Picture(None, 1.0)
    without.add(line(9.0, 10, mine=mine))
    assert "success" not in drawn(without)


def test_a_task_is_printed_again_after_a_while_or_when_it_is_asked_for(capsys):
    shown = Screen(Picture(None, 1.0), "plain")
    for seconds, episodes in ((1.0, 4), (2.0, 5), (3.0, 6)):
        if episodes == 6:
            shown.print_all_tasks()
        shown.write(line(seconds, 10, mine=figures(10, episodes, 2.5)))
    shown.close()
    rows = [text for text in capsys.readouterr().err.splitlines() if text.startswith("    mine")]
    assert ["4 episodes" in row for row in rows] == [True, False]
    assert "6 episodes" in rows[1], "no row after 2 seconds"


def test_until_there_are_figures_the_screen_says_what_is_waited_for():
    picture = Picture(None, 1.0, processes=4)
    assert "starting" in drawn(picture)
    for part in ("the replay", "collector 0", "collector 0"):
        picture.tell("up", {"part": part})
    assert "2 of 4 processes are ready" in drawn(picture)


def test_troubles_are_counted():
    picture = Picture(None, 1.0)
    picture.add(line(1.0, 1) | {"restarts": 2, "updates_lost": 1200})
    assert picture.troubles() == "2 processes replaced, 1,200 updates lost"
    picture.add(line(2.0, 1) | {"restarts": 1})
    assert picture.troubles() == "1 process replaced"


def test_a_run_that_has_ended_says_so_in_place_of_the_time_that_was_left():
    picture = Picture(None, 1.0)
    picture.add(line(9.0, 10))
    assert picture.totals().endswith("left")
    picture.tell("end", {"cause": "interrupted"})
    assert picture.totals().endswith("9 s; the run has ended: interrupted")
    picture.tell("resume", {})
    assert picture.totals().endswith("left")


def test_a_task_whose_episodes_are_long_is_printed_once_it_is_evaluated(capsys):
    shown = Screen(Picture(None, 1.0), "plain")
    for seconds in (1.0, 30.0):
        shown.write(line(seconds, 10, mine=figures(10, 0) | {"return_evaluated": 7.5}))
    shown.print_all_tasks()
    shown.write(line(60.0, 10, mine=figures(10, 0) | {"return_evaluated": 8.5}))
    shown.close()
    rows = [text for text in capsys.readouterr().err.splitlines() if text.startswith("    mine")]
    assert [row.split()[-2:] for row in rows] == [["evaluated", "7.5"], ["evaluated", "8.5"]]


def test_without_a_terminal_totals_are_a_line_and_a_task_one_when_it_has_news(capsys):
    shown = Screen(Picture(1000, None, processes=3), "auto")
    shown.tell("up", {"part": "the replay"})
    shown.write(line(0.0, 0))
    shown.tell("up", {"part": "the learner"})
    for time in range(0, 100, 5):
        shown.write(line(float(time), time, a=figures(time, time // 50, 1.5 if time >= 50 else None), b=figures()))
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    told = [text for text in lines if text.endswith("starting") and "frames" not in text]
    assert told == [
        "1 of 3 processes are ready, the others are starting", "2 of 3 processes are ready, the other is starting",
    ]  # fmt: skip
    assert all(
        text.endswith("2 of 3 processes are ready, the other is starting")
        for text in lines
        if "frames, " in text and "  0 s" not in text
    )
    assert sum("frames, " in text for text in lines) == 21
    (task,) = [text for text in lines if text.startswith("    ")]
    assert task.split()[:3] == ["a", "return", "1.5"]


@pytest.mark.parametrize(("frames", "episodes", "is_told"), [(40_000, 0, True), (39_000, 0, False), (90_000, 1, False)])
def test_a_task_whose_episodes_do_not_end_is_told_once(capsys, frames, episodes, is_told):
    shown = Screen(Picture(None, 10.0, copies=4), "plain")
    for time in (5.0, 10.0):
        shown.write(line(time, frames, a=figures(frames, episodes), b=figures(frames, 7, 1.5)))
    told = [text for text in capsys.readouterr().err.splitlines() if text.startswith("WARNING")]
    assert len(told) == is_told
    assert all("no episode of a has ended in 10,000 frames of each copy" in text for text in told)
    assert ("no episode of a" in drawn(shown.picture)) == is_told


def test_none_shows_nothing(capsys):
    shown = Screen(Picture(1000, None), "none")
    shown.write(line(1.0, 5, a=figures(5, 1, 2.0)))
    shown.close()
    assert capsys.readouterr().err == ""


def test_returns_that_are_kept_are_bounded():
    picture = Picture(None, 1.0)
    for time in range(5000):
        picture.add(line(float(time), 10, a=figures(10, 4, float(time))))
    assert len(picture.returns["a"]) <= screen._MOST_RETURNS
    assert picture.returns["a"][-1] == 4999.0


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([1.0], ""), ([2.0, 2.0], "▁▁"), ([0.0, 7.0], "▁█"), (list(range(160)), "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██")],
)
def test_trend(values, bars):
    assert trend(values) == bars


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "60 s"), (99, "99 s"), (115, "1 min 55 s"), (600, "10 min"), (7300, "2 h 01 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_published_returns_are_the_best_of_the_table_they_come_from():
    import csv
    from pathlib import Path

    best = {}
    with (Path(__file__).parents[2] / "benchmarks/reference/dmc_returns.csv").open() as file:
        for row in csv.DictReader(file):
            best[row["task"]] = max(float(row["return_mean"]), best.get(row["task"], 0.0))
    assert {task: entry["return"] for task, entry in published().items()} == best


@pytest.fixture
def run_dir(tmp_path):
    config = {"config": {"total_frames": None, "total_minutes": 10.0, "workers": "auto"}, "chosen": {"workers": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = [line(1.0, 5, a=figures(5, 1, 2.0)), line(2.0, 9, a=figures(9, 2, 4.0))]
    # The last line is half written.
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines) + '{"time": 3')
    (tmp_path / "events.jsonl").write_text('{"time": 0.1, "event": "up", "part": "the replay"}\n')
    return tmp_path


def test_a_run_s_files_give_the_same_picture(run_dir):
    picture = picture_of(run_dir)
    assert picture.tasks() == [("a", "9", "2", "4.0", "▁█", "", "", "")]
    assert picture.news == "1 of 5 processes are ready, the others are starting"
    assert "about 9 min 58 s left" in picture.totals()
    # Processes of a start before are gone.
    for begins in ("start", "resume"):
        with (run_dir / "events.jsonl").open("a") as file:
            for event in ({"event": begins}, {"event": "up", "part": "the learner"}):
                file.write(json.dumps({"time": 0.2, **event}) + "\n")
        assert picture_of(run_dir).news == "1 of 5 processes are ready, the others are starting"


def test_watch_prints_the_picture_once_where_there_is_no_terminal(run_dir, capsys):
    assert watch.main([str(run_dir)]) == 0
    assert "9 frames, 50/s" in capsys.readouterr().out


def test_watch_says_that_a_run_was_killed(run_dir, capsys, monkeypatch):
    monkeypatch.setattr(watch, "_SILENT_SECONDS", -1.0)
    with claim(run_dir) as owned:
        owned.keep()
        assert watch.main([str(run_dir)]) == 0
    capsys.readouterr()
    assert watch.main([str(run_dir)]) == 1
    shown = capsys.readouterr()
    assert "9 frames, 50/s" in shown.out
    assert f"the run's process is gone, it wrote last 0 s ago: mtray launch --resume {run_dir} goes on" in shown.err
    with (run_dir / "events.jsonl").open("a") as file:
        file.write('{"time": 3.0, "event": "end"}\n')
    assert watch.main([str(run_dir)]) == 0, "it has ended by itself"


def test_watch_waits_for_a_run_that_is_being_resumed_and_leaves_one_that_has_ended(run_dir):
    with (run_dir / "events.jsonl").open("a") as file:
        file.write('{"time": 3.0, "event": "end"}\n')
    begin = monotonic()
    assert not watch._is_going(run_dir, begin)
    with claim(run_dir) as owned:
        owned.keep()
        assert watch._is_going(run_dir, begin), "it starts Ray, and has told nothing since its last end"
        assert not watch._is_going(run_dir, begin - watch._STARTING_SECONDS)
    with (run_dir / "events.jsonl").open("a") as file:
        file.write('{"time": 3.0, "event": "resume"}\n')
    assert watch._is_going(run_dir, begin)


def test_watch_says_what_is_no_run(tmp_path, capsys):
    assert watch.main([str(tmp_path)]) == 2
    assert f"{tmp_path} is no run directory" in capsys.readouterr().err
