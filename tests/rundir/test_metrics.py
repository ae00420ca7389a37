"""Metrics: the figures of a line, what they count over, and that they go on after a resume."""

import importlib
import json
import math
import os
import resource
from types import SimpleNamespace

import pytest

from mtray.collect.clock import Clock
from mtray.data.messages import Episode, Report
from mtray.rundir.metrics import RECENT_EPISODES, Metrics, with_last_evaluation
from mtray.rundir.screen import Picture, Screen
from mtray.rundir.sinks import Guarded, JsonLines, TensorBoard


@pytest.fixture
def clock(monkeypatch):
    """The time that `mtray.rundir.metrics` reads; a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("mtray.rundir.metrics.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def episodes(*returns, task="left"):
    return [Episode(task, value, 10) for value in returns]


def report(ended, weights_version, **seconds):
    return Report(episodes=tuple(ended), weights_version=weights_version, seconds=seconds)


def test_line_has_the_keys_that_readers_rely_on():
    line = Metrics(["left", "right"]).line()
    assert line.keys() >= {
        "time", "frames", "updates", "frames_per_second", "updates_per_second", "weights_version", "staleness", "tasks"
    }  # fmt: skip
    assert list(line["tasks"]) == ["left", "right"]
    for figures in line["tasks"].values():
        assert figures == {
            "frames": 0,
            "episodes": 0,
            "broken_episodes": 0,
            "return_mean": None,
            "return_last": None,
            "return_random": None,
            "return_evaluated": None,
            "length_mean": None,
        }


def test_line_is_json():
    metrics = Metrics(["left", "right"])
    metrics.add_rollout(report(episodes(1.5), 0))
    line = metrics.line()
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_frames_are_those_of_all_tasks():
    metrics = Metrics(["left", "right"])
    metrics.tasks["left"].frames, metrics.tasks["right"].frames = 30, 12
    line = metrics.line()
    assert (metrics.frames, line["frames"], line["tasks"]["right"]["frames"]) == (42, 42, 12)


def test_returns_of_random_episodes_are_not_shown():
    metrics = Metrics(["left"])
    metrics.add_rollout(report([Episode("left", 7.0, 10), Episode("left", -50.0, 10, random_steps=1)], 0))
    figures = metrics.line()["tasks"]["left"]
    assert (figures["episodes"], figures["return_mean"], figures["return_last"]) == (2, 7.0, 7.0)


def test_rates_are_those_since_the_last_line(clock):
    metrics = Metrics(["left"])
    clock.now += 4
    metrics.tasks["left"].frames, metrics.updates = 100, 8
    line = metrics.line()
    assert (line["time"], line["frames_per_second"], line["updates_per_second"]) == (4.0, 25.0, 2.0)
    clock.now += 2
    metrics.tasks["left"].frames, metrics.updates = 120, 9
    line = metrics.line()
    assert (line["time"], line["frames_per_second"], line["updates_per_second"]) == (6.0, 10.0, 0.5)


def test_rates_count_what_was_made_and_lost_again(clock):
    """After the death of a learner or a replay, totals go back; what they made until then counts, once."""
    metrics = Metrics(["left"])
    metrics.tasks["left"].frames, metrics.updates = 100, 80
    metrics.line()
    clock.now += 2
    metrics.tasks["left"].frames, metrics.frames_lost = 70, 40
    metrics.updates, metrics.updates_lost = 60, 24
    line = metrics.line()
    assert (line["frames_per_second"], line["updates_per_second"]) == (5.0, 2.0)
    clock.now += 2
    metrics.tasks["left"].frames, metrics.updates = 80, 64
    line = metrics.line()
    assert (line["frames_per_second"], line["updates_per_second"]) == (5.0, 2.0)


def test_rates_go_on_after_a_resume(clock):
    metrics = Metrics(["left"])
    metrics.tasks["left"].frames, metrics.updates, metrics.updates_lost = 100, 80, 30
    resumed = Metrics(["left"])
    resumed.load_state(metrics.state())
    clock.now += 2
    resumed.updates += 6
    line = resumed.line()
    assert (line["frames_per_second"], line["updates_per_second"]) == (0.0, 3.0)


def test_two_lines_at_the_same_instant_have_rates(clock):
    metrics = Metrics(["left"])
    metrics.line()
    assert metrics.line()["frames_per_second"] == 0.0


def test_return_mean_is_that_of_the_last_twenty_episodes_of_the_task():
    metrics = Metrics(["left", "right"])
    metrics.add_rollout(report(episodes(*range(7)), 0))
    metrics.add_rollout(report([*episodes(*range(7, 30)), *episodes(-3.0, task="right")], 0))
    assert RECENT_EPISODES == 20
    tasks = metrics.line()["tasks"]
    assert tasks["left"] == {
        "frames": 0,
        "episodes": 30,
        "broken_episodes": 0,
        "return_mean": sum(range(10, 30)) / 20,
        "return_last": 29,
        "return_random": None,
        "return_evaluated": None,
        "length_mean": 10.0,
    }
    assert tasks["right"] == {
        "frames": 0,
        "episodes": 1,
        "broken_episodes": 0,
        "return_mean": -3.0,
        "return_last": -3.0,
        "return_random": None,
        "return_evaluated": None,
        "length_mean": 10.0,
    }


def test_staleness_is_the_mean_since_the_last_line_and_starts_anew():
    metrics = Metrics(["left"])
    metrics.weights_version = 5
    metrics.add_rollout(report([], 5))
    metrics.add_rollout(report([], 3))
    metrics.weights_version = 9
    metrics.add_rollout(report([], 2))
    line = metrics.line()
    assert (line["weights_version"], line["staleness"]) == (9, (0 + 2 + 7) / 3)
    assert metrics.line()["staleness"] == 0.0
    metrics.add_rollout(report([], 8))
    assert metrics.line()["staleness"] == 1.0


def test_collector_ahead_of_what_the_driver_knows_is_not_stale():
    metrics = Metrics(["left"])
    metrics.add_rollout(report([], 3))
    assert metrics.line()["staleness"] == 0.0


def test_collectors_time_is_summed_over_them_since_the_last_line():
    metrics = Metrics(["left"])
    metrics.add_rollout(report([], 0, simulate=2.0, policy=0.5))
    metrics.add_rollout(report([], 0, simulate=1.5, idle=0.25))
    assert metrics.line()["collector_seconds"] == {"simulate": 3.5, "policy": 0.5, "idle": 0.25}
    assert metrics.line()["collector_seconds"] == {}


def test_a_clock_gives_every_lap_to_what_it_was_spent_on(monkeypatch):
    now = iter([10.0, 12.0, 13.0, 17.0, 18.0])
    monkeypatch.setattr("mtray.collect.clock.time", SimpleNamespace(perf_counter=lambda: next(now)))
    clock = Clock()
    for part in ("policy", "simulate", "policy"):
        clock.lap(part)
    assert clock.take() == {"policy": 6.0, "simulate": 1.0}
    clock.lap("copy")
    assert clock.take() == {"copy": 1.0}


def test_faults_are_counted_over_resumes():
    metrics = Metrics(["left"])
    metrics.count_faults(2, 10, 3)
    state = json.loads(json.dumps(metrics.state()))
    resumed = Metrics(["left"])
    resumed.load_state(state)
    line = resumed.line()
    assert (line["restarts"], line["frames_lost"], line["updates_lost"]) == (2, 10, 3)
    assert line["frames_per_second"] == 0.0, "what was lost before is not made now"
    resumed.count_faults(1, 5, 0)
    line = resumed.line()
    assert (line["restarts"], line["frames_lost"], line["updates_lost"]) == (3, 15, 3)


def test_learners_figures_stand_beside_the_tasks():
    metrics = Metrics(["left", "right"])
    metrics.tasks["left"].learner = {"critic_loss": 0.5}
    tasks = metrics.line()["tasks"]
    assert tasks["left"]["critic_loss"] == 0.5
    assert "critic_loss" not in tasks["right"]


def test_a_task_that_the_last_evaluation_lacks_has_no_figures_of_an_earlier_one():
    metrics = Metrics(["left", "right"])
    metrics.add_evaluation(10, {"left": {"return_mean": 5.0, "info_success": 1.0}, "right": {"return_mean": 6.0}})
    metrics.add_evaluation(20, {"right": {"return_mean": 7.0}})
    tasks = metrics.line()["tasks"]
    assert [tasks[name]["return_evaluated"] for name in ("left", "right")] == [None, 7.0]
    assert "info_success_evaluated" not in tasks["left"]


def test_an_evaluation_that_was_made_after_the_checkpoint_of_its_policy_goes_on_too():
    metrics = Metrics(["left", "right"])
    metrics.updates = 30
    metrics.add_evaluation(10, {"left": {"return_mean": 5.0}, "right": {"return_mean": 6.0}})
    state, lines = json.loads(json.dumps(metrics.state())), [metrics.line()]
    assert with_last_evaluation(state, lines) == state
    metrics.add_evaluation(30, {"left": {"return_mean": 7.0, "info_success": 0.5}})
    lines.append(metrics.line())
    # Of a policy that is not the checkpoint's, as when a run is resumed from an older one.
    metrics.add_evaluation(40, {"left": {"return_mean": 8.0}, "right": {"return_mean": 9.0}})
    lines.append(metrics.line())
    resumed = Metrics(["left", "right"])
    resumed.load_state(with_last_evaluation(state, lines))
    line = resumed.line()
    assert (line["updates"], line["evaluated_updates"]) == (30, 30)
    assert line["tasks"]["left"]["return_evaluated"] == 7.0
    assert line["tasks"]["left"]["info_success_evaluated"] == 0.5
    assert line["tasks"]["right"]["return_evaluated"] is None
    # Earlier versions wrote none.
    del state["evaluated_updates"]
    assert with_last_evaluation(state, [{"time": 1.0}, *lines])["evaluated_updates"] == 30


def test_counts_go_on_from_a_saved_state(clock):
    metrics = Metrics(["left", "right"])
    clock.now += 50
    metrics.tasks["left"].frames, metrics.updates = 400, 30
    metrics.add_rollout(report([*episodes(*range(25)), *episodes(4.0, task="right")], 0))
    metrics.add_evaluation(29, {"left": {"return_mean": 5.0}})
    state = json.loads(json.dumps(metrics.state()))
    before = metrics.line()

    clock.now += 1000
    resumed = Metrics(["left", "right"], 50.0)
    resumed.load_state(state)
    assert json.loads(json.dumps(resumed.state())) == state
    clock.now += 2
    resumed.tasks["left"].frames, resumed.updates = 420, 31
    resumed.add_rollout(report(episodes(100.0), 0))
    line = resumed.line()
    assert (line["time"], line["frames"], line["updates"]) == (52.0, 420, 31)
    # The rates are of this run alone.
    assert (line["frames_per_second"], line["updates_per_second"]) == (10.0, 0.5)
    assert line["tasks"]["left"] == {
        "frames": 420, "episodes": 26, "broken_episodes": 0,
        "return_mean": (sum(range(6, 25)) + 100) / 20, "return_last": 100.0, "return_random": None,
        "return_evaluated": 5.0, "length_mean": 10.0
    }  # fmt: skip
    assert line["tasks"]["right"] == before["tasks"]["right"]


def test_json_lines_can_be_read_while_they_are_written_and_are_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for run in range(2):
        lines = JsonLines(path)
        for number in range(3):
            lines.write({"run": run, "number": number, "tasks": {"left": {"return_mean": None}}})
            assert json.loads(path.read_text().splitlines()[-1])["number"] == number
        lines.close()
    text = path.read_text()
    assert text.endswith("\n")
    found = [(line["run"], line["number"]) for line in map(json.loads, text.splitlines())]
    assert found == [(run, number) for run in range(2) for number in range(3)]


def test_tensorboard_has_every_number_over_frames(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(["left", "right"])
    metrics.tasks["left"].frames = 42
    metrics.add_rollout(report(episodes(1.5), 0))
    board = TensorBoard(tmp_path)
    board.write(metrics.line())
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"run/frames", "run/staleness", "left/return_mean", "right/episodes"} <= tags
    assert "right/return_mean" not in tags
    [event] = events.Scalars("left/return_mean")
    assert (event.step, event.value) == (42, 1.5)


@pytest.mark.parametrize("reader", ["event_accumulator", "plugin_event_accumulator"])
def test_tensorboard_shows_a_resumed_run_without_what_it_left(tmp_path, monkeypatch, reader):
    accumulators = importlib.import_module(f"tensorboard.backend.event_processing.{reader}")
    for second, begin_frames, frames, shown in (
        (1, None, (100, 200, 300), [100, 200, 300]),
        (2, 100, (150, 250), [100, 150, 250]),
        (3, 150, (180, 190), [100, 150, 180, 190]),
    ):
        # Event files are read in the order of their names.
        monkeypatch.setattr("time.time", lambda second=second: float(second))
        board = TensorBoard(tmp_path, begin_frames)
        for step in frames:
            board.write({"frames": step, "tasks": {"left": {"return_mean": float(second)}}})
        board.close()
        monkeypatch.undo()
        events = accumulators.EventAccumulator(str(tmp_path))
        events.Reload()
        found = events.Tensors if reader.startswith("plugin") else events.Scalars
        assert [event.step for event in found("left/return_mean")] == shown


def test_json_lines_go_on_after_the_last_whole_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    sink = JsonLines(path)
    sink.write({"a": 2})
    sink.close()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 2]


# Sinks that can't be written


LINE = {"frames": 1, "reward": math.nan, "tasks": {"left": {"frames": 1, "return_mean": math.inf}}}


class Limit:
    """While it holds, no file of this process grows beyond so many bytes, as on a full disk."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_lines_are_standard_json_whatever_the_numbers(tmp_path):
    sink = JsonLines(tmp_path / "lines")
    sink.write(LINE)
    sink.close()
    assert (tmp_path / "lines").read_text() == (
        '{"frames": 1, "reward": null, "tasks": {"left": {"frames": 1, "return_mean": null}}}\n'
    )


