"""Faults on a real Ray: processes are killed with SIGKILL, and what the run promised is compared with what is there."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from mtray.cluster.session.checks import has_compiler
from mtray.collect.evaluation import evaluate_policy
from mtray.rundir.checkpoints import checkpoint
from mtray.rundir.checkpoints.policies import load_policy
from tests.processes import Run
from tests.test_launch import PARALLEL, SMALL, frames_so_far, lines_of, rows_of, summary_of

pytestmark = pytest.mark.cluster

# Learner and replay are busy with each other all the time.
BUSY = (*SMALL, "--host", "inline", "--learner.updates-per-step", 1, "--learner.warmup-steps", 100)


def events_of(run_dir, name):
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == name]


def saved_of(run_dir):
    return checkpoint.read(checkpoint.latest(run_dir))


def assert_whole(run_dir):
    """Every frame that was counted is there once, and every update that is owed was made."""
    saved, summary = saved_of(run_dir), summary_of(run_dir)
    assert saved.frames == summary["frames"] == sum(saved.replay["frames"].values())
    for task, rows in rows_of(saved).items():
        assert 2 * np.count_nonzero(rows.view(np.int32)[:, -1] & 1) == saved.replay["frames"][task]
    assert saved.meta["metrics"]["updates"] == summary["updates"] == (summary["frames"] - 400) // 4


def assert_one_clock(run_dir):
    """Times never go back, over all resumes."""
    events = [json.loads(line)["time"] for line in (run_dir / "events.jsonl").read_text().splitlines()]
    lines = [line["time"] for line in lines_of(run_dir)]
    assert events == sorted(events)
    assert lines == sorted(lines)
    assert max(events[-1], lines[-1]) <= summary_of(run_dir)["wall_seconds"] + 0.001


def test_a_replay_that_is_killed_comes_back_with_every_row(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*BUSY, "--total-frames", 12_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        for frames in (1000, 4000):
            run.wait_until(lambda frames=frames: frames_so_far(run_dir) > frames)
            run.named("ray::Replay")[0].send_signal(signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    summary = summary_of(run_dir)
    assert (summary["restarts"], summary["frames_lost"], summary["updates_lost"]) == (2, 0, 0)
    assert [event["source"] for event in events_of(run_dir, "restored")] == ["memory"] * 2
    assert_whole(run_dir)
    # What the dead processes printed can be read.
    deaths = events_of(run_dir, "death")
    assert {event["part"] for event in deaths} == {"the replay"}
    for event in deaths:
        assert f"process {event['process']} on " in (run_dir / event["log"]).read_text()


def test_a_learner_that_is_killed_goes_on_from_its_last_state(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*BUSY, "--total-frames", 12_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 3000)
        run.named("ray::Learner")[0].send_signal(signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    summary = summary_of(run_dir)
    assert (summary["restarts"], summary["frames_lost"]) == (1, 0)
    assert summary["updates_lost"] < 3000
    assert min(line["updates_per_second"] for line in lines_of(run_dir)) >= 0
    (death,) = [line for line in run.output.splitlines() if line.startswith("WARNING: the learner died")]
    assert death == "WARNING: the learner died and is replaced now: its process was killed or crashed"
    assert "(raylet)" not in run.output, "what Ray tells is in a file"
    assert "A worker died" in (run_dir / "logs" / "ray.log").read_text()
    versions = [line["weights_version"] for line in lines_of(run_dir)]
    assert versions == sorted(versions), "collectors take newer weights only"
    assert lines_of(run_dir)[-1]["staleness"] < 50, "and they do act with the new learner's"
    assert_whole(run_dir)


@pytest.mark.timeout(400)
def test_evaluations_go_on_when_the_evaluator_is_killed(tmp_path):
    run_dir = tmp_path / "a"
    arguments = (*BUSY, "--run.evaluate-every", 0.05, "--run.evaluate-episodes", 2, "--total-frames", 40_000_000)
    with Run(*arguments, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 1000)
        run.wait_until(lambda: run.named("ray::Evaluator"))
        run.named("ray::Evaluator")[0].send_signal(signal.SIGKILL)
        run.wait_until(lambda: events_of(run_dir, "evaluation_failed"))
        run.wait_until(lambda: events_of(run_dir, "evaluated"), 200)
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    summary = summary_of(run_dir)
    assert summary["restarts"] == 0, "the run itself has lost nothing"
    (failure,) = events_of(run_dir, "evaluation_failed")
    assert failure["cause"] == "its process was killed or crashed"
    best = [event for event in events_of(run_dir, "evaluated") if event["is_best"]][-1]
    assert best["updates"] > 0
    policy = load_policy(run_dir, "best")
    for task, figures in summary["tasks"].items():
        assert figures["return_evaluated"] is not None
        # The same episodes with the same policy: what was kept is what was evaluated.
        kept = evaluate_policy(policy, task, episodes=2)[task]["returns"]
        assert kept == pytest.approx(best["returns"][task])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("is_cut_off", [False, True], ids=["finished", "stopped while it is evaluated"])
def test_what_a_run_came_to_is_evaluated_last(is_cut_off, tmp_path):
    run_dir = tmp_path / "a"
    episodes = 200 if is_cut_off else 2
    arguments = ("--run.evaluate-every", 60, "--run.evaluate-episodes", episodes, "--total-minutes", 1)
    with Run(*BUSY, *arguments, "--run-dir", run_dir, cwd=tmp_path) as run:
        if is_cut_off:
            run.wait_until(lambda: "evaluating the policy" in run.output, 200)
            run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    events = [json.loads(line)["event"] for line in (run_dir / "events.jsonl").read_text().splitlines()]
    summary, line = summary_of(run_dir), lines_of(run_dir)[-1]
    assert "finished after 1 minute" in summary["exit_reason"]
    assert 60 <= summary["wall_seconds"] == pytest.approx(line["time"], abs=0.001), "the evaluation is not counted"
    if is_cut_off:
        assert "stopping: all is saved, the last evaluation is left out" in run.output
        assert events[-1] == "end"
        return
    assert events[-3:] == ["save", "evaluated", "end"]
    last = events_of(run_dir, "evaluated")[-1]
    assert last["updates"] == line["evaluated_updates"] == summary["updates"]
    policy = load_policy(run_dir)
    for task, returns in last["returns"].items():
        played = evaluate_policy(policy, task, episodes=2)[task]["returns"]
        assert played == pytest.approx(returns), "the newest checkpoint's"
        assert summary["tasks"][task]["return_evaluated"] == pytest.approx(sum(returns) / 2)
    # A run that goes on tells it, though it was made after the checkpoint, until the next one.
    with Run("--resume", run_dir, "--total-minutes", 10, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > summary["frames"])
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0, run.output
    first = next(line for line in lines_of(run_dir) if line["frames"] > summary["frames"])
    assert first["evaluated_updates"] == last["updates"]
    for task, figures in first["tasks"].items():
        assert figures["return_evaluated"] == summary["tasks"][task]["return_evaluated"]


def test_simulators_that_are_killed_or_hang_are_built_anew_in_the_same_collector(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*PARALLEL, "--total-frames", 400_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 1000)
        collector = run.named("ray::Collector")[0]
        for count, kill in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
            steppers = [child for child in collector.children(recursive=True) if not child.children()]
            victim = next(child for child in steppers if "resource_tracker" not in " ".join(child.cmdline()))
            victim.send_signal(kill)
            run.wait_until(lambda count=count: len(events_of(run_dir, "rebuilt")) == count)
            assert not victim.is_running()
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    summary, saved = summary_of(run_dir), saved_of(run_dir)
    assert summary["restarts"] == 0
    assert not events_of(run_dir, "death")
    killed, hung = events_of(run_dir, "rebuilt")
    assert "killed by SIGKILL" in killed["cause"]
    assert "hangs" in hung["cause"]
    for name, task in summary["tasks"].items():
        assert task["broken_episodes"] == 2 * [killed["task"], hung["task"]].count(name)
        assert task["frames"] == saved.replay["frames"][name]


def test_every_part_is_killed_once_and_the_run_ends_as_if_nothing_was(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*PARALLEL, "--total-frames", 30_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        for frames, name in ((1000, "Collector"), (4000, "Replay"), (8000, "Learner"), (12_000, "Collector")):
            run.wait_until(lambda frames=frames: frames_so_far(run_dir) > frames)
            run.named(f"ray::{name}")[0].send_signal(signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    summary = summary_of(run_dir)
    deaths = [(death["part"], death["cause"]) for death in events_of(run_dir, "death")]
    assert (summary["exit_reason"], summary["restarts"], summary["frames_lost"]) == ("finished", 4, 0), deaths


def test_a_replay_whose_memory_is_lost_goes_on_from_the_checkpoint_and_says_what_is_lost(tmp_path):
    """As when its whole machine is lost: nobody holds the memory."""
    (tmp_path / "nowhere.py").write_text(
        "import mtray.cluster.rows as rows\n"
        "from mtray.launch import main\n"
        "def attach(address):\n"
        "    raise OSError('on another node')\n"
        "rows.RingMemory.attach = attach\n"
        "raise SystemExit(main())\n"
    )
    run_dir = tmp_path / "a"
    arguments = (*BUSY, "--total-frames", 12_000, "--run.checkpoint-frames", 1500, "--run-dir", run_dir)
    with Run(*arguments, cwd=tmp_path, module="nowhere") as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 4000)
        run.named("ray::Replay")[0].send_signal(signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    (restored,) = events_of(run_dir, "restored")
    assert restored["source"] == "checkpoint"
    assert min(line["frames_per_second"] for line in lines_of(run_dir)) >= 0
    lost = summary_of(run_dir)["frames_lost"]
    assert 0 <= lost < 4000
    assert restored["cause"] == f"{lost} frames lost"
    saved, summary = saved_of(run_dir), summary_of(run_dir)
    assert saved.frames == summary["frames"] >= 12_000
    for task, rows in rows_of(saved).items():
        assert 2 * np.count_nonzero(rows.view(np.int32)[:, -1] & 1) == saved.replay["frames"][task]


def test_a_driver_that_is_killed_leaves_no_process_and_resume_auto_goes_on(tmp_path):
    run_dir = tmp_path / "a"
    arguments = (*PARALLEL, "--run-dir", run_dir, "--resume", "auto", "--run.checkpoint-frames", 1000)
    compiler = ("--learner.compile", "inductor" if has_compiler("cpu") else "off")
    with Run(*arguments, *compiler, "--total-frames", 1_000_000, cwd=tmp_path) as run:
        run.wait_until(lambda: (run_dir / "checkpoints" / "latest").exists() and frames_so_far(run_dir) > 4000)
        assert len(run.alive()) > 8
        run.process.kill()
        assert run.all_gone(60), run.alive()
    saved = saved_of(run_dir)
    kept = [line["frames"] for line in lines_of(run_dir) if line["time"] <= saved.meta["metrics"]["seconds"]]
    total = saved.frames + 3000
    with Run(*arguments, "--total-frames", total, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert f"resuming {saved.path}" in run.output
    assert total <= summary_of(run_dir)["frames"] < total + 2 * 256
    lines = lines_of(run_dir)
    assert [line["frames"] for line in lines[: len(kept)]] == kept
    assert_one_clock(run_dir)
    assert [event["frames"] for event in events_of(run_dir, "resume")] == [saved.frames]
    # Once more: nothing is left to do, which is no error for who starts it again and again.
    with Run(*arguments, "--total-frames", total, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert "finished" in run.output


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_run_whose_own_ray_dies_is_saved_by_the_driver_and_ends_with_one_line(tmp_path, name):
    run_dir = tmp_path / "a"
    with Run(*BUSY, "--host", "inline", "--total-frames", 1_000_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 3000)
        (process,) = [process for process in run.alive() if process.name() == name]
        process.send_signal(signal.SIGKILL)
        assert run.wait(60) == 1, run.output
        assert run.all_gone(), run.alive()
    last = run.output.strip().splitlines()[-1]
    assert last.startswith(f"error: Ray's process {name} was killed by SIGKILL; ")
    assert "(raylet)" not in run.output
    assert "Traceback" not in run.output
    saved, summary = saved_of(run_dir), summary_of(run_dir)
    assert last.endswith(f"go on with --resume {saved.path}")
    assert summary["exit_reason"] == f"failed: {last.removeprefix('error: ')}"
    assert (saved.frames, saved.meta["metrics"]["updates"]) == (summary["frames"], summary["updates"])
    assert saved.frames > 3000
    for task, rows in rows_of(saved).items():
        assert 2 * np.count_nonzero(rows.view(np.int32)[:, -1] & 1) == saved.replay["frames"][task]
    assert [event["frames"] for event in events_of(run_dir, "save")] == [saved.frames]
    assert [event["cause"] for event in events_of(run_dir, "end")] == [last.removeprefix("error: ")]
    with Run("--resume", run_dir, "--total-frames", saved.frames + 1000, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert_whole(run_dir)


def test_a_run_that_its_shell_has_left_is_saved_when_its_ray_dies(tmp_path):
    """Ray's core takes it for a process that the raylet has started, and would end it at once."""
    run_dir = tmp_path / "a"
    arguments = (*BUSY, "--host", "inline", "--total-frames", 1_000_000, "--run-dir", run_dir)
    with Run(*arguments, cwd=tmp_path, module="tests.orphan") as run:
        assert run.wait() == 0
        until = time.monotonic() + 120
        while frames_so_far(run_dir) < 3000:
            assert time.monotonic() < until, run.output
            time.sleep(0.1)
        (driver,) = [process for process in run.alive() if "mtray.launch" in process.cmdline()]
        if driver.ppid() != 1:
            pytest.skip("orphans are taken in by another process than the first")
        (raylet,) = [process for process in run.alive() if process.name() == "raylet"]
        raylet.send_signal(signal.SIGKILL)
        assert run.all_gone(60), run.alive()
    last = run.output.strip().splitlines()[-1]
    saved = saved_of(run_dir)
    assert last.endswith(f"go on with --resume {saved.path}")
    assert saved.frames == summary_of(run_dir)["frames"] > 3000


