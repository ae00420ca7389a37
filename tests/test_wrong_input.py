"""Invalid input: exit code 2, one line on stderr, no traceback, and nothing saved is lost."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch

import mtray
from mtray import evaluate, launch, report
from mtray.cluster import train
from mtray.cluster.plan import pacing_state
from mtray.config.learner import LearnerConfig, NetworkConfig, Sizes
from mtray.config.settings import Config
from mtray.errors import UsageError
from mtray.replay.pacing import Pacing
from mtray.rundir import directory
from mtray.rundir.checkpoints import checkpoint
from mtray.rundir.checkpoints.writer import CheckpointWriter
from mtray.rundir.claim import claim
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve
from tests import makers


@pytest.fixture
def fail(capsys, tmp_path, monkeypatch):
    """Return a function that runs a command, which must be refused before any process starts, and returns its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "_run", lambda *_: pytest.fail("the run was started"))

    def fail(*arguments, program=launch.main):
        assert program([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return fail


def test_an_unknown_task_has_its_near_matches(fail):
    error = fail("--tasks", "humanoid-wlak")
    assert "'humanoid-wlak'" in error
    assert "humanoid-walk" in error


def test_an_unknown_engine_has_the_known_ones(fail):
    assert "dm_control" in fail("--tasks", "isaac/humanoid-walk")
    assert "dm_control" in fail("--engine", "bullet")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--workers", 0),
        ("--envs-per-task", 0),
        ("--total-frames", 0),
        ("--seed", -1),
        ("--learner.batch-rows", 0),
        ("--learner.learning-rate", 0),
        ("--collector.rollout-steps", 0),
        ("--replay.capacity-rows", 1),
        ("--run.log-seconds", 0),
    ],
)
def test_a_number_out_of_range_names_flag_and_value(fail, flag, value):
    error = fail(flag, value)
    assert flag in error


