"""Whole runs: real Ray, real simulators, real signals; what they leave behind, in files and in processes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import mtray
from mtray.launch import parse
from mtray.rundir.checkpoints import checkpoint
from mtray.rundir.directory import describe
from tests.processes import Run, chosen_here

# Light and short: two real tasks of different widths.
TASKS = ("--tasks", "cartpole-swingup", "reacher-easy")
SMALL = (
    *TASKS,
    *("--workers", 2, "--envs-per-task", 2, "--run.log-seconds", 0.5, "--learner.batch-rows", 32),
    *("--learner.warmup-steps", 200, "--learner.updates-per-step", 0.05, "--replay.capacity-rows", 20000),
    # The evaluator starts a process, and a compiler has a core for minutes: tests of them ask for them.
    *("--run.evaluate-every", 0, "--learner.compile", "off"),
)

METRICS, _, EVENTS = (Path(__file__).parents[1] / "docs/metrics.md").read_text().partition("## Events")
METRICS = METRICS.partition("## One clock")[0]

# With a process per task of each collector.
PARALLEL = (*SMALL, "--host", "parallel")


def lines_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def summary_of(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def rows_of(saved):
    """Each task's rows in a checkpoint, as one array."""
    return {task: np.concatenate([chunk.load() for chunk in chunks]) for task, chunks in saved.rows.items()}


def frames_so_far(run_dir):
    path = run_dir / "metrics.jsonl"
    whole = path.read_text().splitlines()[:-1] if path.exists() else []
    return json.loads(whole[-1])["frames"] if whole else 0


def test_a_run_from_command_to_evaluation(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*SMALL, "--host", "inline", "--total-frames", 18_500, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    assert not (tmp_path / ".ray").exists(), "a token in the home folder would be asked for by every cluster after it"
    summary = summary_of(run_dir)
    assert summary["exit_reason"] == "finished"
    assert summary["frames"] == sum(task["frames"] for task in summary["tasks"].values())
    # A rollout of one collector is 2 tasks x 2 copies x 16 steps x 2 frames. The run ends with the rollout that reaches
    # the total; one of the other collector may count too.
    assert 18_500 <= summary["frames"] < 18_500 + 256
    assert summary["updates"] == int(0.05 * (summary["frames"] - 800) / 4)
    assert len({task["frames"] for task in summary["tasks"].values()}) == 1
    for task in summary["tasks"].values():
        # 4 copies of both collectors made 9250 frames; an episode has 1000. Episodes that began after the warm-up are
        # the policy's.
        assert 5 <= task["episodes"] <= 9
        assert 0 <= task["return_mean"] <= 1000

    config = json.loads((run_dir / "config.json").read_text())
    assert config["config"]["tasks"] == ["cartpole-swingup", "reacher-easy"]
    assert {"torch", "torchrl", "ray", "dm_control", "mujoco"} <= set(config["versions"])
    keys = {"time", "frames", "updates", "frames_per_second", "updates_per_second", "weights_version", "staleness"}
    for line in lines_of(run_dir):
        assert keys <= set(line)
        for figures in line["tasks"].values():
            assert {"frames", "episodes", "return_mean", "return_last"} <= set(figures)
    last = lines_of(run_dir)[-1]
    assert last["frames"] == summary["frames"]
    of_run, of_task = (set(re.findall(r"`(\w+)`", part)) for part in METRICS.split("| of each task |"))
    assert last.keys() - {"tasks"} <= of_run
    for figures in last["tasks"].values():
        assert figures.keys() == of_task, "docs/metrics.md must document every figure of a task"
        assert 0 < figures["data_age"] < 9250
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert {"placed", "up", "warm", "save"} <= {event["event"] for event in events}
    for event in events:
        assert event.keys() | {event["event"]} <= set(re.findall(r"`(\w+)`", EVENTS)), (
            "docs/metrics.md must document every event"
        )
    assert list((run_dir / "tensorboard").glob("events*"))
    saved = checkpoint.read(checkpoint.latest(run_dir))
    assert saved.frames == summary["frames"]
    assert saved.replay["frames"] == {name: task["frames"] for name, task in summary["tasks"].items()}

    policy = mtray.load_policy(run_dir)
    env = mtray.make_task_env("cartpole-swingup")
    assert policy(env.reset())["action"].shape == (1,)

    with Run(run_dir, "--episodes", 2, "--json", "eval.json", cwd=tmp_path, module="mtray.evaluate") as evaluation:
        assert evaluation.wait() == 0, evaluation.output
    results = json.loads((tmp_path / "eval.json").read_text())
    assert set(results) == {"cartpole-swingup", "reacher-easy"}
    for figures in results.values():
        assert figures["episodes"] == len(figures["returns"]) == 2
        assert figures["return_mean"] == pytest.approx(np.mean(figures["returns"]))
        assert figures["return_std"] == pytest.approx(np.std(figures["returns"]))


@pytest.mark.parametrize(
    "command",
    [
        "--resume auto --run-dir ~/a_b",
        "--resume auto --run_dir ~/a_b",
        "--run_dir=~/a_b --resume=auto",
        "--run-dir ~/other --run_dir=~/a_b --resume ~/other --resume auto",
        "--resume ~/a_b",
        "--resume=~/a_b",
        "--resume ~/other --resume ~/a_b",
        "--resume auto --resume=~/a_b --run-dir ~/new",
    ],
)
def test_a_resume_has_the_saved_settings_however_its_options_are_written(tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved = f"checkpoints/{100:012d}"
    for name, workers in (("a_b", 7), ("other", 5)):
        config = mtray.Config(workers=workers)
        (tmp_path / name / saved).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(describe(config, config)))
    assert parse(command.split()).workers == 7


@pytest.mark.parametrize("name", ["best-000000000100", ".000000000100.partial"])
def test_a_start_that_left_no_checkpoint_has_no_settings_to_go_on_with(tmp_path, name):
    config = mtray.Config(workers=7)
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / name / "meta.json").touch()
    (tmp_path / "config.json").write_text(json.dumps(describe(config, config)))
    assert parse(["--resume", "auto", "--run-dir", str(tmp_path)]).workers == mtray.Config().workers


