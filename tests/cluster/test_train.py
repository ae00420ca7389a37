"""`mtray.train` as a library: on a Ray that is up, in a task of it, in threads, again and again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtray.cluster import train
from mtray.errors import RunError, UsageError
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.rundir.metrics import Metrics
from tests.processes import chosen_here

PROGRAM = """
import logging, os, signal, sys, threading
import mtray

SMALL = {
    "tasks": "cartpole-balance", "workers": 1, "envs_per_task": 2, "total_frames": 6e2, "host": "inline",
    "learner": {"warmup_steps": 50, "updates_per_step": 0.2}, "run": {"evaluate_every": 0},
}

def run(name, **changes):
    return mtray.train(mtray.Config(**{**SMALL, "run_dir": name, **changes}))

def state():
    logger = logging.getLogger("ray")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    return os.getcwd(), dict(os.environ), handlers, logger.level, logger.handlers[:], logger.propagate

def start_ray():
    import ray
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return ray
"""
CASES = {
    "on a ray that is up": """
ray = start_ray()
before = state()
assert run("a")["frames"] >= 600
assert state() == before
assert ray.is_initialized()
with open("beside.py", "w") as file:
    file.write("from mtray.testing import CountingMaker\\nclass Maker(CountingMaker): ...\\n")
import beside
mtray.register_task("beside", beside.Maker())
told, handler = [], logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("mtray").addHandler(handler)
assert run("b", address="auto", tasks="beside")["exit_reason"] == "finished"
assert any("beside.py can't be sent" in text and "runtime_env={'py_modules': [" in text for text in told), told
assert ray.get(ray.put(3)) == 3
""",
    "before a ray of the caller's": """
assert run("a")["exit_reason"] == "finished"
# Its import would take as long as all else before Ray starts; where there may be a GPU, it is asked for it.
assert "torch" not in sys.modules or os.path.exists("/dev/nvidia0")
assert os.listdir(os.environ["HOME"]) == ["a"]
assert not any("AUTH" in name for name in os.environ)
ray = start_ray()
assert ray.get(ray.put(3)) == 3
""",
    "in a task": """
ray = start_ray()
here = os.getcwd()

@ray.remote
def work():
    return run(os.path.join(here, "a"))["exit_reason"]

assert ray.get(work.remote()) == "finished"
""",
    "in a thread": """
import asyncio
before, found = state(), []
thread = threading.Thread(target=lambda: found.append(run("a")["exit_reason"]))
thread.start()
thread.join()
assert found == ["finished"]
assert state() == before
async def in_a_notebook():
    return run("b")["exit_reason"]
assert asyncio.run(in_a_notebook()) == "finished"
""",
    "twice, then resumed, then a ray of one's own": """
import numpy
before = state()
for name in "ab":
    assert run(name, total_frames=numpy.int64(600))["exit_reason"] == "finished"
    assert state() == before
assert run(None, resume="b", total_frames=900)["frames"] >= 900
assert start_ray().is_initialized()
""",
    "after runs that were interrupted while they ended": """
import ray, time
before = state()

def interrupt_in(name):
    original = getattr(ray, name)
    def interrupted(*arguments, **options):
        setattr(ray, name, original)
        # The first asks for an end, the second is not to wait for it.
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.6)
        return original(*arguments, **options)
    setattr(ray, name, interrupted)

for name in ("wait", "kill", "shutdown"):
    interrupt_in(name)
    try:
        run(name)
    except KeyboardInterrupt:
        pass
    assert not ray.is_initialized()
    # It would end the next run's Ray.
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
    assert state() == before
assert run("a")["exit_reason"] == "finished"
""",
    "with tasks of odd names whose makers move": """
from mtray.testing import CountingMaker
os.mkdir("elsewhere")

class Mover(CountingMaker):
    def __call__(self, num_envs, seed):
        os.chdir(os.path.join(HERE, "elsewhere"))
        return super().__call__(num_envs, seed)

HERE = os.getcwd()
names = ["x" * 300, "..", "läufer-走る", "back\\\\slash", "-x", "observation"]
for steps, name in enumerate(names, 5):
    mtray.register_task(name, Mover(truncate_after=steps))
before = state()
run("a", tasks=names, total_frames=1000)
assert state() == before
run(None, resume="a", tasks=names, total_frames=2000)
assert mtray.load_policy("a").names == tuple(names)
assert list(mtray.evaluate_policy(mtray.load_policy("a"), episodes=1)) == names
assert sorted(os.listdir()) == ["a", "elsewhere"] and not os.listdir("elsewhere")
""",
}


@pytest.mark.cluster
@pytest.mark.parametrize("case", CASES)
def test_train_is_a_function_like_any_other(tmp_path, case):
    # As on a new machine: Ray has left no token there.
    home = {"HOME": str(tmp_path)}
    environment = {**os.environ, **home, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + CASES[case]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["config"]["host"] in ("inline", "auto")
    chosen = config["chosen"]
    rows = 1024 if chosen["device"] == "cuda" else 128
    others = chosen_here(chosen["device"], batch_rows=rows, ratio=0.2)
    assert chosen == {"host": "inline", "workers": 1, "envs_per_task": 2, **others}


def saved_at_the_end():
    metrics = Metrics(["a"])
    metrics.tasks["a"].frames, metrics.updates = 10, 3
    return Checkpoint(10, {"metrics": metrics.state()}, b"", b"", {})


def test_a_run_that_was_killed_after_its_last_checkpoint_gets_its_summary(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"time": 50.0, "weights_version": 4}\n')
    summary = train._finished_before(saved_at_the_end(), tmp_path)
    assert (summary["frames"], summary["updates"], summary["exit_reason"]) == (10, 3, "finished")
    assert 50 <= summary["wall_seconds"] < 51, "the time that its files know of"
    assert summary["weights_version"] == 4
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_a_version_of_the_weights_that_no_file_knows_of_is_none(tmp_path):
    assert train._finished_before(saved_at_the_end(), tmp_path)["weights_version"] is None


def test_a_run_that_has_ended_before_gives_the_summary_that_it_wrote_itself(tmp_path):
    text = json.dumps({"frames": 10, "updates": 3, "wall_seconds": 60.0, "exit_reason": "finished after 1 minute"})
    (tmp_path / "summary.json").write_text(text)
    assert train._finished_before(saved_at_the_end(), tmp_path) == json.loads(text)
    assert (tmp_path / "summary.json").read_text() == text


def test_a_run_that_has_failed_before_fails_again_with_its_reason(tmp_path):
    text = json.dumps({"exit_reason": "failed: finished without b, which failed: it melted"})
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(RunError, match="no minutes or frames left, and it failed: finished without b, which failed"):
        train._finished_before(saved_at_the_end(), tmp_path)
    assert (tmp_path / "summary.json").read_text() == text


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_summary_is_named(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UsageError, match=r"summary\.json can't be read"):
        train._finished_before(saved_at_the_end(), tmp_path)
