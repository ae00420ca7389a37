"""The interface of all simulators.

An engine steps K copies of one task in one process and writes float32 into the caller's arrays. It needs numpy but no
torch. Each simulator is imported by one file; `tasks/plan.py` lists the files and imports one when it is needed.
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
from mtray.engines.states import State
from mtray.errors import TaskError

BoolArray = npt.NDArray[np.bool_]

# Exceptions that count as a failure of a task's code; KeyboardInterrupt comes from the user.
TASK_FAILURES = (Exception, SystemExit)

LOGGER = logging.getLogger("mtray")


@dataclass(frozen=True)
class StepArrays:
    """Arrays that receive the result of an agent step.

    Attributes:
        observation: [K, obs_t] float32.
        reward: [K] float32, summed over the control steps.
        terminated: [K] bool.
        truncated: [K] bool.
        broken: [K] bool, the step failed: it is no transition, and its episode does not count. Cleared by the caller.
        info: [K, n] float32, what the environment reports under the n names of ``spec.info``.
    """

    observation: FloatArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    broken: BoolArray
    info: FloatArray

    @classmethod
    def empty(cls, num_envs: int, spec: TaskSpec) -> StepArrays:
        """Return new arrays, zero and false."""
        observation = np.zeros((num_envs, spec.observation_size), np.float32)
        info = np.zeros((num_envs, len(spec.info)), np.float32)
        terminated, truncated, broken = np.zeros((3, num_envs), np.bool_)
        return cls(observation, np.zeros(num_envs, np.float32), terminated, truncated, broken, info)


class BatchSim(ABC):
    """K copies of one task, stepped together in one process.

    After its episode has ended (terminated or truncated), a copy must be reset before its next step.
    """

    spec: TaskSpec
    num_envs: int

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed copy k with ``copy_seed(seed, k)``; the next reset starts a fresh episode."""

    @abstractmethod
    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start an episode in the copies of ``mask`` [K] and write only their rows of ``observation`` [K, obs_t]."""

    @abstractmethod
    def send(self, action: FloatArray) -> None:
        """Begin one agent step of every copy with ``action`` [K, act_t]; `recv` must follow.

        An agent step is ``spec.action_repeat`` control steps, fewer where the episode ends. A simulator with its own
        threads computes until `recv`; the caller must not change ``action`` before.
        """

    @abstractmethod
    def recv(self, out: StepArrays) -> None:
        """Finish the step that `send` began and write its result into ``out``.

        At an episode's end ``out.observation`` holds the true last observation. A time limit sets ``truncated``,
        the task's own end sets ``terminated``. Diverged physics sets ``truncated`` and ``broken``; ``out`` then holds
        the last valid observation and the rewards up to it.
        """

    def step(self, action: FloatArray, out: StepArrays) -> None:
        """Take one agent step in every copy."""
        self.send(action)
        self.recv(out)

    def state(self) -> State | None:
        """Return what the next steps and resets depend on, between two steps; None from engines that can't tell."""
        return None

    def load_state(self, state: State) -> None:
        """Go on, bit for bit, where another simulator of this task and number of copies gave its `state`."""
        raise NotImplementedError(f"engine {self.spec.engine} has no states")

    def warn_diverged(self, copy: int, cause: str) -> None:
        """Warn that the physics of a copy diverged."""
        LOGGER.warning("task %r, copy %d: physics diverged (%s), episode truncated", self.spec.name, copy, cause)

    @abstractmethod
    def close(self) -> None:
        """Free the simulator's memory, threads and processes."""


def copy_seed(seed: int, copy: int) -> int:
    """Return the seed of one copy: the seed itself for the first, an independent one for every other."""
    return seed if copy == 0 else derive_seed(seed, copy)


def derive_seed(*words: int) -> int:
    """Return a seed that these words give: two are a copy's (`copy_seed`), so others take more."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def task_error(task: str, call: str, error: BaseException) -> TaskError:
    """Return a picklable error that describes in one line an exception of a task's code, and keeps its traceback.

    Args:
        task: name of the task.
        call: the call that failed, for example ``step``.
        error: the exception.
    """
    if isinstance(error, TaskError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    # A call that can't even begin, as of a maker with other parameters, fails in the caller's file.
    is_users = bool(frames) and os.path.dirname(frames[-1].filename) != os.path.dirname(__file__)
    location = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if is_users else ""
    text = " ".join(str(error).split())
    cause = f"called sys.exit({text})" if isinstance(error, SystemExit) else f"raised {type(error).__name__}: {text}"
    trace = "".join(traceback.format_exception(error))
    return TaskError(f"task {task!r}: its {call} {cause}{location}", task, trace)
