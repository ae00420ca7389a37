"""`mtray tasks`: the tasks there are, and tasks that are tried."""

import pytest

from mtray import listing
from mtray.tasks.registry import task_names, task_sets


@pytest.mark.parametrize("columns", [60, 200])
def test_every_task_and_set_is_listed_once(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert listing.main([]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    words = " ".join(lines).split()
    assert set(task_names()) | set(task_sets()) <= set(words)
    assert [words.count(task) for task in task_names()] == [1] * len(task_names())
    assert max(map(len, lines)) <= columns


def test_a_task_that_is_tried_is_built_and_stepped(capsys):
    assert listing.main(["reacher", "tests.makers:point"]) == 0
    header, *rows = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    assert header[0] == "task"
    assert [row[0] for row in rows] == ["reacher-easy", "reacher-hard", "point"]
    easy = [cell.strip() for cell in rows[0] if cell.strip()]
    assert easy[1:6] == ["6", "2", "500 steps", "0.990", "984"]
    assert float(easy[6].replace(",", "")) > 0
    assert "ended after 5 steps" in " ".join(rows[2])
    assert listing.main(["tests.makers:endless"]) == 0
    assert "no end in " in capsys.readouterr().out


def test_a_task_that_fails_hides_none_of_the_others(capsys):
    names = ["tests.makers:raising", "tests.makers:point", "tests.failing:bad_reward_maker"]
    assert listing.main(names) == 2
    out, error = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["task", "point"]
    assert error.count("\n") == 1
    assert "task 'raising'" in error
    assert "its step gave the reward nan" in error


def test_the_last_step_of_an_episode_counts_though_it_repeats_its_action_less_often(capsys):
    assert listing.main(["cartpole-balance", "--action-repeat", "3"]) == 0
    assert " 334 steps " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["reacher-eazy"], "did you mean reacher-easy"),
        (["reacher", "--action-repeat", "0"], "--action-repeat 0: at least 1 is needed"),
        (["--engine", "gazebo"], "unknown engine 'gazebo'"),
        (["tests.makers:raising"], "task 'raising'"),
        (["tests.failing:bad_reward_maker"], "its step gave the reward nan"),
        (["tests"], "'tests' is no task but a module: name a maker in it, tests:maker"),
    ],
)
def test_what_can_not_be_tried_is_one_line(capsys, arguments, text):
    assert listing.main(arguments) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    assert text in found
