"""A run's directory: made or found, and what config.json says."""

from __future__ import annotations

import contextlib
import datetime
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.errors import UsageError

_PACKAGES = ("mtray", "torch", "torchrl", "tensordict", "ray", "dm_control", "mujoco", "numpy")


def prepare_run_dir(config: Config) -> Path:
    """The run's folder, made and found empty (or the resumed one).

    Raises:
        UsageError: it is in use, or can't be written.
    """
    if config.resume is not None:
        return config.resume
    path = config.run_dir or Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(
                f"--run-dir {path} is in use already: choose a new folder, or continue with --resume {path}"
            )
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--run-dir {path} can't be written: {error.strerror or error}") from error
    return path


def describe(config: Config) -> dict[str, Any]:
    """What config.json holds: the resolved config, versions, the git commit."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"config": to_dict(config), "versions": versions, "git_commit": git_commit()}


def git_commit() -> str | None:
    """The commit that mtray is run from, with ``-dirty`` if files differ from it; None if it is no checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # An environment's folder may lie in a checkout of something else.
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root:
            return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    return None
