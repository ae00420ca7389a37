"""EnvPool: simulators stepped by C++ threads (``pip install -e ".[envpool]"``).

Three families of its tasks, by name: dm_control's suite under dm_control's names (``humanoid-walk``), Meta-World under
``metaworld-<task>`` (``metaworld-drawer-open``) and Gymnasium's continuous control under its own ids (``Ant-v5``).

EnvPool 1.2.5 bundles MuJoCo 3.6, so the suite's trajectories agree with dm_control's in distribution, not bit for bit.
Some of its tasks show more than dm_control's do (``position`` on humanoid); what is taken is dm_control's own entries,
in dm_control's order.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from typing import Any

import envpool
import numpy as np

from mtray.data.specs import OBSERVATION, FloatArray, TaskSpec
from mtray.engines import dm_control as reference
from mtray.engines.base import BatchSim, BoolArray, StepArrays

NAME = "envpool"
_LAST = 2
# In 1.2.5 their observations are distributed differently from dm_control's (tests/test_envpool.py): not offered.
_DIFFERENT = ("cartpole-two_poles", "cartpole-three_poles")
_METAWORLD = "MetaWorld/"
_GYMNASIUM = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
    "BipedalWalker-v3",
    "LunarLanderContinuous-v3",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
)


@functools.cache
def task_names() -> dict[str, str]:
    """Task name to EnvPool's own: ``humanoid-walk`` is ``HumanoidWalk-v1``."""
    suite = {name: _joined(name) + "-v1" for name in reference.task_names() if name not in _DIFFERENT}
    metaworld = {_metaworld_name(pool): pool for pool in envpool.list_all_envs() if pool.startswith(_METAWORLD)}
    return suite | metaworld | {name: name for name in _GYMNASIUM}


def task_sets() -> dict[str, tuple[str, ...]]:
    """The suite's sets without the tasks that differ; ``metaworld``, all 50; ``gymnasium``."""
    sets = reference.task_sets()
    suite = {name: tuple(task for task in members if task not in _DIFFERENT) for name, members in sets.items()}
    metaworld = tuple(name for name, pool in task_names().items() if pool.startswith(_METAWORLD))
    return suite | {"metaworld": metaworld, "gymnasium": _GYMNASIUM}


def _joined(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name))


def _metaworld_name(pool: str) -> str:
    words = re.findall("[A-Z][a-z]*", pool.removeprefix(_METAWORLD).rpartition("-")[0])
    return "-".join(["metaworld", *map(str.lower, words)])


def _is_suite(name: str) -> bool:
    return name in reference.task_names()


@functools.cache
def spec_of(name: str, action_repeat: int) -> TaskSpec:
    """dm_control's spec of a task of the suite, EnvPool's own of another; those repeat actions as they are made to."""
    if _is_suite(name):
        return dataclasses.replace(reference.spec_of(name, action_repeat), engine=NAME)
    observation, action, steps = _spaces(name)
    return TaskSpec(
        name=name,
        engine=NAME,
        observation=((OBSERVATION, int(np.prod(observation.shape))),),
        action_low=tuple(action.low.astype(np.float64).tolist()),
        action_high=tuple(action.high.astype(np.float64).tolist()),
        horizon=steps,
        time_step_seconds=None,
    )


def _spaces(name: str) -> tuple[Any, Any, int]:
    """Gymnasium's spaces of observation and action, and the steps of an episode."""
    with warnings.catch_warnings():
        # Gymnasium remarks that bounds given in float64 lose digits as float32.
        warnings.simplefilter("ignore")
        found = envpool.make_spec(task_names()[name])
        return found.observation_space, found.action_space, int(found.config.max_episode_steps)


def make_sim(spec: TaskSpec, num_envs: int, seed: int) -> EnvPoolSim:
    """K copies of a task, stepped by a thread of their own."""
    return EnvPoolSim(spec, num_envs, seed)


class EnvPoolSim(BatchSim):
    """K copies of one task in a pool of threads; `send` returns at once, the threads work until `recv`."""

    def __init__(self, spec: TaskSpec, num_envs: int, seed: int, threads: int = 1) -> None:
        """Start the pool."""
        self.num_envs = num_envs
        self.spec = spec
        self._threads = threads
        self._everyone = np.arange(num_envs, dtype=np.int32)
        self._slices = self.spec.slices
        self._suite = _is_suite(spec.name)
        self._dtype = np.dtype(np.float64)
        self._open(seed)

    def _open(self, seed: int) -> None:
        # EnvPool's seeds are ints of 32 bits with a sign.
        settings = {"num_envs": self.num_envs, "num_threads": self._threads, "seed": seed % (2**31)}
        make = envpool.make_dm if self._suite else envpool.make_gymnasium
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._pool: Any = make(task_names()[self.spec.name], **settings)
            if not self._suite:
                # Spaces are made when they are first asked for, which a reset would do.
                self._dtype, _ = self._pool.action_space.dtype, self._pool.observation_space

    def seed(self, seed: int) -> None:
        """Start the pool anew: a pool is seeded when it is made."""
        self._pool.close()
        self._open(seed)

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        ids = np.flatnonzero(mask).astype(np.int32)
        reached = self._pool.reset(ids)
        observation[ids] = self._observations(reached.observation if self._suite else reached[0], len(ids))

    def _observations(self, observation: Any, count: int) -> FloatArray:
        if not self._suite:
            return observation.reshape(count, -1)  # type: ignore[no-any-return]
        rows = np.empty((count, self.spec.observation_size), np.float32)
        for entry, where in self._slices:
            rows[:, where] = getattr(observation, entry).reshape(count, -1)
        return rows

    def send(self, action: FloatArray) -> None:
        """Set the threads to work."""
        self._action = action.astype(self._dtype)
        self._pool.send(self._action, self._everyone)

    def recv(self, out: StepArrays) -> None:
        """Wait for the threads and write the outcome."""
        self._recv(self._everyone, out)
        ids = self._everyone
        for _ in range(self.spec.action_repeat - 1):
            ids = ids[~(out.terminated | out.truncated)[ids]]
            if not len(ids):
                break
            before = out.reward.copy()
            self._pool.send(self._action[ids], ids)
            self._recv(ids, out)
            out.reward[ids] += before[ids]

    def _recv(self, ids: Any, out: StepArrays) -> None:
        reached = self._pool.recv()
        if self._suite:
            last = reached.step_type == _LAST
            limit = last & (reached.discount == 1.0)
            observation, reward, terminated, truncated = reached.observation, reached.reward, last & ~limit, limit
        else:
            observation, reward, terminated, truncated, _ = reached
            # Gymnasium allows both at once; an end of the task's own is one, whatever the clock says.
            truncated = truncated & ~terminated
        out.observation[ids] = self._observations(observation, len(ids))
        out.reward[ids] = reward
        out.terminated[ids], out.truncated[ids] = terminated, truncated

    def close(self) -> None:
        """End the threads."""
        self._pool.close()
