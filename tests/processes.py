"""Whole runs as subprocesses whose every descendant can be found, also after its parent has died."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from mtray.cluster.session.checks import has_bfloat16, has_compiler
from mtray.config.learner import Sizes

_MARK = "MTRAY_TEST_RUN"


@contextlib.contextmanager
def ray_without_token(num_cpus):
    """A Ray of this process; one with a token would leave it in the home folder."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="error"
        )
        try:
            yield
        finally:
            ray.shutdown()


def chosen_here(device, *, batch_rows, ratio, compiler=None):
    """What config.json tells beside host, collectors and copies of a run on this machine with --preset fast.

    Args:
        device: the run's.
        batch_rows: rows of an update.
        ratio: updates per step that were asked for.
        compiler: the one that was asked for.
    """
    assert device in ("cpu", "cuda")
    learner = {"updates_per_step": ratio, "least_updates_per_step": ratio, "n_step": 3, "balance": True}
    learner |= {"actor_average": 0.02, "batch_rows": batch_rows}
    learner["compile"] = compiler or ("inductor" if has_compiler(device) else "off")
    if device == "cpu" and has_bfloat16():
        learner["precision"] = "bfloat16"
    return {
        "device": device,
        "collector": {"least_noise": 0.5, "most_noise": 4.0},
        "replay": {"recent_share": 0.5},
        "network": (Sizes(256, 1, 512, 2) if device == "cuda" else Sizes())._asdict(),
        "learner": learner,
    }


class Run:
    """A command in a session of its own, marked by an environment variable that all its descendants inherit."""

    def __init__(self, *arguments, cwd, module="mtray.launch"):
        self.token = uuid.uuid4().hex
        self.log = Path(cwd) / f"log-{self.token[:6]}.txt"
        # As on a new machine: without the user's token for Ray.
        home = {"HOME": str(cwd)}
        environment = {**os.environ, **home, _MARK: self.token, "PYTHONPATH": str(Path(__file__).parents[1])}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                cwd=cwd,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def alive(self):
        """Living processes of this run, the command's own included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.token and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def named(self, text):
        """Living processes whose command line begins with this."""
        found = []
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(text):
                    found.append(process)
        return found

    def wait(self, seconds=240):
        """The exit code."""
        return self.process.wait(timeout=seconds)

    def wait_until(self, condition, seconds=120):
        """Wait for a condition, failing with the log if the run ends before or time is up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended with {self.process.returncode}:\n{self.output}")
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s:\n{self.output}")

    def all_gone(self, seconds=30):
        """Whether every process of the run ends within so long."""
        deadline = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return not left

    def interrupt(self):
        """Ctrl-C as a terminal sends it: to every process of the foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    @property
    def output(self):
        return self.log.read_text()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(timeout=30)
