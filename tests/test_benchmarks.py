"""The benchmarks: a failure or Ctrl-C does not lose earlier measurements, and is no success."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mtray.config.task_weights import rows_per_task

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import harness

    yield harness
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def failing_after(rounds, error):
    left = iter(range(rounds))

    def measure():
        if next(left, None) is None:
            raise error
        return 2.0

    return measure


@pytest.fixture
def restored_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def rows_in(file):
    return {row["name"]: row for row in json.loads(file.read_text())["rows"]}


def test_a_failing_contender_is_left_out_and_other_rates_are_kept(harness, tmp_path):
    contenders = {
        "base": lambda: 1.0,
        "never": failing_after(0, RuntimeError("child failed:\nTraceback\nValueError: no such task\n")),
        "once": failing_after(1, OSError("disk full")),
        "always": lambda: 3.0,
    }
    measured = harness.interleave(contenders, 3)
    assert measured.rates == {"base": [1.0] * 3, "once": [2.0], "always": [3.0] * 3}
    assert measured.left_out == {"never": "round 1/3: ValueError: no such task", "once": "round 2/3: disk full"}
    file = tmp_path / "found.json"
    harness.report(harness.compare(measured.rates, "base", list(contenders), "x/s"), file, measured.left_out)
    rows = rows_in(file)
    assert {name: (row["ratio"], row["repeats"]) for name, row in rows.items()} == {
        "base": (1.0, 3), "once": (2.0, 1), "always": (3.0, 3),
    }  # fmt: skip
    assert json.loads(file.read_text())["left_out"] == measured.left_out


def test_without_its_baseline_a_contender_has_no_ratio(harness, tmp_path):
    measured = harness.interleave({"base": failing_after(0, TimeoutError("too slow")), "ours": lambda: 3.0}, 2)
    file = tmp_path / "found.json"
    rows = harness.compare(measured.rates, "base", ["base", "ours"], "x/s")
    harness.report(rows, file, measured.left_out)
    assert (rows_in(file)["ours"]["value"], rows_in(file)["ours"]["ratio"]) == (3.0, None)
    harness.plot(rows, tmp_path / "found.png", "nothing to draw")
    assert not (tmp_path / "found.png").exists()


def test_a_report_without_measurements_is_written(harness, tmp_path):
    measured = harness.interleave({"base": failing_after(0, RuntimeError())}, 2)
    harness.report(harness.compare(measured.rates, "base", ["base"], "x/s"), tmp_path / "found.json", measured.left_out)
    assert json.loads((tmp_path / "found.json").read_text())["left_out"] == {"base": "round 1/2: RuntimeError"}


def test_ctrl_c_ends_the_rounds_and_keeps_their_rates(harness):
    contenders = {"base": lambda: 1.0, "cut": failing_after(1, KeyboardInterrupt()), "last": lambda: 3.0}
    measured = harness.interleave(contenders, 5)
    assert measured.is_interrupted
    assert measured.rates == {"base": [1.0, 1.0], "cut": [2.0], "last": [3.0]}
    assert measured.left_out == {}
    measured = harness.interleave({"cut": failing_after(0, KeyboardInterrupt()), "last": lambda: 3.0}, 5)
    assert measured.left_out == dict.fromkeys(("cut", "last"), "not measured before Ctrl-C")


def test_a_measurement_beside_the_rounds_that_fails_or_is_interrupted_is_left_out(harness):
    measured = harness.Measured(rates={"base": [1.0]})
    assert measured.attempt("fine", lambda: 2.0) == 2.0
    assert measured.attempt("gone", failing_after(0, OSError("no such process"))) is None
    assert measured.attempt("fine too", lambda: 3.0) == 3.0
    assert measured.attempt("cut", failing_after(0, KeyboardInterrupt())) is None
    assert measured.attempt("later", lambda: 2.0) is None
    assert measured.is_interrupted
    cut = dict.fromkeys(("cut", "later"), "not measured before Ctrl-C")
    assert measured.left_out == {"gone": "no such process"} | cut


@pytest.mark.parametrize(
    ("rows", "left_out", "code"),
    [
        (["row"], {}, None),
        (["row"], {"SBX": "needs --peers DIR"}, None),
        ([], {}, 1),
        ([], {"SBX": "needs --peers DIR"}, 1),
        (["row"], {"SBX": "needs --peers DIR", "ours": "round 1/2: AssertionError"}, 1),
        (["row"], {"ours": "not measured before Ctrl-C"}, 1),
    ],
)
def test_a_script_without_some_figure_ends_with_exit_code_1(harness, rows, left_out, code):
    ended = None
    try:
        harness.finish(rows, left_out)
    except SystemExit as end:
        ended = end.code
    assert ended == code


def test_every_script_looks_at_what_it_lacks():
    scripts = [text for path in BENCHMARKS.glob("*.py") if "__main__" in (text := path.read_text())]
    assert len(scripts) > 8
    for text in scripts:
        # chaos.py has no contenders.
        assert text.count("harness.report(") <= text.count("harness.finish(")
        assert "harness.finish(" in text or "raise SystemExit(1)" in text


def test_a_measured_learner_has_all_settings_and_collectors_no_noise_of_a_preset(harness):
    import collecting

    config = collecting.settings(("a", "b"), "mujoco", "inline", 1, 4, 1)
    assert rows_per_task(config.learner, config.tasks) == {"a": 64, "b": 64}
    assert config.learner.n_step is not None
    assert config.collector.most_noise is None


def test_runs_are_compared_at_equal_frames_and_by_seed(harness, capsys):
    import learning

    def run(*frames, task="a", scale=1.0):
        return [learning.Point(at, at / 10, {task: scale * at}) for at in frames]

    # One that was interrupted at 130 saves there, and then every 100 from there on.
    whole, cut = run(100, 200, 300, 401), run(100, 130, 230, 330, 400)
    moments = learning.aligned([whole, cut], 100, 400)
    assert [[point.frames for point in moment] for moment in moments] == [
        [100, 100], [200, 230], [300, 330], [401, 400],
    ]  # fmt: skip
    assert learning.aligned([whole, cut[:3]], 100, 400) == moments[:2]
    assert learning.aligned([whole, []], 100, 400) == learning.aligned([], 100, 400) == []
    both = learning.joined(learning.aligned([whole, run(100, 200, task="b")], 100, 200)[-1])
    assert (both.frames, both.minutes, both.returns) == (200, 40, {"a": 200, "b": 200})
    # The first seed of one and the third of the other failed.
    learning.compare([[], run(400, scale=3.0), run(400)], [run(400), run(400), []], [400])
    assert "at 400 frames per task: mean return 3.00; wall clock 1.00" in capsys.readouterr().out


def test_a_run_that_fails_has_no_minutes(harness):
    import minutes

    with pytest.raises(RuntimeError, match=r"mtray\.launch ended with exit code 2"):
        minutes.ours({"no-such-task": 1.0}, most=1.0, seed=0)


def test_a_program_may_end_before_it_is_ended(harness):
    import launches

    with launches.started([sys.executable, "-c", ""]) as process:
        assert process.wait() == 0


def measure_until_ctrl_c(folder):
    import harness

    def slow():
        (Path(folder) / "begun").touch()
        time.sleep(60)
        return 1.0

    measured = harness.interleave({"quick": lambda: 1.0, "slow": slow}, 1)
    time.sleep(1.0)  # A second signal arrives meanwhile.
    return measured


@pytest.mark.parametrize("keeps_partial", [True, False])
def test_ctrl_c_is_forwarded_to_a_child_with_a_partial_result(harness, restored_sigterm, tmp_path, keeps_partial):
    def press():
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        if keeps_partial:
            # As timeout(1) does: first to the process, then to its group.
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    call = measure_until_ctrl_c, [(str(tmp_path),)]
    if keeps_partial:
        [measured] = harness.in_own_processes(*call, keeps_partial=True)
        assert measured.rates == {"quick": [1.0]}
        assert measured.is_interrupted
    else:
        with pytest.raises(KeyboardInterrupt):
            harness.in_own_processes(*call)
    thread.join()
