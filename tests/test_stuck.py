"""Links that go silent: processes that are stopped (SIGSTOP) hold their sockets open and answer nothing."""

import signal
import time

import pytest

from tests.processes import Run
from tests.test_faults import BUSY, events_of, head_of_a_cluster, saved_of
from tests.test_launch import frames_so_far, lines_of, summary_of

# Tests of other parts of a machine's CI may compute beside.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# 30 s beyond ten times the longest call of its kind; calls take a second at most here, also on a busy machine.
LIMIT_SECONDS = 30 + 10 * 1.0


def last_line(run_dir):
    return lines_of(run_dir)[-1]


def longest_build(run_dir):
    """Seconds by which the deadline of a collector's calls is longer than that of others."""
    placed = {event["part"]: event["time"] for event in events_of(run_dir, "placed")}
    up = [event for event in events_of(run_dir, "up") if event["part"].startswith("collector")]
    return max(event["time"] - placed[event["part"]] for event in up)


@pytest.mark.parametrize(
    ("process", "parts"),
    [("Collector", {"collector 0", "collector 1"}), ("Replay", {"the replay"}), ("Learner", {"the learner"})],
)
def test_whoever_goes_silent_is_named_and_replaced_and_frames_and_updates_go_on(tmp_path, process, parts):
    run_dir = tmp_path / "a"
    # Many more updates are owed than the learner can make: it would go on with old rows for minutes.
    arguments = (*BUSY, "--learner.updates-per-step", 20, "--total-frames", 10**7, "--run-dir", run_dir)
    with Run(*arguments, cwd=tmp_path) as run:
        # Deadlines are known once there was a call of each kind; who starts has another.
        run.wait_until(lambda: frames_so_far(run_dir) > 600 and last_line(run_dir)["updates"] > 20)
        run.wait_until(lambda: len(events_of(run_dir, "up")) == 4)
        for stopped in run.named(f"ray::{process}"):
            stopped.send_signal(signal.SIGSTOP)
        stopped_at, before = time.monotonic(), last_line(run_dir)
        limit = LIMIT_SECONDS + (longest_build(run_dir) if process == "Collector" else 0.0)
        run.wait_until(lambda: len(events_of(run_dir, "death")) >= len(parts), limit + 20)
        assert time.monotonic() - stopped_at < limit + 10
        run.wait_until(lambda: last_line(run_dir)["frames"] > before["frames"] + 600, 120)
        run.wait_until(lambda: last_line(run_dir)["updates"] > before["updates"] + 300, 120)
        run.interrupt()
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    deaths = events_of(run_dir, "death")
    assert {death["part"] for death in deaths} == parts
    assert all("has not answered for" in death["cause"] for death in deaths), deaths
    # What the learner made in all is owed for what the replay has.
    for line in lines_of(run_dir):
        assert line["updates"] <= 20 * max(0, line["frames"] - 400) / 4 + 1


def test_a_run_that_is_suspended_goes_on_with_all_its_processes(tmp_path):
    """As by Ctrl-Z and `fg`: only the command stands still, and hears of nobody."""
    run_dir = tmp_path / "a"
    with Run(*BUSY, "--total-frames", 10**7, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 600 and last_line(run_dir)["updates"] > 20)
        run.wait_until(lambda: len(events_of(run_dir, "up")) == 4)
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(LIMIT_SECONDS + 30)
        run.process.send_signal(signal.SIGCONT)
        before = last_line(run_dir)
        run.wait_until(lambda: last_line(run_dir)["frames"] > before["frames"] + 600, 300)
        run.wait_until(lambda: last_line(run_dir)["updates"] > before["updates"] + 300, 300)
        run.interrupt()
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    assert events_of(run_dir, "death") == []


def test_a_run_whose_ray_is_stuck_says_so_saves_alone_and_ends(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*BUSY, "--total-frames", 10**7, "--run-dir", run_dir, cwd=tmp_path) as run:
        # By then the learner has given a state.
        run.wait_until(lambda: frames_so_far(run_dir) > 600 and last_line(run_dir)["updates"] > 400, 300)
        (node,) = [process for process in run.alive() if process.name() == "raylet"]
        node.send_signal(signal.SIGSTOP)
        assert run.wait(400) == 1, run.output
        assert run.all_gone(120), run.alive()
    (failure,) = events_of(run_dir, "failure")
    assert failure["cause"].startswith("Ray's node process on this machine is gone or stuck")
    assert events_of(run_dir, "save")[-1]["frames"] == summary_of(run_dir)["frames"] > 600
    last = run.output.strip().splitlines()[-1]
    assert last.startswith("error: Ray's node process on this machine is gone or stuck"), run.output


def test_a_run_on_a_cluster_whose_node_is_stuck_is_saved_and_ends(tmp_path, monkeypatch):
    run_dir = tmp_path / "a"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with head_of_a_cluster(tmp_path) as (address, cluster):
        arguments = (*BUSY, "--address", address, "--total-frames", 10**7, "--run-dir", run_dir)
        with Run(*arguments, cwd=tmp_path) as run:
            run.wait_until(lambda: frames_so_far(run_dir) > 600 and last_line(run_dir)["updates"] > 400, 300)
            (node,) = [process for process in cluster.alive() if process.name() == "raylet"]
            node.send_signal(signal.SIGSTOP)
            assert run.wait(400) == 1, run.output
        assert node.status() == "stopped"
        node.send_signal(signal.SIGCONT)
    last = run.output.strip().splitlines()[-1]
    assert last.startswith("error: Ray's node process on this machine is gone or stuck"), run.output
    saved = saved_of(run_dir)
    assert last.endswith(f"go on with --resume {saved.path}")
    assert saved.frames == summary_of(run_dir)["frames"] > 600
