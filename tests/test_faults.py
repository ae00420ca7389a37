"""Faults on a real Ray: processes are killed with SIGKILL, and what the run promised is compared with what is there."""

import json
import shutil
import signal

import numpy as np
import pytest

from mtray.rundir.checkpoints import checkpoint
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
    versions = [line["weights_version"] for line in lines_of(run_dir)]
    assert versions == sorted(versions), "collectors take newer weights only"
    assert lines_of(run_dir)[-1]["staleness"] < 50, "and they do act with the new learner's"
    assert_whole(run_dir)


def test_every_part_is_killed_once_and_the_run_ends_as_if_nothing_was(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*PARALLEL, "--total-frames", 30_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        for frames, name in ((1000, "Collector"), (4000, "Replay"), (8000, "Learner"), (12_000, "Collector")):
            run.wait_until(lambda frames=frames: frames_so_far(run_dir) > frames)
            run.named(f"ray::{name}")[0].send_signal(signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    summary = summary_of(run_dir)
    assert (summary["exit_reason"], summary["restarts"], summary["frames_lost"]) == ("finished", 4, 0)


def test_a_replay_whose_memory_is_lost_goes_on_from_the_checkpoint_and_says_what_is_lost(tmp_path):
    """As when its whole machine is lost: nobody holds the memory."""
    (tmp_path / "nowhere.py").write_text(
        "import mtray.cluster.processes as processes\n"
        "from mtray.launch import main\n"
        "def attach(address):\n"
        "    raise OSError('on another node')\n"
        "processes.RingMemory.attach = attach\n"
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
    with Run(*arguments, "--total-frames", 1_000_000, cwd=tmp_path) as run:
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
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert [event["frames"] for event in events_of(run_dir, "resume")] == [saved.frames]
    # Once more: nothing is left to do, which is no error for who starts it again and again.
    with Run(*arguments, "--total-frames", total, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert "finished" in run.output


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
    (run_dir / "notes.txt").touch()
    shutil.rmtree(run_dir / "checkpoints")
    with Run(*arguments, "--total-frames", 1500, cwd=tmp_path) as run:
        assert run.wait() == 2, run.output
    assert "remove notes.txt" in run.output


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
    assert 5000 <= summary_of(run_dir)["frames"] < 5000 + 256


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
    *("--learner.updates-per-step", 0.1, "--learner.batch-rows", 32, "--run.log-seconds", 0.5),
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
    assert len(events_of(run_dir, "death")) == 3


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
    saved, summary = saved_of(run_dir), summary_of(run_dir)
    assert saved.frames == summary["frames"] >= 15_000
    # The other one brought the rest, and was learned from to the end.
    assert summary["tasks"]["maker"]["frames"] < 4 * 2 * 400 < 8000 < summary["tasks"]["reacher-easy"]["frames"]
    assert summary["updates"] > 0.1 * (summary["tasks"]["reacher-easy"]["frames"] - 4000) / 2


DETERMINISTIC = (
    *(*SMALL, "--envs-per-task", 1, "--deterministic"),
    *("--run.checkpoint-frames", 2000, "--run.keep-checkpoints", 9),
)


@pytest.mark.parametrize(
    ("flags", "is_cut"),
    [
        (("--host", "inline"), False),
        (("--host", "parallel", "--learner.n-step", 3), False),
        (("--host", "inline", "--engine", "dm_control", "--learner.algorithm", "td3"), False),
        (("--host", "parallel", "--engine", "dm_control"), False),
        (("--host", "inline", "--engine", "envpool"), True),
        (("--host", "inline", "--tasks", "tests.makers:point", "reacher-easy"), True),
    ],
    ids=[
        "mujoco-inline-sac",
        "mujoco-parallel-n-step",
        "dm_control-inline-td3",
        "dm_control-parallel",
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
    for total, resume in ((2000, ()), (5000, ("--resume", "auto")), (6000, ("--resume", "auto"))):
        arguments = (*DETERMINISTIC, *flags, *resume, "--total-frames", total)
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
