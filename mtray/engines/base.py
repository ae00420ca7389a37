"""Simulators behind one small interface.

An engine knows its simulator and numpy, nothing of torch: it steps K copies of one task in one process and writes
float32 straight into arrays it is given. One file per simulator is the only place that imports it; `tasks/plan.py`
names the files and loads one when a task of it is asked for.
"""

from __future__ import annotations

import logging
import os
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtray.data.specs import FloatArray, TaskSpec
from mtray.errors import TaskError

BoolArray = npt.NDArray[np.bool_]

# What a task's own code may raise; KeyboardInterrupt is the user's. As an except clause it costs nothing until then.
TASK_FAILURES = (Exception, SystemExit)

LOGGER = logging.getLogger("mtray")


@dataclass(frozen=True)
class StepArrays:
    """Where an agent step's outcome is written.

    Attributes:
        observation: [K, obs_t] float32.
        reward: [K] float32, summed over the control steps.
        terminated: [K] bool.
        truncated: [K] bool.
    """

    observation: FloatArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray

    @classmethod
    def empty(cls, num_envs: int, spec: TaskSpec) -> StepArrays:
        """Arrays of a task's size, zero and false."""
        return cls(
            np.zeros((num_envs, spec.observation_size), np.float32),
            np.zeros(num_envs, np.float32),
            np.zeros(num_envs, np.bool_),
            np.zeros(num_envs, np.bool_),
        )


class BatchSim(ABC):
    """K copies of one task, stepped together in one process.

    A copy whose episode has ended (terminated or truncated) must be reset before its next step.
    """

    spec: TaskSpec
    num_envs: int

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed copy k with ``copy_seed(seed, k)``; the next reset starts a fresh episode."""

    @abstractmethod
    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start an episode in the copies of ``mask`` [K] and write their rows of ``observation`` [K, obs_t]."""

    @abstractmethod
    def send(self, action: FloatArray) -> None:
        """Begin one agent step of every copy with ``action`` [K, act_t]; `recv` must follow.

        An agent step is ``spec.action_repeat`` control steps, fewer where the episode ends. A simulator with threads of
        its own works on while other tasks' steps begin. ``action`` stays as it is until then.
        """

    @abstractmethod
    def recv(self, out: StepArrays) -> None:
        """End the step that `send` began and write its outcome into ``out``.

        At an episode's end ``out.observation`` holds the true last observation. A time limit is ``truncated``,
        the task's own end is ``terminated``. Where the physics diverged the episode is ``truncated`` at the last
        observation that is one, and the step gives the rewards up to there.
        """

    def step(self, action: FloatArray, out: StepArrays) -> None:
        """One whole agent step."""
        self.send(action)
        self.recv(out)

    def warn_diverged(self, copy: int, why: str) -> None:
        """Say that a copy's physics gave up."""
        LOGGER.warning("task %r, copy %d: the physics diverged (%s), so its episode is cut", self.spec.name, copy, why)

    def close(self) -> None:  # noqa: B027  (most simulators have nothing to close)
        """Free what the simulator holds."""


def copy_seed(seed: int, copy: int) -> int:
    """The seed of one copy: the seed itself for the first, an independent one for every other."""
    if copy == 0:
        return seed
    return int(np.random.SeedSequence([seed, copy]).generate_state(1)[0])


def task_error(task: str, call: str, error: BaseException) -> TaskError:
    """Describe in one line what a task's code raised, so that it can travel without its exception class.

    Args:
        task: name of the task.
        call: what was called, for example ``step``.
        error: what it raised.
    """
    if isinstance(error, TaskError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    what = f"called sys.exit({text})" if isinstance(error, SystemExit) else f"raised {kind}: {text}"
    return TaskError(f"task {task!r}: its {call} {what}{where}", task)
