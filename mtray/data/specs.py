"""Specs: every key, shape and dtype of a task's data.

Used by every process, also by those that never import torch. `schema.py` checks TensorDicts against it, `rows.py`
defines the memory layout.

Names of axes in all docstrings:
    K       simulator copies of one task in one collector
    L       steps in a rollout
    B       rows of one task in a batch
    T       tasks
    obs_t   a task's own observation width, ``act_t`` its action width
    obs     the widest observation of the run, ``act`` the widest action; narrower tasks are padded with zeros, in
            ``observation`` and in the learner's batches only

A task's data has these keys, and no others, float32 or bool, each flag and reward with a last axis of one:
``observation`` [..., obs], ``observation_<task>`` [..., obs_t], ``action`` [..., act_t], ``done``,
``terminated``, ``truncated``, and under ``next`` the same observations and flags and ``reward``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mtray.errors import UsageError

OBSERVATION = "observation"
ACTION = "action"
REWARD = "reward"
NEXT = "next"
DONE_KEYS = ("done", "terminated", "truncated")
# An action entry whose bounds are beyond ±UNBOUNDED (lqr's are ±1e10) counts as unbounded and is learned on [-1, 1].
UNBOUNDED = 1e6

FloatArray = npt.NDArray[np.float32]


def task_key(task: str) -> str:
    """Return a task's exclusive observation key."""
    return f"{OBSERVATION}_{task}"


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task's sizes, action bounds and time limits.

    Attributes:
        name: the task's name, as in its exclusive key ``observation_<name>``.
        engine: name of the engine that simulates it.
        observation: (entry, width) in the simulator's key order; ``observation_<name>`` is their concatenation.
        action_low: lowest value of each action dimension.
        action_high: highest value of each action dimension.
        horizon: control steps after which an episode is truncated; None if never.
        time_step_seconds: simulated seconds per control step; None if unknown.
        action_repeat: control steps (frames) per agent step.
        info: names of the numbers that the environment reports with each step beside reward and observation.
    """

    name: str
    engine: str
    observation: tuple[tuple[str, int], ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    horizon: int | None
    time_step_seconds: float | None
    action_repeat: int = 1
    info: tuple[str, ...] = ()

    @property
    def discount(self) -> float:
        """clip((n/5 - 1) / (n/5), 0.95, 0.995) for episodes of n agent steps; 0.99 without a time limit.

        Hansen, Su, Wang 2024, "TD-MPC2", appendix.
        """
        if self.horizon is None:
            return 0.99
        fifth = self.horizon / self.action_repeat / 5
        return min(0.995, max(0.95, (fifth - 1) / fifth))

    @property
    def observation_size(self) -> int:
        """obs_t, the width of the concatenated observation."""
        return sum(width for _, width in self.observation)

    @property
    def slices(self) -> tuple[tuple[str, slice], ...]:
        """(entry, its slice of the concatenated observation), in the simulator's key order."""
        ends = itertools.accumulate(width for _, width in self.observation)
        return tuple((name, slice(end - width, end)) for (name, width), end in zip(self.observation, ends, strict=True))

    @property
    def action_size(self) -> int:
        """act_t, the number of action dimensions."""
        return len(self.action_low)

    @property
    def action_range(self) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest action [act_t] to draw: the bounds, or -1 and 1 where an entry has none."""
        low, high = np.array((self.action_low, self.action_high), np.float32)
        has_none = (low <= -UNBOUNDED) & (high >= UNBOUNDED)
        return np.where(has_none, np.float32(-1), low), np.where(has_none, np.float32(1), high)

    @property
    def row_size(self) -> int:
        """float32 words in a stored row: observation, action, reward, flags."""
        return self.observation_size + self.action_size + 2

    @property
    def key(self) -> str:
        """The task's exclusive observation key."""
        return task_key(self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskSpec:
        """Return the spec that `to_dict` wrote."""
        observation = tuple((str(entry), int(width)) for entry, width in data["observation"])
        bounds = {name: tuple(data[name]) for name in ("action_low", "action_high")}
        return cls(**{**data, "observation": observation, "info": tuple(data.get("info", ())), **bounds})


def observation_width(specs: Iterable[TaskSpec]) -> int:
    """Return obs, the width of the common ``observation`` of a run of these tasks."""
    return max(spec.observation_size for spec in specs)


def action_width(specs: Iterable[TaskSpec]) -> int:
    """Return act, the width of the widest action of a run of these tasks."""
    return max(spec.action_size for spec in specs)


def check_together(specs: Sequence[TaskSpec]) -> None:
    """Check that one run can learn these tasks.

    Raises:
        UsageError: no task, a name that is used twice or not printable, or a task without observation or action.
    """
    if not specs:
        raise UsageError("no task given: name at least one, for example --tasks humanoid")
    seen: dict[str, TaskSpec] = {}
    for spec in specs:
        if spec.name in seen:
            raise UsageError(
                f"task {spec.name!r} is named twice (engines {seen[spec.name].engine!r} and {spec.engine!r}): "
                "each task writes its own key, so drop one of them or register it under another name"
            )
        # Lone surrogates can't be encoded; control characters garble a terminal.
        if not spec.name.isprintable():
            raise UsageError(f"task name {spec.name!a}: use printable characters only")
        if not spec.observation_size or not spec.action_size:
            raise UsageError(
                f"task {spec.name!r} has {spec.observation_size} observation and {spec.action_size} action "
                "dimensions: both must be at least 1"
            )
        seen[spec.name] = spec


def check_specs(saved: Sequence[TaskSpec], found: Sequence[TaskSpec], when: str) -> None:
    """Check that the tasks' specs have not changed; the engine, and what is reported beside, may differ.

    Args:
        saved: earlier specs.
        found: current specs; tasks that only one side has are not compared.
        when: source of the earlier specs, for the message: ``when runs/a was saved``.

    Raises:
        UsageError: names the task, the field and both values.
    """
    now = {spec.name: asdict(spec) for spec in found}
    for spec in saved:
        for field, value in asdict(spec).items() if spec.name in now else ():
            other = now[spec.name][field]
            if field not in ("engine", "info") and other != value:
                raise UsageError(
                    f"task {spec.name!r}: {field} is {_short(other)}, but was {_short(value)} {when}: "
                    "its maker or simulator has changed; undo the change, or start a new run"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
