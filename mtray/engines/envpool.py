"""EnvPool: dm_control's suite stepped by C++ threads (``pip install mtray[envpool]``).

EnvPool 1.2.5 bundles MuJoCo 3.6, so its trajectories agree with dm_control's in distribution, not bit for bit. Some
of its tasks show more than dm_control's do (``position`` on humanoid); what is taken is dm_control's own entries, in
dm_control's order.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import envpool
import numpy as np

from mtray.engines import BatchSim, BoolArray, StepArrays
from mtray.engines import dm_control as reference
from mtray.specs import FloatArray, TaskSpec

NAME = "envpool"
_LAST = 2
# In 1.2.5 their observations are distributed differently from dm_control's (tests/test_envpool.py): not offered.
_DIFFERENT = ("cartpole-two_poles", "cartpole-three_poles")


def task_names() -> dict[str, str]:
    """Task name to EnvPool's own, over dm_control's suite: ``humanoid-walk`` is ``HumanoidWalk-v1``."""
    return {name: _pool_name(name) for name in reference.task_names() if name not in _DIFFERENT}


def task_sets() -> dict[str, tuple[str, ...]]:
    """The sets that the dm_control engine has, without the tasks that differ."""
    sets = reference.task_sets()
    return {name: tuple(task for task in members if task not in _DIFFERENT) for name, members in sets.items()}


def _pool_name(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name)) + "-v1"


def make_sim(name: str, num_envs: int, seed: int) -> EnvPoolSim:
    """K copies of the suite's task ``name``, stepped by a thread of their own."""
    return EnvPoolSim(name, num_envs, seed)


class EnvPoolSim(BatchSim):
    """K copies of one task in a pool of threads; `send` returns at once, the threads work until `recv`."""

    def __init__(self, name: str, num_envs: int, seed: int, threads: int = 1) -> None:
        """Start the pool."""
        self.num_envs = num_envs
        self._name = name
        self._threads = threads
        alone = reference.make_sim(name, 1, seed)
        self.spec: TaskSpec = dataclasses.replace(alone.spec, engine=NAME)
        alone.close()
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._slices = self.spec.slices
        self._open(seed)

    def _open(self, seed: int) -> None:
        # EnvPool's seeds are ints of 32 bits with a sign.
        self._pool: Any = envpool.make_dm(
            _pool_name(self._name), num_envs=self.num_envs, num_threads=self._threads, seed=seed % (2**31)
        )

    def seed(self, seed: int) -> None:
        """Start the pool anew: a pool is seeded when it is made."""
        self._pool.close()
        self._open(seed)

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        ids = np.flatnonzero(mask).astype(np.int32)
        reached = self._pool.reset(ids).observation
        rows = np.empty((len(ids), self.spec.observation_size), np.float32)
        self._write(reached, rows)
        observation[ids] = rows

    def send(self, action: FloatArray) -> None:
        """Set the threads to work."""
        self._pool.send(action.astype(np.float64), self._ids)

    def recv(self, out: StepArrays) -> None:
        """Wait for the threads and write the outcome."""
        time_step = self._pool.recv()
        self._write(time_step.observation, out.observation)
        out.reward[:] = time_step.reward
        last = time_step.step_type == _LAST
        limit = last & (time_step.discount == 1.0)
        out.truncated[:] = limit
        out.terminated[:] = last & ~limit

    def _write(self, observation: Any, rows: FloatArray) -> None:
        for entry, where in self._slices:
            value = getattr(observation, entry)
            rows[:, where] = value.reshape(len(rows), -1)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()
