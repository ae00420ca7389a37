"""What a resumed run may change: checked before anything is written, for the command line and for Python callers."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtray.config.learner import NetworkConfig
from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.errors import UnknownTaskError, UsageError
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve

# In place of a run directory: --run-dir is resumed if it has a checkpoint, and else started.
AUTO = Path("auto")
# What every resume may give.
_ENDS = ("resume", "run_dir", "total_frames", "total_minutes")
# The saved weights, rows or numbers would not fit, or would not mean the same.
FIXED = (
    "tasks",
    "engine",
    "seed",
    "collector.action_repeat",
    "learner.algorithm",
    "learner.atoms",
    "learner.value_limit",
)


def resolve_saved(config: Config) -> tuple[Task, ...]:
    """Return the tasks of a run that was saved.

    Raises:
        UnknownTaskError: a task is not known in this process; it may have been registered in another one.
    """
    try:
        return resolve(config.tasks, config.engine, config.collector.action_repeat)
    except UnknownTaskError as error:
        raise UnknownTaskError(
            f"{error}; a task that was registered in Python is known only there: call "
            "mtray.train in a program that registers it first, or name tasks package.module:maker"
        ) from error


def check_resume(given: Config, saved: Config) -> None:
    """Raise if a resumed run's settings, but for its networks', do not fit those that it was made with.

    Raises:
        UsageError: names the flag and both values.
    """
    resumed = given.run_dir if given.resume == AUTO else given.resume
    for name in FIXED:
        now, before = operator.attrgetter(name)(given), operator.attrgetter(name)(saved)
        _check(name, now, before, resumed)


def changes(given: Config, saved: Config) -> list[str]:
    """Return the settings that a resume changes, each with its flag, its value and the one before."""
    now, before = _leaves(to_dict(given)), _leaves(to_dict(saved))
    return [
        f"--{name.replace('_', '-')} {_text(value)} ({_text(before[name])})"
        for name, value in now.items()
        if value != before[name] and name not in _ENDS
    ]


def _leaves(values: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{name}.") if isinstance(value, dict) else {group + name: value}
    return found


def check_network(given: NetworkConfig, saved: NetworkConfig, resume: Path | None) -> None:
    """Raise if sizes or other settings of networks that are given differ from those of the checkpoint.

    Raises:
        UsageError: names the flag and both values.
    """
    before = saved.filled(saved.sizes)
    # The run may have been made on another device, for which its preset chose others.
    now = given.filled(before.sizes)
    for name in vars(before):
        _check(f"network.{name}", getattr(now, name), getattr(before, name), resume)


def _check(name: str, now: object, before: object, resume: Path | None) -> None:
    if now != before:
        raise UsageError(
            f"--{name.replace('_', '-')} {_text(now)} differs from the {_text(before)} that {resume} was "
            "made with: a resumed run keeps its tasks, network, algorithm and seed. Start a new run to change "
            "them; in Python begin with dataclasses.replace(mtray.read_config(run_dir), resume=run_dir)"
        )


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