@contextlib.contextmanager
def head_of_a_cluster(cwd, tries=3):
    """Yield the address of a cluster of one node and its processes, as `ray start` of a user's makes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A folder of its own: in the usual one Ray notes the cluster for whoever starts a Ray later.
    folder = tempfile.mkdtemp(prefix="ray-")
    head = (
        *("start", "--head", "--block", "--num-cpus=4", "--include-dashboard=false", "--node-ip-address=127.0.0.1"),
        *(f"--temp-dir={folder}", f"--port={port}"),
    )
    with Run(*head, cwd=cwd, module="ray.scripts.scripts") as cluster:
        cluster.wait_until(lambda: "Ray runtime started" in cluster.output or cluster.process.poll() is not None)
        has_started = cluster.process.poll() is None
        if has_started:
            yield f"127.0.0.1:{port}", cluster
    shutil.rmtree(folder)
    if not has_started:
        # Ray gives up after half a minute, which on a busy machine is not always enough.
        assert "timed out during startup" in cluster.output, cluster.output
        assert tries > 1, cluster.output
        with head_of_a_cluster(cwd, tries - 1) as started:
            yield started


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_run_on_a_cluster_is_saved_by_the_driver_too_when_its_node_dies(tmp_path, monkeypatch, name):
    run_dir = tmp_path / "a"
    # Whatever this user's home has of tokens.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with head_of_a_cluster(tmp_path) as (address, cluster):
        arguments = (*BUSY, "--address", address, "--total-frames", 1_000_000, "--run-dir", run_dir)
        with Run(*arguments, cwd=tmp_path) as run:
            run.wait_until(lambda: frames_so_far(run_dir) > 3000)
            (process,) = [process for process in cluster.alive() if process.name() == name]
            process.send_signal(signal.SIGKILL)
            assert run.wait(60) == 1, run.output
    last = run.output.strip().splitlines()[-1]
    assert last.startswith(f"error: Ray's process {name} on this machine is gone; ")
    saved = saved_of(run_dir)
    assert last.endswith(f"go on with --resume {saved.path}")
    assert saved.frames > 3000
    for task, rows in rows_of(saved).items():
        assert 2 * np.count_nonzero(rows.view(np.int32)[:, -1] & 1) == saved.replay["frames"][task]


def test_an_address_is_tried_with_the_users_token_and_a_half_dead_cluster_is_refused_within_seconds(
    tmp_path, monkeypatch
):
    # As `ray get-auth-token --generate` leaves it: a token, and no word of it in the environment.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)

    def answer(address):
        code = "import sys; from mtray.cluster.session.session import check_address; check_address(sys.argv[1])"
        command = [sys.executable, "-c", code, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr.strip().rpartition("\n")[2]

    with head_of_a_cluster(tmp_path) as (address, cluster):
        assert answer(address) == ""
        monkeypatch.setenv("RAY_AUTH_TOKEN", "1" * 64)
        assert "it asks for a token that is not this user's" in answer(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        named = {process.name(): process for process in cluster.alive()}
        gcs, raylet = named["gcs_server"], named["raylet"]
        gcs.send_signal(signal.SIGSTOP)
        assert "no Ray head has answered within 30 seconds" in answer(address)
        gcs.send_signal(signal.SIGCONT)
        # Its parent would end the rest with it.
        cluster.process.send_signal(signal.SIGSTOP)
        raylet.kill()
        assert "its head answers, but none of its nodes" in answer(address)
        gcs.kill()
        assert "Connection refused" in answer(address)


def test_resume_auto_starts_where_an_earlier_start_left_no_checkpoint(tmp_path):
    run_dir = tmp_path / "a"
    arguments = (*SMALL, "--host", "inline", "--run-dir", run_dir, "--resume", "auto")
    with Run(*arguments, "--total-frames", 1_000_000, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 0)
        run.process.kill()
        assert run.all_gone(60), run.alive()
    assert not (run_dir / "checkpoints").exists()
    with Run(*arguments, "--total-frames", 1500, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert summary_of(run_dir)["exit_reason"] == "finished"
    assert lines_of(run_dir)[0]["frames"] < 1500
    assert len(events_of(run_dir, "start")) == 2
    assert_one_clock(run_dir)
    (run_dir / "notes.txt").touch()
    shutil.rmtree(run_dir / "checkpoints")
    with Run(*arguments, "--total-frames", 1500, cwd=tmp_path) as run:
        assert run.wait() == 2, run.output
    assert "holds notes.txt already: choose a new folder" in run.output


def test_a_run_resumes_from_an_older_checkpoint_from_a_damaged_newest_one_and_into_a_fork(tmp_path):
    run_dir, fork = tmp_path / "a", tmp_path / "fork"
    every = ("--run.checkpoint-frames", 1000, "--run.keep-checkpoints", 9)
    with Run(*SMALL, *every, "--host", "inline", "--total-frames", 4000, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    first, *_, newest = sorted((run_dir / "checkpoints").glob("[0-9]*"))
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with Run("--resume", first, "--run-dir", fork, "--total-frames", 3000, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert 3000 <= summary_of(fork)["frames"] < 3000 + 256
    first_rows, fork_rows = rows_of(checkpoint.read(first)), rows_of(saved_of(fork))
    for task, rows in first_rows.items():
        assert fork_rows[task][: len(rows)].tobytes() == rows.tobytes()
    (newest / "learner.pt").write_bytes(b"half")
    with Run("--resume", run_dir, "--total-frames", 5000, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert f"skipped: {newest}/learner.pt can't be read" in run.output
    (skipped,) = events_of(run_dir, "skipped")
    assert skipped["cause"].startswith(f"{newest}/learner.pt can't be read")
    assert events_of(run_dir, "resume")[-1]["superseded"] == [newest.name]
    assert 5000 <= summary_of(run_dir)["frames"] < 5000 + 256


def test_a_run_that_goes_on_from_an_older_checkpoint_stays_with_it_also_if_it_is_killed_before_it_saves(tmp_path):
    run_dir = tmp_path / "a"
    every = ("--run.checkpoint-frames", 1000, "--run.keep-checkpoints", 9)
    with Run(*SMALL, *every, "--host", "inline", "--total-frames", 4000, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    first, *newer = sorted((run_dir / "checkpoints").glob("[0-9]*"))
    with Run("--resume", first, "--total-frames", 9000, cwd=tmp_path) as run:
        run.wait_until(lambda: events_of(run_dir, "resume"))
        run.process.kill()
        assert run.all_gone(60), run.alive()
    for path in newer:
        # New ones may have the same names.
        (path / "old").touch()
    with Run("--resume", run_dir, "--total-frames", 4000, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    names = [path.name for path in newer]
    assert f"resuming {first}; newer ones will be removed when this run has saved ({', '.join(names)})" in run.output
    events = events_of(run_dir, "resume")
    assert [event["checkpoint"] for event in events] == [str(first)] * 2
    assert [event["superseded"] for event in events] == [names] * 2
    left = {path.name for path in (run_dir / "checkpoints").glob("[0-9]*")}
    assert first.name in left
    assert not list((run_dir / "checkpoints").glob("*/old"))
    assert_one_clock(run_dir)


FRAGILE = (
    "from mtray.testing import CountingEnv\n"
    "class Fragile(CountingEnv):\n"
    "    steps = 0\n"
    "    def _step(self, data):\n"
    "        self.steps += 1\n"
    "        if self.steps == 400:\n"
    "            raise ValueError('the arm hit the table')\n"
    "        return super()._step(data)\n"
    "def maker(num_envs, seed):\n"
    "    return Fragile(num_envs, truncate_after=10)\n"
)
FRAGILE_SETTINGS = (
    *("--workers", 1, "--envs-per-task", 2, "--host", "inline", "--learner.warmup-steps", 50),
    *("--learner.updates-per-step", 0.1, "--learner.batch-rows", 32, "--learner.compile", "off"),
    *("--run.log-seconds", 0.5),
)


@pytest.mark.parametrize("flags", [(), ("reacher-easy", "--on-task-failure", "abort")], ids=["alone", "abort"])
def test_a_task_that_keeps_failing_ends_the_run_with_its_error_and_saves(tmp_path, flags):
    (tmp_path / "fragile.py").write_text(FRAGILE)
    run_dir = tmp_path / "a"
    arguments = ("--tasks", "fragile:maker", *flags, *FRAGILE_SETTINGS, "--run-dir", run_dir)
    with Run(*arguments, cwd=tmp_path) as run:
        assert run.wait() == 1, run.output
        assert run.all_gone(), run.alive()
    assert "ValueError: the arm hit the table" in run.output.strip().splitlines()[-1]
    # Four processes, each of about 400 steps of two copies.
    assert saved_of(run_dir).frames == summary_of(run_dir)["frames"] > 4 * 2 * 300
    # Each failure is told, and its traceback is in the file of its process.
    assert "(4 times in a row)" in run.output.strip().splitlines()[-1]
    failures = events_of(run_dir, "rebuilt")
    assert len(failures) == 4
    trace = next((run_dir / "logs").glob("collector-0-*.log")).read_text()
    assert trace.count("raise ValueError('the arm hit the table')") == 4
    assert 'fragile.py", line 7, in _step' in trace
    for failure in failures:
        assert f"the traceback is in {run_dir / 'logs'}" in failure["cause"]
        assert failure["cause"] in run.output


def test_a_task_that_keeps_failing_is_set_aside_and_the_run_goes_on_with_the_other(tmp_path):
    (tmp_path / "fragile.py").write_text(FRAGILE)
    run_dir = tmp_path / "a"
    arguments = ("--tasks", "fragile:maker", "reacher-easy", *FRAGILE_SETTINGS, "--total-frames", 15_000)
    with Run(*arguments, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 1, run.output
        assert run.all_gone(), run.alive()
    last = run.output.strip().splitlines()[-1]
    assert last.startswith("error: finished without maker, which failed: ")
    assert "ValueError: the arm hit the table" in last
    assert [event["part"] for event in events_of(run_dir, "set_aside")] == ["maker"]
    assert ["the arm hit the table" in event["cause"] for event in events_of(run_dir, "rebuilt")] == [True] * 4
    assert run.output.count("task 'maker' failed 4 times in a row and the run goes on without it: ") == 1
    assert "set_aside" not in run.output
    saved, summary = saved_of(run_dir), summary_of(run_dir)
    assert saved.frames == summary["frames"] >= 15_000
    # The other one brought the rest, and was learned from to the end.
    assert summary["tasks"]["maker"]["frames"] < 4 * 2 * 400 < 8000 < summary["tasks"]["reacher-easy"]["frames"]
    assert summary["updates"] > 0.1 * (summary["tasks"]["reacher-easy"]["frames"] - 4000) / 2
    # Whoever starts it again is told the same.
    with Run("--resume", "auto", "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 1, run.output
    assert "no minutes or frames left, and it failed: finished without maker, which failed: " in run.output
    assert summary_of(run_dir) == summary


DETERMINISTIC = (
    *(*SMALL, "--envs-per-task", 1, "--deterministic"),
    *("--run.checkpoint-frames", 2000, "--run.keep-checkpoints", 9),
)


@pytest.mark.parametrize(
    ("flags", "is_cut"),
    [
        (("--host", "inline"), False),
        (("--host", "parallel", "--learner.n-step", 3), False),
        (("--host", "parallel", "--engine", "dm_control", "--learner.algorithm", "td3"), False),
        (("--host", "inline", "--engine", "envpool"), True),
        (("--host", "inline", "--tasks", "tests.makers:point", "reacher-easy"), True),
    ],
    ids=[
        "mujoco-inline-sac",
        "mujoco-parallel-n-step",
        "dm_control-parallel-td3",
        "envpool-inline",
        "torchrl-and-mujoco-inline",
    ],
)
def test_a_run_in_lockstep_that_was_stopped_goes_on_bit_for_bit_as_an_unbroken_one(tmp_path, flags, is_cut):
    if "envpool" in flags:
        pytest.importorskip("envpool")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with Run(*DETERMINISTIC, *flags, "--total-frames", 6000, "--run-dir", whole, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    # One stop at a checkpoint's frames, one between two.
    for total in (2000, 5000, 6000):
        arguments = (*DETERMINISTIC, *flags, "--resume", "auto", "--total-frames", total)
        with Run(*arguments, "--run-dir", broken, cwd=tmp_path) as run:
            assert run.wait() == 0, run.output
    assert "goes on from a multiple of --run.checkpoint-frames" in run.output
    one, other = saved_of(whole), saved_of(broken)
    assert one.frames == other.frames
    assert one.policy == other.policy
    assert one.learner == other.learner
    before, after = rows_of(one), rows_of(other)
    for task, rows in before.items():
        assert rows.tobytes() == after[task].tobytes()
    for part in ("frames", "written", "statistics", "generator"):
        assert one.replay[part] == other.replay[part]
    summaries = [summary_of(run_dir) | {"wall_seconds": 0} for run_dir in (whole, broken)]
    assert summaries[0] == summaries[1]
    assert one.meta["metrics"]["tasks"] == other.meta["metrics"]["tasks"]
    # An episode of reacher-easy has 1,000 frames, and between two checkpoints a copy takes 500.
    assert summaries[0]["tasks"]["reacher-easy"]["episodes"] == (0 if is_cut else 2)


def test_a_run_in_lockstep_that_is_resumed_with_fewer_collectors_begins_new_episodes(tmp_path):
    arguments = (*DETERMINISTIC, "--host", "inline", "--run-dir", tmp_path / "a")
    with Run(*arguments, "--total-frames", 2000, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert len(saved_of(tmp_path / "a").collectors) == 2
    arguments = (*arguments, "--workers", 1, "--resume", "auto", "--total-frames", 3800)
    with Run(*arguments, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    # A copy took 512 frames and then 896. An episode of 1,000 would have ended if the first collector's had gone on.
    assert summary_of(tmp_path / "a")["tasks"]["reacher-easy"]["episodes"] == 0