def test_a_used_run_directory_is_not_changed_and_the_remedy_is_named(fail, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.json").write_text("{}")
    error = fail("--run-dir", tmp_path / "used")
    assert "--resume" in error
    assert (tmp_path / "used" / "config.json").read_text() == "{}"


def test_a_home_folder_of_nobody(fail):
    assert "--run-dir ~nosuchuser/a: there is no home folder of that user" in fail("--run-dir", "~nosuchuser/a")
    assert "~nosuchuser/a" in fail("--resume", "~nosuchuser/a")
    with pytest.raises(UsageError, match="--resume ~nosuchuser/a: there is no home folder of that user"):
        mtray.train(Config(resume="~nosuchuser/a"))


def test_an_unwritable_run_directory(fail, tmp_path):
    (tmp_path / "file").write_text("kept")
    error = fail("--run-dir", tmp_path / "file" / "run")
    assert str(tmp_path / "file" / "run") in error
    assert (tmp_path / "file").read_text() == "kept"


def test_a_maker_that_raises_is_named_with_its_error(fail, tmp_path, monkeypatch):
    (tmp_path / "broken_maker.py").write_text("def maker(num_envs, seed):\n    raise OSError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = fail("--tasks", "broken_maker:maker")
    assert "OSError: no licence" in error
    assert "'maker'" in error


def test_a_maker_that_can_not_be_imported(fail):
    assert "no_such_module:maker" in fail("--tasks", "no_such_module:maker")
    assert "mtray.testing:NoSuchMaker" in fail("--tasks", "mtray.testing:NoSuchMaker")


def test_two_different_tasks_of_one_name(fail, tmp_path, monkeypatch):
    for module, target in (("one_farm", 0.1), ("other_farm", 0.2)):
        text = f"from mtray.testing import CountingMaker\nplough = CountingMaker(target={target})\n"
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert "'plough' is named twice" in fail("--tasks", "one_farm:plough", "other_farm:plough")


def test_an_unreachable_address_is_named(fail):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = fail("--address", f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in error
    assert "ray://" in fail("--address", "ray://127.0.0.1:10001")
    assert "nonsense" in fail("--address", "nonsense")


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_an_address_of_another_server_is_refused_quickly(fail, answer):
    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(answer)

    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        error = fail("--address", f"127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "can't be reached" in error
    assert time.monotonic() < begin + 60


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--learner.learning-rate 1e30", "--learner.learning-rate 1e+30: at most 1"),
        ("--address nohost", "--address nohost can't be reached (it has no port): give host:port"),
        ("--learner.threads 4096", "--learner.threads 4096: this machine has"),
        ("--network.critic-width 100000000", "--network.critic-width 100000000"),
        ("--learner.batch-rows 1000000000", "--learner.batch-rows 1000000000: the learner would take"),
        ("--collector.action-repeat 5000", "--collector.action-repeat 5000: an episode of humanoid-stand has 1000"),
        ("--run.cpus-per-actor 50", "--run.cpus-per-actor 50: a Ray of the run's own has one logical CPU"),
        ("--learner.row-weights humanoid-stand=2 humanoid-stand=3", "gives ['humanoid-stand'] twice"),
        ("--envs-per-task 1000000000", "--envs-per-task"),
        ("--collector.rollout-steps 99999999", "--collector.rollout-steps"),
        ("--replay.recent-share 1.5", "--replay.recent-share 1.5: must be between 0 and 1"),
        ("--run.evaluate-every -1", "--run.evaluate-every -1.0: at least 0"),
        ("--run.evaluate-every 1 --deterministic", "with --deterministic there are no evaluations"),
    ],
)
def test_what_no_machine_can_do_is_refused_before_anything_starts(fail, tmp_path, flags, words):
    assert words in fail(*flags.split(), "--run-dir", "made")
    assert not (tmp_path / "made").exists()


def test_a_run_that_ends_within_its_warm_up_is_told(fail, monkeypatch, caplog):
    monkeypatch.setattr(train, "_run", lambda *_: {})
    train.train(Config(total_frames=1000, learner=LearnerConfig(warmup_steps=10_000), run_dir="made"))
    assert "ends the run within the 40000 frames of --learner.warmup-steps: nothing will be learned" in caplog.text


def test_a_run_directory_that_holds_something_else_is_left_alone(fail, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    error = fail("--run-dir", "mine")
    assert "holds notes.txt already: choose a new folder\n" in error
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_a_missing_device(fail):
    assert "--device quantum" in fail("--device", "quantum")
    if not torch.cuda.is_available():
        assert "--device cuda" in fail("--device", "cuda")


def test_a_precision_that_the_device_does_not_support(fail):
    error = fail("--learner.precision", "tfloat32")
    assert "--learner.precision tfloat32 on cpu" in error
    assert "float32 or bfloat16" in error


def test_updates_that_others_compile_are_not_recorded_on_the_cpu(fail):
    error = fail("--learner.compile", "aot_eager", "--learner.graphs", "True")
    assert "--learner.graphs True" in error
    assert "leave one of them out" in error


def test_what_is_compiled_beside_a_run_is_not_deterministic(fail):
    # The device is chosen later: as given and as chosen.
    for device in ((), ("--device", "cpu")):
        error = fail("--learner.compile", "inductor", "--deterministic", *device)
        assert "--learner.compile inductor" in error
        assert "add --learner.graphs False" in error


def test_a_missing_compiler_backend(fail):
    error = fail("--learner.compile", "quantum")
    assert "--learner.compile quantum" in error
    assert "inductor" in error


def test_a_slack_with_which_both_sides_would_wait_forever(fail):
    assert "slack" in fail("--workers", 2, "--learner.slack-steps", 10)


@pytest.mark.parametrize("weight", ["humanoid-walk", "humanoid-walk=", "humanoid-walk=0", "humanoid-walk=nan"])
def test_an_invalid_loss_weight(fail, weight):
    assert f"--learner.loss-weights {weight}" in fail("--learner.loss-weights", weight)


@pytest.mark.parametrize("setting", ["--learner.loss-weights", "--learner.row-weights"])
def test_a_weight_of_a_task_that_is_not_in_the_run(fail, setting):
    error = fail(setting, "cheetah-run=2")
    assert f"{setting} cheetah-run" in error
    assert "humanoid-stand, humanoid-walk" in error


def test_a_push_that_no_ring_can_hold(fail):
    assert "--replay.capacity-rows" in fail("--replay.capacity-rows", 100, "--workers", 1)


def test_resuming_a_folder_that_is_no_run_directory(fail, tmp_path):
    assert str(tmp_path / "nothing") in fail("--resume", tmp_path / "nothing")


def make_run(tmp_path, **changes):
    config = launch.parse(["--tasks", "cartpole-swingup"])
    described = directory.describe(config, config)
    described["config"] |= changes
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(described))
    return tmp_path / "run"


def test_resuming_a_run_without_a_checkpoint(fail, tmp_path):
    assert "no checkpoint" in fail("--resume", make_run(tmp_path))


def saved_run(tmp_path, frames=500, network=None, updates=0, tasks=("cartpole-swingup",), total=None):
    """Make a run directory with a checkpoint whose learner is empty; sizes of networks as chosen."""
    run_dir = make_run(tmp_path, tasks=tasks)
    specs = [task.spec for task in resolve(tasks, action_repeat=2)]
    config = json.loads((run_dir / "config.json").read_text())["config"]
    config["network"] |= network or {}
    config["total_frames"] = total
    pacing = Pacing(updates_per_step=1.0, step_frames=2 * len(tasks), start_frames=100, slack_frames=99, round_frames=1)
    meta = {
        "config": config,
        "specs": [json.loads(json.dumps(spec.to_dict())) for spec in specs],
        "metrics": {"updates": updates, "seconds": 60.0},
        "pacing": pacing_state(pacing),
    }
    sizes = {spec.name: spec.row_size for spec in specs}
    replay = {"written": dict.fromkeys(sizes, 4), "start": dict.fromkeys(sizes, 0)}
    CheckpointWriter(run_dir, 2, {name: 4 * size for name, size in sizes.items()}).write(
        checkpoint.Checkpoint(frames, meta, b"policy", b"learner", replay),
        lambda task, begin, end: (begin, np.zeros((end - begin, sizes[task]), np.float32)),
    )
    (run_dir / "checkpoints" / ".000000000900.partial").mkdir()
    (run_dir / "metrics.jsonl").write_text("kept")
    (run_dir / "summary.json").write_text("kept")
    return run_dir


def tree(path):
    return {str(entry.relative_to(path)): entry.is_file() and entry.read_bytes() for entry in path.rglob("*")}


REFUSED = {
    "other tasks": ({"tasks": ("walker-walk",)}, "--tasks walker-walk differs from the cartpole-swingup"),
    "other seed": ({"seed": 7}, "--seed 7 differs from the 0"),
    "other network": ({"network": NetworkConfig(actor_width=64)}, "--network.actor-width 64 differs from the 128"),
    "other atoms": ({"learner": LearnerConfig(atoms=21)}, "--learner.atoms 21 differs from the 51"),
    "fewer frames": ({"total_frames": 500}, "--total-frames 500: "),
    "too slack": ({"learner": LearnerConfig(slack_steps=1)}, "slack"),
    "no device": ({"device": "cuda:1"}, "--device cuda:1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_resume_changes_no_byte(fail, tmp_path, case):
    """From the command line and from Python."""
    changes, message = REFUSED[case]
    run_dir = saved_run(tmp_path)
    before = tree(tmp_path)
    config = dataclasses.replace(checkpoint.read_config(run_dir), resume=run_dir, **{"total_frames": 900, **changes})
    with pytest.raises(UsageError, match=re.escape(message)):
        mtray.train(config)
    assert tree(tmp_path) == before
    flags = ["--resume", run_dir, "--total-frames", changes.get("total_frames", 900)]
    flags += {
        "other tasks": ["--tasks", "walker-walk"],
        "other seed": ["--seed", 7],
        "other network": ["--network.actor-width", 64],
        "other atoms": ["--learner.atoms", 21],
        "fewer frames": [],
        "too slack": ["--learner.slack-steps", 1],
        "no device": ["--device", "cuda:1"],
    }[case]
    assert message in fail(*flags)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("is_resumed", [False, True])
def test_what_is_refused_once_workers_and_copies_are_chosen_changes_no_byte(tmp_path, monkeypatch, is_resumed):
    """A collector that steps one of the tasks has more copies of it than one that steps all."""
    session = types.SimpleNamespace(cores=2, room=2, cpus_per_actor=1.0, death=lambda: None)
    monkeypatch.setattr(train, "ray_session", lambda *_: contextlib.nullcontext(session))
    tasks, run_dir = ("cartpole-swingup", "reacher-easy"), tmp_path / "run"
    if is_resumed:
        saved_run(tmp_path, tasks=tasks)
    before = tree(tmp_path)
    config = Config(
        tasks=tasks,
        workers=8,
        host="inline",
        total_frames=900,
        run_dir=run_dir,
        resume=run_dir if is_resumed else None,
        collector={"tasks_each": 1, "rollout_steps": 1000},
        replay={"capacity_rows": 5000},
    )
    with pytest.raises(UsageError, match=r"--replay\.capacity-rows 5000: a collector that steps most copies"):
        mtray.train(config)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("is_auto", [False, True])
@pytest.mark.parametrize("owed", [1, 0])
def test_a_run_is_over_once_it_has_its_frames_and_the_updates_that_it_owes_for_them(
    tmp_path, monkeypatch, is_auto, owed
):
    # An update for each two of the frames after the first 100.
    run_dir = saved_run(tmp_path, frames=500, updates=200 - owed, total=500)
    summary = {"exit_reason": "finished", "frames": 500}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    started = []
    monkeypatch.setattr(train, "_run", lambda *_: started.append(1) or {})
    config = dataclasses.replace(checkpoint.read_config(run_dir), learner={"updates_per_step": 1.0}, total_frames=500)
    config = dataclasses.replace(config, resume="auto" if is_auto else run_dir)
    if owed:
        mtray.train(config)
    elif is_auto:
        assert mtray.train(config) == summary
    else:
        with pytest.raises(UsageError, match=r"--total-frames 500: .* has 500 already, give more"):
            mtray.train(config)
    assert started == [1] * owed


def test_a_run_is_not_ended_at_fewer_frames_than_it_has_whatever_it_owes(fail, tmp_path):
    run_dir = saved_run(tmp_path, frames=500, updates=0, total=900)
    before = tree(tmp_path)
    error = fail("--resume", run_dir, "--total-frames", 300, "--learner.updates-per-step", 1)
    assert f"--total-frames 300: {run_dir}/checkpoints/000000000500 has 500 already, give more" in error
    assert tree(tmp_path) == before


def test_a_start_in_the_folder_of_a_run_without_a_checkpoint_is_told(tmp_path, monkeypatch, caplog):
    run_dir = make_run(tmp_path)
    monkeypatch.setattr(train, "_run", lambda *_: {})
    mtray.train(Config(tasks=("cartpole-swingup",), run_dir=run_dir, resume="auto"))
    assert f"no checkpoint in {run_dir}: the run begins anew, as this command says" in caplog.text


def test_what_a_resume_changes_is_told(tmp_path, monkeypatch, capsys):
    run_dir = saved_run(tmp_path)
    monkeypatch.setattr(train, "_run", lambda *_: {})
    config = dataclasses.replace(checkpoint.read_config(run_dir), resume=run_dir, total_minutes=9)
    mtray.train(config)
    assert "changed since" not in capsys.readouterr().err
    mtray.train(dataclasses.replace(config, preset="frugal"))
    assert "changed since: --preset frugal (fast)\n" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_resumed_run_has_the_networks_of_its_checkpoint_whatever_its_device(tmp_path, monkeypatch, device):
    run_dir = saved_run(tmp_path, network={"critic_width": 512, "critic_blocks": 2})
    started = []
    monkeypatch.setattr(train, "choose_device", lambda *_: device)
    monkeypatch.setattr(train, "check_machine", lambda *_: None)
    monkeypatch.setattr(train, "_run", lambda config, given, *_: started.append((config, given)) or {})
    config = dataclasses.replace(checkpoint.read_config(run_dir), total_frames=900)
    mtray.train(dataclasses.replace(config, resume=run_dir))
    [(resumed, asked)] = started
    assert resumed.network.sizes == Sizes(critic_width=512, critic_blocks=2)
    assert asked.network == NetworkConfig()
    mtray.train(dataclasses.replace(config, run_dir=tmp_path / "new"))
    new = started[1][0]
    assert new.network.sizes == (Sizes(256, 1, 512, 2) if device == "cuda" else Sizes())


@pytest.mark.parametrize("name", ["policy.pt", "learner.pt", "meta.json"])
def test_damage_is_found_before_anything_is_started_or_written(fail, tmp_path, name):
    run_dir = saved_run(tmp_path)
    [path] = run_dir.glob(f"checkpoints/0*/{name}")
    path.write_bytes(path.read_bytes()[:-3])
    before = tree(tmp_path)
    assert name in fail("--resume", run_dir, "--total-frames", 900)
    assert tree(tmp_path) == before


def test_a_changed_task_is_found_before_anything_is_written(fail, tmp_path):
    run_dir = saved_run(tmp_path)
    [path] = run_dir.glob("checkpoints/0*/meta.json")
    meta = json.loads(path.read_text())
    meta["specs"][0]["horizon"] = 7
    path.write_text(json.dumps(meta))
    before = tree(tmp_path)
    assert "'cartpole-swingup': horizon is 1000, but was 7" in fail("--resume", run_dir, "--total-frames", 900)
    assert tree(tmp_path) == before


def test_a_running_run_is_neither_resumed_nor_started_again(fail, tmp_path):
    run_dir = saved_run(tmp_path)
    with claim(run_dir):
        before = tree(tmp_path)
        for flags in (["--resume", run_dir, "--total-frames", 900], ["--run-dir", run_dir]):
            assert f"in use by process {os.getpid()} on " in fail(*flags)
        assert tree(tmp_path) == before


def test_tasks_registered_in_another_process_have_a_remedy(fail, tmp_path):
    run_dir = saved_run(tmp_path)
    described = json.loads((run_dir / "config.json").read_text())
    described["config"]["tasks"] = ["known-elsewhere"]
    (run_dir / "config.json").write_text(json.dumps(described))
    error = fail("--resume", run_dir, "--total-frames", 900)
    assert "'known-elsewhere'" in error
    assert "in a program that registers it first" in error


def test_resuming_with_other_settings_in_python_names_read_config(tmp_path):
    with pytest.raises(UsageError, match=r"dataclasses\.replace\(mtray\.read_config"):
        mtray.train(mtray.Config(resume=saved_run(tmp_path), total_frames=900))


def test_a_refused_start_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        mtray.train(mtray.Config(tasks=("walker-wlak",), run_dir=tmp_path / "a" / "b"))
    assert not list(tmp_path.iterdir())


def test_changes_of_a_maker_to_the_process_are_undone(fail, tmp_path):
    (tmp_path / "elsewhere").mkdir()

    def maker(num_envs, seed):
        os.chdir(tmp_path / "elsewhere")
        os.environ["MTRAY_LEFT_BEHIND"] = "1"
        raise OSError("no licence")

    mtray.register_task("restless", maker)
    assert "no licence" in fail("--tasks", "restless", "--run-dir", "relative")
    assert os.getcwd() == str(tmp_path)
    assert "MTRAY_LEFT_BEHIND" not in os.environ


def test_resuming_with_other_tasks(fail, tmp_path):
    error = fail("--resume", make_run(tmp_path), "--tasks", "walker-walk")
    assert "walker-walk" in error
    assert "cartpole-swingup" in error


def test_resuming_with_another_algorithm(fail, tmp_path):
    error = fail("--resume", make_run(tmp_path), "--learner.algorithm", "td3")
    assert "--learner.algorithm td3 differs from the sac" in error


def test_resuming_a_run_of_another_version(fail, tmp_path):
    assert "warp_drive" in fail("--resume", make_run(tmp_path, warp_drive=1))


def test_evaluating_a_folder_that_is_no_run_directory(fail, tmp_path):
    assert str(tmp_path / "nothing") in fail(tmp_path / "nothing", program=evaluate.main)


@pytest.mark.parametrize("program", [evaluate.main, report.main])
def test_a_path_that_no_file_system_has(fail, tmp_path, program):
    path = tmp_path / ("a" * 300)
    error = fail(path, program=program)
    assert str(path) in error
    assert "File name too long" in error


def test_evaluating_no_episodes(fail, tmp_path):
    assert "--episodes 0" in fail(tmp_path, "--episodes", 0, program=evaluate.main)


@pytest.mark.parametrize("path", ["nowhere/eval.json", "/proc/x/eval.json"])
def test_a_file_that_can_not_be_written_is_found_before_the_episodes(fail, tmp_path, path):
    assert f"--json {path} can't be written" in fail(tmp_path, "--json", path, program=evaluate.main)


def learned_run(tmp_path, monkeypatch, tasks, specs):
    """Make a run directory whose policy learned these specs, without weights."""
    from mtray.config.learner import NetworkConfig
    from mtray.policy.policy import MultiTaskPolicy

    policy = MultiTaskPolicy(specs, NetworkConfig(actor_width=16), deterministic=True)
    monkeypatch.setattr("mtray.rundir.checkpoints.policies.load_policy", lambda *_: policy)
    return make_run(tmp_path, tasks=tasks)


def test_evaluating_a_task_that_python_registered_says_how(fail, tmp_path, monkeypatch):
    spec = Task("mine", "torchrl", makers.point).spec
    error = fail(learned_run(tmp_path, monkeypatch, ["mine"], [spec]), program=evaluate.main)
    assert "'mine' was made by a maker" in error
    assert "(--tasks, or tasks of mtray.evaluate_policy), or call mtray.register_task first" in error
    # By its maker's path it can be evaluated.
    run = tmp_path / "run"
    assert evaluate.main([str(run), "--tasks", "tests.makers:single_point", "--episodes", "1"]) == 2
    monkeypatch.setattr(makers, "mine", makers.point, raising=False)
    assert evaluate.main([str(run), "--tasks", "tests.makers:mine", "--episodes", "1"]) == 0


def test_all_that_a_policy_learned_is_evaluated_whatever_engine_a_set_of_the_run_was_of(fail, tmp_path, monkeypatch):
    specs = [Task(name, "dm_control", action_repeat=100).spec for name in ("cartpole-balance", "reacher-easy")]
    specs[1] = Task("reacher-easy", "mujoco", action_repeat=100).spec
    # A set that the first task's engine does not have.
    run = learned_run(tmp_path, monkeypatch, ["dm_control/cartpole-balance", "metaworld"], specs)
    assert evaluate.main([str(run), "--episodes", "1", "--json", "eval.json"]) == 0
    assert list(json.loads((tmp_path / "eval.json").read_text())) == ["cartpole-balance", "reacher-easy"]


def test_evaluating_one_task_with_two_engines(fail, tmp_path, monkeypatch):
    spec = Task("cartpole-balance", "mujoco", action_repeat=2).spec
    run = learned_run(tmp_path, monkeypatch, ["cartpole-balance"], [spec])
    error = fail(run, "--tasks", "cartpole-balance", "dm_control/cartpole-balance", program=evaluate.main)
    assert "task 'cartpole-balance' is named twice (engines 'mujoco' and 'dm_control')" in error


def test_files_of_an_evaluation_are_in_the_folder_of_the_command_though_a_maker_moves(fail, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()

    def mover(num_envs, seed):
        os.chdir(tmp_path / "elsewhere")
        return makers.point(num_envs, seed)

    monkeypatch.setattr(makers, "mover", mover, raising=False)
    run = learned_run(tmp_path, monkeypatch, ["tests.makers:mover"], [Task("mover", "torchrl", makers.point).spec])
    assert evaluate.main([str(run), "--episodes", "1", "--json", "eval.json"]) == 0
    assert os.getcwd() == str(tmp_path)
    assert "mover" in (tmp_path / "eval.json").read_text()


def test_evaluating_a_task_whose_maker_has_changed(fail, tmp_path, monkeypatch):
    spec = dataclasses.replace(Task("point", "torchrl", makers.point).spec, action_high=(0.75,))
    run = learned_run(tmp_path, monkeypatch, ["tests.makers:point"], [spec])
    assert "task 'point': action_high is (0.5,), but was (0.75,)" in fail(run, program=evaluate.main)
    assert "task 'point': action_high" in fail(run, "--tasks", "point", program=evaluate.main)


def test_a_maker_that_can_not_be_pickled(fail, monkeypatch):
    monkeypatch.setattr(makers, "locked", functools.partial(makers.with_held, threading.Lock()), raising=False)
    error = fail("--tasks", "tests.makers:locked")
    assert "task 'locked' can't be sent to another process: its maker.args[0] (a lock) can't be pickled" in error


def test_an_environment_whose_first_step_raises(fail, monkeypatch):
    monkeypatch.setattr(makers, "broken", makers.broken_at_once, raising=False)
    assert "task 'broken': its step raised ZeroDivisionError: no time left" in fail("--tasks", "tests.makers:broken")


def test_reporting_a_folder_that_is_no_run_directory(fail, tmp_path):
    assert str(tmp_path / "nothing") in fail(tmp_path / "nothing", program=report.main)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (launch.main, "--no-such-flag", "no option --no-such-flag"),
        (launch.main, "--resume", "--resume has no value"),
        (launch.main, "--resume --run-dir a", "--resume has no value"),
        (launch.main, "--on-task-failure explode", "--on-task-failure explode: choose from continue, abort"),
        (evaluate.main, "a --episode 3", "no option --episode: did you mean --episodes?"),
        (report.main, "a --episode 3", "no option --episode"),
    ],
)
def test_a_command_line_that_can_not_be_read_is_refused_in_one_line(fail, program, arguments, message):
    assert message in fail(*arguments.split(), program=program)


def test_an_unknown_task_from_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mtray.launch", "--tasks", "walker-wlak"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown task 'walker-wlak'")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
