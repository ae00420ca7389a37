"""Slots: the arrays through which a collector and a task's simulators exchange a step, under every host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mtray.data.specs import FloatArray, TaskSpec
from mtray.engines.base import LOGGER, TASK_FAILURES, BatchSim, BoolArray, StepArrays, task_error
from mtray.errors import TaskError


@dataclass(frozen=True)
class Slot:
    """A task's arrays in a host, the same arrays at every step.

    Attributes:
        observation: [K, obs_t] float32, the state to act on.
        action: [K, act_t] float32, written by the collector.
        next_observation: [K, obs_t] float32, the state reached; at an episode's end the true last observation.
        reward: [K] float32.
        terminated: [K] bool.
        truncated: [K] bool.
        broken: [K] bool, the step failed: it is no transition, and its episode does not count.
        info: [K, n] float32, what the environment reports beside, under the names of its spec.
        reached: [K * (obs_t + 1)] float32, the memory of ``next_observation`` and ``reward``.
    """

    observation: FloatArray
    action: FloatArray
    next_observation: FloatArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    broken: BoolArray
    info: FloatArray
    reached: FloatArray

    @classmethod
    def view(cls, memory: Any, spec: TaskSpec, copies: int) -> Slot:
        """Return the slot that lies in a buffer of `slot_bytes` bytes."""
        layout = _layout(spec, copies)
        assert layout.names is not None
        assert layout.fields is not None
        record, offset = np.frombuffer(memory, layout), layout.fields["next_observation"][1]
        reached = np.frombuffer(memory, np.float32, copies * (spec.observation_size + 1), offset)
        return cls(**{name: record[name][0] for name in layout.names}, reached=reached)

    @cached_property
    def outcome(self) -> StepArrays:
        """The arrays that a simulator writes at the end of a step."""
        return StepArrays(self.next_observation, self.reward, self.terminated, self.truncated, self.broken, self.info)


def slot_bytes(spec: TaskSpec, copies: int) -> int:
    """Return the size of a task's slot."""
    return _layout(spec, copies).itemsize


def _layout(spec: TaskSpec, copies: int) -> np.dtype[np.void]:
    observation = (np.float32, (copies, spec.observation_size))
    return np.dtype(
        [
            ("observation", *observation),
            ("action", np.float32, (copies, spec.action_size)),
            ("next_observation", *observation),
            ("reward", np.float32, (copies,)),
            ("terminated", np.bool_, (copies,)),
            ("truncated", np.bool_, (copies,)),
            ("broken", np.bool_, (copies,)),
            ("info", np.float32, (copies, len(spec.info))),
        ]
    )


def finish_step(sim: BatchSim, slot: Slot) -> None:
    """Receive a step that was sent; copies whose episode ended start the next one.

    Raises:
        TaskError: a number that the task gave is not finite.
    """
    slot.broken[:] = False
    sim.recv(slot.outcome)
    # One look at both: it takes 1 us of a step's 100 or more.
    if not np.isfinite(slot.reached).all():
        whole = ~slot.broken
        check_finite(sim.spec.name, "step", "reward", slot.reward[whole, None])
        check_finite(sim.spec.name, "step", "observation", slot.next_observation[whole])
    slot.observation[:] = slot.next_observation
    ended = slot.terminated | slot.truncated
    if ended.any():
        reset_copies(sim, slot, ended)


def reset_copies(sim: BatchSim, slot: Slot, which: BoolArray) -> None:
    """Start an episode in some copies.

    Raises:
        TaskError: a number that the task gave is not finite.
    """
    sim.reset(which, slot.observation)
    check_finite(sim.spec.name, "reset", "observation", slot.observation[which])


def check_finite(task: str, call: str, what: str, values: FloatArray) -> None:
    """Raise a TaskError that names the first of these numbers [n, m] that is not finite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        at = f" (entry {bad[0, 1]})" if values.shape[1] > 1 else ""
        raise TaskError(
            f"task {task!r}: its {call} gave the {what} {values[tuple(bad[0])]}{at}: "
            "an environment must give finite numbers, within the range of float32",
            task,
        )


def mark_broken(slot: Slot) -> None:
    """Make a step of every copy one that failed; a new simulator has written ``slot.observation``."""
    slot.truncated[:] = slot.broken[:] = True
    slot.terminated[:] = False


def close_sim(sim: BatchSim, name: str) -> None:
    """Free a task's simulators; an error of theirs becomes a warning."""
    try:
        sim.close()
    except TASK_FAILURES as error:
        LOGGER.warning("%s", task_error(name, "close", error))