def test_resume_none_is_a_new_run():
    assert parse(["--resume", "None"]) == mtray.Config()


@pytest.mark.cluster
def test_the_default_command_with_more_workers_than_cores(tmp_path):
    run_dir = tmp_path / "a"
    with Run("--workers", 8, "--host", "parallel", "--total-frames", 4000, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    assert summary_of(run_dir)["frames"] >= 4000
    assert "26 processes (16 simulate)" in run.output
    assert set(summary_of(run_dir)["tasks"]) == {"humanoid-stand", "humanoid-walk"}


@pytest.mark.cluster
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_the_learner_has_a_core_to_itself_while_it_has_data(tmp_path):
    every, cores = frozenset(os.sched_getaffinity(0)), {}

    def is_kept():
        cores.clear()
        for process in run.alive():
            with contextlib.suppress(psutil.Error):
                name = " ".join(process.cmdline())
                kind = name.partition(".")[0] if name.startswith("ray::") else name.split()[0]
                cores.setdefault(kind, set()).add(frozenset(process.cpu_affinity()))
        return cores.get("ray::Collector", {every}) != {every}

    arguments = (*TASKS, "--workers", 1, "--host", "parallel", "--learner.warmup-steps", 200, "--run.log-seconds", 0.5)
    with Run(*arguments, "--device", "cpu", "--run.evaluate-every", 0, cwd=tmp_path) as run:
        # A process may be changing its title, or not have been kept from it yet.
        kinds = {"ray::Collector", "ray::Replay", "ray::Learner"}
        run.wait_until(lambda: is_kept() and cores.keys() >= kinds and cores["ray::Collector"] == cores["ray::Replay"])
        (left,) = cores["ray::Collector"]
        assert len(every - left) == 1
        # The fork server and simulators.
        assert any(left in found for name, found in cores.items() if not name.startswith("ray::")), cores
        assert cores["ray::Learner"] == {every}
        run.interrupt()
        assert run.wait() == 0, run.output


@pytest.mark.cluster
def test_a_run_on_envpool(tmp_path):
    pytest.importorskip("envpool")
    run_dir = tmp_path / "a"
    arguments = (*SMALL, "--engine", "envpool", "--host", "inline", "--total-frames", 9000)
    with Run(*arguments, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    summary = summary_of(run_dir)
    assert 9000 <= summary["frames"] < 9000 + 256
    assert all(task["episodes"] >= 1 for task in summary["tasks"].values())


@pytest.mark.gpu
def test_a_run_whose_learner_is_on_a_gpu(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*SMALL, "--device", "cuda", "--total-frames", 3000, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    made = summary_of(run_dir)["updates"]
    assert made > 0
    assert mtray.load_policy(run_dir).mean.device.type == "cpu"
    with Run("--resume", run_dir, "--total-frames", 4000, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert summary_of(run_dir)["updates"] > made


@pytest.mark.cluster
def test_a_run_of_td3(tmp_path):
    run_dir = tmp_path / "a"
    arguments = (*SMALL, "--host", "inline", "--learner.algorithm", "td3", "--learner.action-noise", 0.3)
    with Run(*arguments, "--total-frames", 3000, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert summary_of(run_dir)["updates"] > 0
    policy = mtray.load_policy(run_dir)
    assert policy.action_noise == 0.3
    assert policy.heads.output.bias.shape[-1] == policy.action_mask.shape[-1]
    with Run("--resume", run_dir, "--total-frames", 4000, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output


@pytest.mark.cluster
def test_ctrl_c_saves_and_exits_0_and_the_run_resumes(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*PARALLEL, "--total-frames", 1_000_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 2000)
        # Of what Ray kills, folders are left; those of old sessions are removed.
        servers = [process for process in run.alive() if "multiprocessing.forkserver" in " ".join(process.cmdline())]
        sockets = [socket.laddr for server in servers for socket in server.net_connections("unix") if socket.laddr]
        # Of Ray's own processes only those that a run needs.
        commands = " ".join(" ".join(process.cmdline()) for process in run.alive())
        assert all(name in commands for name in ("/raylet ", "/gcs_server "))
        others = "dashboard/dashboard.py", "/monitor.py", "log_monitor.py", "DashboardAgent", "RuntimeEnvAgent"
        assert not any(name in commands for name in others)
        # The second collector may be starting still.
        assert sockets
        assert all("/ray/session_" in socket for socket in sockets), sockets
        run.interrupt()
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    first = summary_of(run_dir)
    assert first["exit_reason"] == "interrupted"
    saved = checkpoint.read(checkpoint.latest(run_dir))
    before = rows_of(saved)
    assert saved.frames == first["frames"] == sum(saved.replay["frames"].values())

    # A resume that collects nothing leaves the settings as they were, and a smaller ring is told.
    config = (run_dir / "config.json").read_bytes()
    with Run("--resume", run_dir, "--replay.capacity-rows", 300, cwd=tmp_path) as run:
        run.wait_until(lambda: (run_dir / "config.json").read_bytes() != config)
        run.interrupt()
        assert run.wait() == 0, run.output
    assert (run_dir / "config.json").read_bytes() == config
    assert "--replay.capacity-rows 300: of the " in run.output

    total = first["frames"] + 3000
    with Run("--resume", run_dir, "--total-frames", total, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    second = summary_of(run_dir)
    assert second["exit_reason"] == "finished"
    assert total <= second["frames"] < total + 256
    assert second["updates"] == int(0.05 * (second["frames"] - 800) / 4)
    restored = checkpoint.read(checkpoint.latest(run_dir))
    after = rows_of(restored)
    for task, rows in before.items():
        assert np.array_equal(after[task][: len(rows)].view(np.int32), rows.view(np.int32))


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_a_signal_to_the_whole_group_saves_and_exits_0(tmp_path, name):
    """As `timeout` sends it: to the command, and then to all of its process group."""
    run_dir = tmp_path / "a"
    with Run(*SMALL, "--total-frames", 1_000_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 1000)
        run.process.send_signal(getattr(signal, f"SIG{name}"))
        os.killpg(run.process.pid, getattr(signal, f"SIG{name}"))
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    assert summary_of(run_dir)["exit_reason"] == "interrupted"
    assert checkpoint.read(checkpoint.latest(run_dir)).frames == summary_of(run_dir)["frames"] > 1000
    assert "SIGTERM received" not in run.output
    assert run.output.count("stopping: saving a checkpoint") == 1


@pytest.mark.cluster
def test_a_second_signal_ends_the_run_at_once_and_leaves_no_process(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*SMALL, "--total-frames", 1_000_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 1000)
        run.process.terminate()
        time.sleep(0.6)
        run.process.terminate()
        # Saved before the second signal; interrupted by it; or ended by it during Ray's shutdown, which resets signals.
        assert run.wait(60) in (0, 1, -signal.SIGTERM), run.output
        assert run.all_gone(), run.alive()
    assert "Traceback" not in run.output
    assert summary_of(run_dir)["exit_reason"].startswith(("interrupted", "failed: KeyboardInterrupt"))


@pytest.mark.cluster
def test_two_launches_in_one_run_directory_run_once_and_the_other_names_the_first(tmp_path):
    run_dir = tmp_path / "a"
    arguments = (*SMALL, "--host", "inline", "--total-frames", 3000, "--run-dir", run_dir)
    with Run(*arguments, cwd=tmp_path) as one, Run(*arguments, cwd=tmp_path) as other:
        codes = {one.wait(): one, other.wait(): other}
        assert codes.keys() == {0, 2}, (one.output, other.output)
        assert f"in use by process {codes[0].process.pid} on " in codes[2].output
        assert codes[2].output.count("\n") == 1
    assert summary_of(run_dir)["exit_reason"] == "finished"


@pytest.mark.cluster
def test_host_auto_is_resolved_again_when_a_run_is_resumed(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*SMALL, "--total-frames", 1000, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    config = json.loads((run_dir / "config.json").read_text())
    assert config["config"]["host"] == "auto"
    assert config["chosen"]["host"] in ("inline", "parallel")
    with Run("--resume", run_dir, "--total-frames", "2e3", "--host", "parallel", cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    chosen = json.loads((run_dir / "config.json").read_text())["chosen"]
    others = chosen_here(chosen["device"], batch_rows=32, ratio=0.05, compiler="off")
    assert chosen == {"host": "parallel", "workers": 2, "envs_per_task": 2, **others}


@pytest.mark.cluster
@pytest.mark.parametrize("seconds", [0.8, 4.0])
def test_ctrl_c_while_everything_starts_exits_0_and_leaves_no_process(tmp_path, seconds):
    with Run(*PARALLEL, "--total-frames", 1_000_000, "--run-dir", tmp_path / "a", cwd=tmp_path) as run:
        # The handler is set when Ray is started.
        run.wait_until(lambda: len(run.alive()) > 1)
        time.sleep(seconds)
        run.interrupt()
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    assert summary_of(tmp_path / "a")["exit_reason"] == "interrupted"
    is_saved = (tmp_path / "a" / "checkpoints").exists()
    assert ("saving a checkpoint" in run.output, "nothing is saved" in run.output) == (is_saved, not is_saved)


def test_the_commit_is_recorded_only_from_a_checkout_of_mtray(tmp_path, monkeypatch):
    from mtray.rundir import directory

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *arguments], cwd=tmp_path, check=True)

    package = tmp_path / "mtray" / "rundir"
    package.mkdir(parents=True)
    (package / "directory.py").touch()
    monkeypatch.setattr(directory, "__file__", str(package / "directory.py"))
    assert directory.git_commit() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    commit = directory.git_commit()
    assert len(commit) == 40
    (package / "directory.py").write_text("changed")
    assert directory.git_commit() == f"{commit}-dirty"
    inner = tmp_path / "environment" / "mtray" / "rundir"
    inner.mkdir(parents=True)
    monkeypatch.setattr(directory, "__file__", str(inner / "directory.py"))
    assert directory.git_commit() is None


@pytest.mark.cluster
def test_a_collector_that_is_killed_is_replaced_and_every_frame_counts_once(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*PARALLEL, "--total-frames", 30_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: frames_so_far(run_dir) > 1000)
        victim = run.wait_until(lambda: run.named("ray::Collector"))[0]
        simulators = [child.pid for child in victim.children(recursive=True)]
        assert simulators
        victim.send_signal(signal.SIGKILL)
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    summary = summary_of(run_dir)
    assert summary["restarts"] == 1
    assert 30_000 <= summary["frames"] < 30_000 + 3 * 256
    saved = checkpoint.read(checkpoint.latest(run_dir))
    assert summary["frames"] == sum(saved.replay["frames"].values())
    for task in summary["tasks"]:
        flags = rows_of(saved)[task].view(np.int32)[:, -1]
        assert 2 * np.count_nonzero(flags & 1) == summary["tasks"][task]["frames"]


@pytest.mark.cluster
def test_a_collector_that_can_not_be_built_ends_the_run_with_its_reason(tmp_path):
    (tmp_path / "broken.py").write_text(
        "import os\n"
        "from mtray.testing import CountingEnv\n"
        "def maker(num_envs, seed):\n"
        "    if num_envs > 1:\n"
        "        raise OSError('the licence server is down')\n"
        "    return CountingEnv(num_envs, truncate_after=10)\n"
    )
    arguments = ("--tasks", "broken:maker", "--workers", 1, "--envs-per-task", 2, "--host", "inline")
    with Run(*arguments, "--run-dir", tmp_path / "a", cwd=tmp_path) as run:
        assert run.wait() == 2, run.output
        assert run.all_gone(), run.alive()
    last = run.output.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "maker" in last
    assert "OSError: the licence server is down" in last
    assert "Traceback" not in run.output


@pytest.mark.cluster
def test_a_run_resumes_without_saved_rows_and_then_with_them(tmp_path):
    """Counts and statistics are always saved; nothing is learned before the warm-up's rows are held again."""
    run_dir, warmup = tmp_path / "a", 800
    with Run(*SMALL, "--total-frames", 4000, "--replay.no-save", "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    frames, updates = [], []
    before = checkpoint.read(checkpoint.latest(run_dir))
    assert before.rows == {}
    for total, flag in ((8000, "--replay.no-save"), (12000, "--replay.save"), (16000, "--replay.save")):
        with Run("--resume", run_dir, "--total-frames", total, flag, cwd=tmp_path) as run:
            assert run.wait() == 0, run.output
        saved = checkpoint.read(checkpoint.latest(run_dir))
        assert total <= saved.frames < total + 256
        assert saved.frames == sum(saved.replay["frames"].values()) == summary_of(run_dir)["frames"]
        for task, (count, *_) in saved.replay["statistics"].items():
            # All transitions inserted so far, of two frames each.
            assert 2 * count == saved.replay["frames"][task]
        frames.append(saved.frames)
        updates.append(saved.meta["metrics"]["updates"])
    # Runs that began without rows made no updates during the warm-up.
    base = before.meta["metrics"]["updates"]
    first = base + int(0.05 * (frames[0] - before.frames - warmup) / 4)
    second = first + int(0.05 * (frames[1] - frames[0] - warmup) / 4)
    third = first + int(0.05 * (frames[2] - frames[0] - warmup) / 4)
    assert updates == [first, second, third]


@pytest.mark.cluster
def test_updates_per_step_changed_at_a_resume_applies_from_then_on(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*SMALL, "--total-frames", 6000, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    before = summary_of(run_dir)
    resume = ("--resume", run_dir, "--total-frames", 8000, "--learner.updates-per-step", 1.0)
    with Run(*resume, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    after = summary_of(run_dir)
    assert after["updates"] == before["updates"] + (after["frames"] - before["frames"]) // 4


@pytest.mark.cluster
def test_a_checkpoint_that_can_not_be_written_is_one_line_and_the_previous_one_is_kept(tmp_path):
    run_dir = tmp_path / "a"
    every = ("--run.checkpoint-frames", 500)
    with Run(*SMALL, *every, "--total-frames", 1_000_000, "--run-dir", run_dir, cwd=tmp_path) as run:
        run.wait_until(lambda: (run_dir / "checkpoints" / "latest").exists())
        (run_dir / "checkpoints").rename(run_dir / "elsewhere")
        (run_dir / "checkpoints").touch()
        run.wait_until(lambda: '"save_failed"' in (run_dir / "events.jsonl").read_text())
        assert run.process.poll() is None
        run.interrupt()
        assert run.wait() == 1, run.output
        assert run.all_gone(), run.alive()
    assert "could not be written" in run.output.strip().splitlines()[-1]
    assert "Traceback" not in run.output
    (run_dir / "checkpoints").unlink()
    (run_dir / "elsewhere").rename(run_dir / "checkpoints")
    assert checkpoint.read(checkpoint.latest(run_dir)).frames >= 500


@pytest.mark.cluster
def test_the_same_seed_gives_the_same_run_in_lockstep(tmp_path):
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = (*SMALL, "--host", "inline", "--deterministic", "--seed", seed, "--total-frames", 3000)
        with Run(*arguments, "--run-dir", tmp_path / name, cwd=tmp_path) as run:
            assert run.wait() == 0, run.output
            assert run.all_gone(), run.alive()
        saved = checkpoint.read(checkpoint.latest(tmp_path / name))
        policy, learner = checkpoint.from_bytes(saved.policy), checkpoint.from_bytes(saved.learner)
        weights, average, actor = (
            torch.cat([tensor.reshape(-1) for tensor in state.values()])
            for state in (policy, learner["average"], learner["policy"])
        )
        # The saved policy is the moving average, not the actor.
        assert torch.equal(weights, average)
        assert not torch.equal(weights, actor)
        results.append((weights, rows_of(saved), summary_of(tmp_path / name)["updates"]))
    first, second, third = results
    assert first[2] == second[2] > 0
    assert torch.equal(first[0], second[0])
    for task, rows in first[1].items():
        assert np.array_equal(rows.view(np.int32), second[1][task].view(np.int32))
    assert not torch.equal(first[0], third[0])


@pytest.mark.cluster
def test_many_tasks_are_partitioned_and_get_equal_frames(tmp_path):
    # Cheap and expensive tasks, 6 to 70 us per step.
    tasks = ("pendulum-swingup", "reacher", "cartpole", "walker", "finger", "hopper")
    run_dir = tmp_path / "a"
    with Run(
        *("--tasks", *tasks, "--workers", 2, "--envs-per-task", 2, "--host", "inline", "--learner.updates-per-step", 0),
        *("--total-frames", 200_000, "--replay.capacity-rows", 20000, "--run-dir", run_dir),
        cwd=tmp_path,
    ) as run:
        assert run.wait() == 0, run.output
    frames = [task["frames"] for task in summary_of(run_dir)["tasks"].values()]
    assert len(frames) == 17
    mean = sum(frames) / len(frames)
    assert max(abs(count - mean) for count in frames) < 0.05 * mean
    # A line has the reports since the previous line; the last one may have none.
    spent = set().union(*(line["collector_seconds"] for line in lines_of(run_dir)))
    assert spent >= {"simulate", "policy", "copy", "push", "receipt", "idle"}


@pytest.mark.cluster
def test_a_run_ends_after_its_minutes_and_goes_on_when_given_more(tmp_path):
    run_dir = tmp_path / "a"
    with Run(*SMALL, "--host", "inline", "--total-minutes", 0.75, "--run-dir", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
        assert run.all_gone(), run.alive()
    assert "; until 0.75 minutes" in run.output
    summary = summary_of(run_dir)
    assert summary["exit_reason"] == "finished after 0.75 minutes"
    assert 45 <= summary["wall_seconds"] < 75
    saved = checkpoint.read(checkpoint.latest(run_dir))
    assert saved.frames == summary["frames"] > 0
    with Run("--resume", run_dir, cwd=tmp_path) as run:
        assert run.wait() == 2
    assert "error: --total-minutes 0.75: " in run.output
    assert f"has taken {saved.meta['metrics']['seconds'] / 60:.1f} already, give more" in run.output
    more = ("--total-frames", summary["frames"] + 500, "--total-minutes", 5, "--run.progress", "none")
    with Run("--resume", run_dir, *more, cwd=tmp_path) as run:
        assert run.wait() == 0, run.output
    assert summary_of(run_dir)["exit_reason"] == "finished"
    assert run.output == ""
