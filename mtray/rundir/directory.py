"""A run's directory: made or found, claimed, and what config.json says."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.errors import RunError, UsageError
from mtray.rundir.checkpoints.checkpoint import Checkpoint, remove_partial
from mtray.rundir.checkpoints.newest import go_on_from, is_checkpoint
from mtray.rundir.claim import LOCK, Claim, claim
from mtray.rundir.resume import AUTO
from mtray.rundir.sinks import cut_lines, last_seconds

# What a run directory holds.
_FILES = {
    LOCK, "config.json", "metrics.jsonl", "events.jsonl", "summary.json", "traceback.txt", "checkpoints", "tensorboard",
    "logs", ".config.json.partial", ".summary.json.partial",
}  # fmt: skip
_PACKAGES = ("mtray", "torch", "torchrl", "tensordict", "ray", "dm_control", "mujoco", "numpy")


def default_run_dir() -> Path:
    """Return the folder of a run that names none: its start's date and time."""
    return Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


@contextlib.contextmanager
def own_run_dir(config: Config) -> Iterator[Claim]:
    """Own the run's directory while the block runs: a new or empty one, or the resumed one.

    With ``--resume auto`` it may also hold what an earlier start left. A new one that is refused is removed again, with
    the parents that were made for it.

    Raises:
        UsageError: it is in use, or can't be written.
    """
    resumed = None if config.resume in (None, AUTO) else run_dir_of(config.resume)
    path = config.run_dir or resumed or default_run_dir()
    if path == resumed:
        if path.is_dir() and not os.access(path, os.W_OK):
            raise UsageError(f"--resume {path} can't be written: give this user the right to, or copy it")
        with claim(path) as claimed:
            yield claimed
        return
    made = _make(path)
    try:
        with claim(path) as claimed:
            allowed = _FILES if config.resume == AUTO else {LOCK}
            strange = [entry.name for entry in path.iterdir() if entry.name not in allowed]
            if strange:
                hint = f", or continue with --resume {path}" if (path / "config.json").is_file() else ""
                raise UsageError(f"--run-dir {path} holds {min(strange)} already: choose a new folder{hint}")
            yield claimed
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def run_dir_of(path: Path) -> Path:
    """Return the run directory of a path that may also be the folder of one of its checkpoints."""
    return path if (path / "config.json").exists() or not is_checkpoint(path) else path.resolve().parent.parent


def begin(run_dir: Path, saved: Checkpoint | None, tell: Callable[[str], None]) -> float:
    """Make the run directory that of a run which begins now; only the owner may.

    Args:
        run_dir: the run's.
        saved: what the run goes on from, of this directory or another; None if it starts anew.
        tell: takes a line that says where it goes on.

    Returns:
        For how many seconds the run has run already: up to its checkpoint or to the last that is written, if later.

    Raises:
        RunError: it can't be written.
    """
    seconds = last_seconds(run_dir)
    remove_partial(run_dir)
    if saved is None:
        # But for events and logs of a start without a checkpoint.
        for name in ("checkpoints", "tensorboard"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json"):
            (run_dir / name).unlink(missing_ok=True)
        return seconds
    assert saved.path is not None
    try:
        newer = go_on_from(saved.path, run_dir)
        (run_dir / "summary.json").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{run_dir} can't be written: {error.strerror or error}") from error
    names = ", ".join(path.name for path in newer)
    fate = f"; newer ones will be removed when this run has saved ({names}): give another --run-dir to keep them"
    tell(f"resuming {saved.path}{fate if newer else ''}")
    then = float(saved.meta["metrics"]["seconds"])
    cut_lines(run_dir / "metrics.jsonl", then)
    return max(seconds, then)


def _make(path: Path) -> list[Path]:
    """Make a folder and its parents; return those that were not there, the innermost first."""
    made: list[Path] = []
    try:
        for folder in [*reversed(path.parents), path]:
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.insert(0, folder)
        if not path.is_dir():
            raise UsageError(f"--run-dir {path} can't be written: it is a file, choose a new folder")
    except OSError as error:
        raise UsageError(
            f"--run-dir {path} can't be written ({error.strerror or error}): choose another folder"
        ) from error
    return made


def describe(given: Config, config: Config) -> dict[str, Any]:
    """Return what config.json holds: the settings as given, those that may be chosen, versions, the git commit."""
    chosen = {name: getattr(config, name) for name in ("host", "workers", "envs_per_task", "device")}
    # What a preset fills: the settings without a value of their own.
    for section in ("collector", "replay", "network", "learner"):
        settings = getattr(config, section)
        gaps = [field.name for field in dataclasses.fields(settings) if field.default is None]
        chosen[section] = {name: value for name in gaps if (value := getattr(settings, name)) is not None}
    return {
        "config": to_dict(given),
        "chosen": chosen,
        "versions": versions(),
        "git_commit": git_commit(),
    }


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


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