def test_a_disk_that_is_full_for_a_while_costs_lines_but_no_half_ones(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    sink = Guarded(JsonLines(path), "metrics.jsonl")
    sink.write({"number": 0})
    with Limit(path.stat().st_size + 5):
        sink.write({"number": 1})
        sink.write({"number": 2})
    sink.write({"number": 3})
    sink.close()
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [0, 3]
    told = capsys.readouterr().err
    assert told == "warning: metrics.jsonl can't be written: File too large; the run goes on without\n"


def test_a_run_that_ends_while_the_disk_is_full_leaves_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink.write({"number": 0})
    with Limit(path.stat().st_size + 5):
        with pytest.raises(OSError, match="File too large"):
            sink.write({"number": 1})
        sink.close()
    assert path.read_text() == '{"number": 0}\n'


@pytest.mark.parametrize("kind", [JsonLines, TensorBoard])
def test_a_folder_that_can_not_be_written_is_told_once(tmp_path, capsys, kind):
    (tmp_path / "file").touch()
    sink = Guarded(kind(tmp_path / "file" / "below"), "figures")
    for _ in range(3):
        sink.write({"frames": 1, "tasks": {}})
    sink.close()
    assert capsys.readouterr().err == "warning: figures can't be written: Not a directory; the run goes on without\n"


def test_event_files_that_can_not_grow_are_told_once(tmp_path, capsys):
    sink = Guarded(TensorBoard(tmp_path / "board"), "figures")
    with Limit(0):
        for frames in range(5):
            sink.write({"frames": frames, "tasks": {"left": {"return_mean": 1.0}}})
        sink.close()
    told = capsys.readouterr().err
    assert told.count("figures can't be written") == 1
    assert "Traceback" not in told


def test_tags_of_tasks_of_any_name_are_taken(tmp_path):
    sink = TensorBoard(tmp_path)
    for name in ("läufer-走る", "..", "a\\b", "x" * 300, "-x"):
        sink.write({"frames": 1, "tasks": {name: {"return_mean": math.nan}}})
    sink.close()
    assert len(list(tmp_path.glob("events*"))) == 1


def test_progress_goes_on_without_a_terminal(monkeypatch):
    line = Metrics(["left"]).line()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", closefd=False) as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        sink = Screen(Picture(100, None), "auto")
        sink.write(line)
        sink.close()
        monkeypatch.setattr("sys.stderr", None)
        sink.write(line)
        for kind in ("auto", "table"):
            sink = Screen(Picture(100, None), kind)
            sink.write(line)
            sink.close()
        # What is left in the pipe's buffer would fail when it is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    os.close(write)
