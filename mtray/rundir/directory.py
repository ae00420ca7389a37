"""A run's directory: made or found, claimed, and what config.json says."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.errors import UsageError
from mtray.rundir.claim import LOCK, Claim, claim

_PACKAGES = ("mtray", "torch", "torchrl", "tensordict", "ray", "dm_control", "mujoco", "numpy")


def default_run_dir() -> Path:
    """Return the folder of a run that names none: its start's date and time."""
    return Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


@contextlib.contextmanager
def own_run_dir(config: Config) -> Iterator[Claim]:
    """Own the run's directory while the block runs: a new or empty one, or the resumed one.

    A new one that is refused is removed again, with the parents that were made for it.

    Raises:
        UsageError: it is in use, or can't be written.
    """
    if config.resume is not None:
        if config.resume.is_dir() and not os.access(config.resume, os.W_OK):
            raise UsageError(f"--resume {config.resume} can't be written: give this user the right to, or copy it")
        with claim(config.resume) as claimed:
            yield claimed
        return
    path = config.run_dir or default_run_dir()
    made = _make(path)
    try:
        with claim(path) as claimed:
            if any(entry.name != LOCK for entry in path.iterdir()):
                raise UsageError(
                    f"--run-dir {path} is in use already: choose a new folder, or continue with --resume {path}"
                )
            yield claimed
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make(path: Path) -> list[Path]:
    """Make a folder and its parents; return those that were not there, the innermost first."""
    made: list[Path] = []
    try:
        for folder in [*reversed(path.parents), path]:
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.insert(0, folder)
        if not path.is_dir():
            raise UsageError(f"--run-dir {path} can't be written: it is a file")
    except OSError as error:
        raise UsageError(f"--run-dir {path} can't be written: {error.strerror or error}") from error
    return made


def describe(config: Config, **chosen: Any) -> dict[str, Any]:
    """Return what config.json holds: the settings as given, what was chosen for ``auto``, versions, the git commit."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"config": to_dict(config), "chosen": chosen, "versions": versions, "git_commit": git_commit()}


def git_commit() -> str | None:
    """Return the commit mtray runs from, with ``-dirty`` if files differ from it; None outside of a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # An environment's folder may lie in a checkout of something else.
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root:
            return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    return None
