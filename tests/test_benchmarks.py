"""The benchmarks' harness: a failure or Ctrl-C does not lose earlier measurements."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness

    yield harness
    del sys.modules["harness"]


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
