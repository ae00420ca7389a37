"""Hosts: what a collector steps.

The simulators of several tasks together, by the one path that is right, without a TensorDict in the loop.
``parallel`` keeps a process per task, ``inline`` steps them in the collector's own process; both give the same data
for the same seeds, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mtray.data.specs import ACTION, NEXT, REWARD, FloatArray, TaskSpec
from mtray.engines.base import BoolArray, StepArrays
from mtray.tasks.makers import TaskMaker

if TYPE_CHECKING:
    from tensordict import TensorDictBase


@dataclass(frozen=True)
class Slot:
    """One task's place in a host: arrays that are the same at every step.

    Attributes:
        observation: [K, obs_t] float32, the state to act on.
        action: [K, act_t] float32, written by whoever acts.
        next_observation: [K, obs_t] float32, the true state reached.
        reward: [K] float32.
        terminated: [K] bool.
        truncated: [K] bool.
    """

    observation: FloatArray
    action: FloatArray
    next_observation: FloatArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray


class Host(ABC):
    """Tasks stepped together: write ``slots[i].action``, call `step`, read the slots."""

    specs: tuple[TaskSpec, ...]
    slots: tuple[Slot, ...]

    @abstractmethod
    def reset(self) -> None:
        """Start an episode in every copy."""

    @abstractmethod
    def step(self) -> None:
        """One control step of every copy; copies whose episode ended start the next one."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulators and end their processes."""


class InlineHost(Host):
    """All tasks in the calling process."""

    def __init__(self, makers: Sequence[TaskMaker]) -> None:
        """Build every task's simulators."""
        self._sims = [maker.task.make_sim(maker.num_envs or 1, maker.seed) for maker in makers]
        self.specs = tuple(sim.spec for sim in self._sims)
        slots, self._out = [], []
        for sim in self._sims:
            out = StepArrays.empty(sim.num_envs, sim.spec)
            action = np.zeros((sim.num_envs, sim.spec.action_size), np.float32)
            self._out.append(out)
            slots.append(
                Slot(np.zeros_like(out.observation), action, out.observation, out.reward, out.terminated, out.truncated)
            )
        self.slots = tuple(slots)

    def reset(self) -> None:
        """Start an episode in every copy."""
        for sim, slot in zip(self._sims, self.slots, strict=True):
            sim.reset(np.ones(sim.num_envs, np.bool_), slot.observation)

    def step(self) -> None:
        """One control step of every copy; simulators with threads of their own work side by side."""
        for sim, slot in zip(self._sims, self.slots, strict=True):
            sim.send(slot.action)
        for sim, slot, out in zip(self._sims, self.slots, self._out, strict=True):
            sim.recv(out)
            slot.observation[:] = out.observation
            ended = out.terminated | out.truncated
            if ended.any():
                sim.reset(ended, slot.observation)

    def close(self) -> None:
        """Free the simulators."""
        for sim in self._sims:
            sim.close()


class ParallelHost(Host):
    """A process per task, by torchrl's ParallelEnv.

    The step is ParallelEnv's own ``step_and_maybe_reset`` (the one path that keeps exclusive keys right), spoken
    to its workers directly: the slots are the workers' shared memory, so nothing is cloned or stacked on the way.
    """

    def __init__(self, makers: Sequence[TaskMaker]) -> None:
        """Start the processes."""
        from mtray.tasks.parallel import MultiTaskEnv

        self.env = MultiTaskEnv(makers)
        self.specs = tuple(maker.task.spec for maker in makers)
        self.env.reset()
        shared = self.env.shared_tensordicts
        self.slots = tuple(_shared_slot(shared[index], spec) for index, spec in enumerate(self.specs))
        self._everyone = range(len(makers))

    def reset(self) -> None:
        """Start an episode in every copy."""
        self.env.reset()

    def step(self) -> None:
        """One control step of every copy, all tasks at once."""
        for index, channel in enumerate(self.env.parent_channels):
            try:
                channel.send(("step_and_maybe_reset", {}))
            except BrokenPipeError:
                self.env.fail(index)
        self.env._wait_for_workers(self._everyone)

    def close(self) -> None:
        """End the processes."""
        if not self.env.is_closed:
            self.env.close()


def _shared_slot(shared: TensorDictBase, spec: TaskSpec) -> Slot:
    def array(key: str | tuple[str, str]) -> Any:
        return shared.get(key).numpy()

    return Slot(
        array(spec.key),
        array(ACTION),
        array((NEXT, spec.key)),
        array((NEXT, REWARD))[..., 0],
        array((NEXT, "terminated"))[..., 0],
        array((NEXT, "truncated"))[..., 0],
    )


def make_host(name: str, makers: Sequence[TaskMaker]) -> Host:
    """The host ``parallel`` or ``inline`` over these makers, every copy at the start of an episode."""
    if name == "parallel":
        return ParallelHost(makers)
    host = InlineHost(makers)
    host.reset()
    return host
