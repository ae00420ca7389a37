"""Peers whose pins conflict with mtray's: each lives in a virtual environment of its own and runs as a program there.

A peer's program is the module of the same folder. For those that only collect, the last line that it prints is JSON
with ``frames_per_second``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

# The CPU build of torch, asked for first: a range alone brings several GB of CUDA wheels.
_TORCH = "torch==2.13.0"
# Those of mtray, so that all simulate the same.
_SIMULATOR = ("dm_control==1.0.50", "mujoco==3.17.0")
_INSTALL_SECONDS = 1800.0
_TRIAL_SECONDS = 1.0


@dataclass(frozen=True)
class Peer:
    """One of them.

    Attributes:
        name: of its row.
        module: of its program, in this package.
        pins: what it needs besides torch and the simulator; the first is the peer itself.
        trial: arguments of its program with which it is tried.
    """

    name: str
    module: str
    pins: tuple[str, ...]
    trial: tuple[str, ...] = (f"--warmup-seconds={_TRIAL_SECONDS}", f"--seconds={_TRIAL_SECONDS}")

    @property
    def version(self) -> dict[str, str]:
        """Package name to version of the peer itself."""
        package, _, version = self.pins[0].partition("==")
        return {package: version}

    def make(self, folder: Path) -> None:
        """Install it in that folder and try it; nothing if that was done before with these pins.

        Raises:
            RuntimeError: it can't be installed or does not run.
            TimeoutError: that took too long.
        """
        home = self._home(folder)
        done, wanted = home / "pins.txt", "\n".join((_TORCH, *_SIMULATOR, *self.pins))
        if done.is_file() and done.read_text() == wanted:
            return
        sys.stderr.write(f"{self.name}: making {home}\n")
        harness.run_program([sys.executable, "-m", "venv", "--clear", str(home)], _INSTALL_SECONDS)
        for pins in ((_TORCH,), (_TORCH, *_SIMULATOR, *self.pins)):
            install = [self._python(folder), "-m", "pip", "install", "--quiet", *pins]
            harness.run_program(install, _INSTALL_SECONDS)
        self.run(folder, *self.trial)
        done.write_text(wanted)

    def measure(self, folder: Path, warmup_seconds: float, seconds: float) -> float:
        """Frames per second.

        Raises:
            RuntimeError: its program failed.
            TimeoutError: that took too long.
        """
        printed = self.run(folder, f"--warmup-seconds={warmup_seconds}", f"--seconds={seconds}")
        return float(json.loads(printed.splitlines()[-1])["frames_per_second"])

    def run(self, folder: Path, *arguments: str, timeout_seconds: float = 300.0, **options: Any) -> str:
        """Run its program, with options of `harness.run_program`, and return what it prints.

        Raises:
            RuntimeError: it failed.
            TimeoutError: that took too long.
        """
        command = [self._python(folder), "-m", f"{__package__}.{self.module}", *arguments]
        return harness.run_program(command, timeout_seconds, **options)

    def _home(self, folder: Path) -> Path:
        return folder.absolute() / f"venv-{self.module}"

    def _python(self, folder: Path) -> str:
        return str(self._home(folder) / "bin" / "python")


PEERS = (
    Peer("RLlib", "rllib", ("ray[rllib]==2.60.0", "gymnasium==1.2.2", "numpy==2.4.6")),
    Peer("Sample Factory", "sample_factory", ("sample-factory==2.1.1", "gymnasium==0.29.1", "numpy==1.26.4")),
)

SBX = Peer("SBX", "sbx", ("sbx-rl==0.28.0", "numpy<2.4"), trial=("--minutes=0.2",))
