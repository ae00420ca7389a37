"""EnvPool: simulators stepped by C++ threads (``pip install -e ".[envpool]"``).

Tasks: dm_control's suite by its names (``humanoid-walk``), Meta-World as ``metaworld-<task>``
(``metaworld-drawer-open``) and Gymnasium's continuous control by its ids (``Ant-v5``).

EnvPool 1.2.5 bundles MuJoCo 3.6, so the suite's trajectories equal dm_control's in distribution, not bit for bit. Some
of its tasks have further observation entries (``position`` on humanoid); dm_control's are used, in dm_control's order.
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
# dm_env's StepType.LAST.
_LAST = 2
# Not offered: in 1.2.5 their observations are distributed differently from dm_control's (test_envpool.py).
_DIFFERENT = ("cartpole-two_poles", "cartpole-three_poles")
_METAWORLD = "MetaWorld/"
# What EnvPool reports beside rewards, and what of it are no figures.
_INFO, _IDS = "info:", {"info:env_id", "info:players.env_id", "info:task_id"}
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
    """Return the tasks and EnvPool's ids of them: ``{"humanoid-walk": "HumanoidWalk-v1", ...}``."""
    suite = {name: _suite_id(name) for name in reference.task_names() if name not in _DIFFERENT}
    metaworld = {_metaworld_name(id_): id_ for id_ in envpool.list_all_envs() if id_.startswith(_METAWORLD)}
    return suite | metaworld | {name: name for name in _GYMNASIUM}


def task_sets() -> dict[str, tuple[str, ...]]:
    """Return the suite's sets without tasks that differ, ``metaworld`` (50 tasks) and ``gymnasium``."""
    sets = reference.task_sets()
    suite = {name: tuple(task for task in members if task not in _DIFFERENT) for name, members in sets.items()}
    metaworld = tuple(name for name, id_ in task_names().items() if id_.startswith(_METAWORLD))
    return suite | {"metaworld": metaworld, "gymnasium": _GYMNASIUM}


def _suite_id(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name)) + "-v1"


def _metaworld_name(id_: str) -> str:
    words = re.findall("[A-Z][a-z]*", id_.removeprefix(_METAWORLD).rpartition("-")[0])
    return "-".join(["metaworld", *map(str.lower, words)])


def _is_suite(name: str) -> bool:
    return name in reference.task_names()


@functools.cache
def spec_of(name: str, action_repeat: int) -> TaskSpec:
    """Return dm_control's spec of a task of the suite, else EnvPool's, whose tasks have their own action repeat."""
    if _is_suite(name):
        return dataclasses.replace(reference.spec_of(name, action_repeat), engine=NAME)
    with warnings.catch_warnings():
        # Gymnasium warns that float64 bounds lose precision as float32.
        warnings.simplefilter("ignore")
        spec = envpool.make_spec(task_names()[name])
        observation, action = spec.observation_space, spec.action_space
    return TaskSpec(
        name=name,
        engine=NAME,
        observation=((OBSERVATION, int(np.prod(observation.shape))),),
        action_low=tuple(action.low.astype(np.float64).tolist()),
        action_high=tuple(action.high.astype(np.float64).tolist()),
        horizon=int(spec.config.max_episode_steps),
        time_step_seconds=None,
        info=tuple(
            key.removeprefix(_INFO) for key in spec.state_array_spec if key.startswith(_INFO) and key not in _IDS
        ),
    )


class EnvPoolSim(BatchSim):
    """K copies of one task; `send` returns at once, and a thread computes until `recv`."""

    def __init__(self, spec: TaskSpec, num_envs: int, seed: int) -> None:
        """Start the pool."""
        self.num_envs = num_envs
        self.spec = spec
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._slices = spec.slices
        self._is_suite = _is_suite(spec.name)
        self._dtype = np.dtype(np.float64)
        self._open(seed)

    def _open(self, seed: int) -> None:
        # EnvPool's seeds are signed 32-bit integers.
        settings = {"num_envs": self.num_envs, "num_threads": 1, "seed": seed % (2**31)}
        make = envpool.make_dm if self._is_suite else envpool.make_gymnasium
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._pool: Any = make(task_names()[self.spec.name], **settings)
            if not self._is_suite:
                # The first access of a space warns; later a reset would be the first.
                self._dtype, _ = self._pool.action_space.dtype, self._pool.observation_space

    def seed(self, seed: int) -> None:
        """Replace the pool, which can be seeded only when it is made."""
        self._pool.close()
        self._open(seed)

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        ids = np.flatnonzero(mask).astype(np.int32)
        started = self._pool.reset(ids)
        observation[ids] = self._concatenated(started.observation if self._is_suite else started[0], len(ids))

    def _concatenated(self, observation: Any, count: int) -> FloatArray:
        if not self._is_suite:
            return observation.reshape(count, -1)  # type: ignore[no-any-return]
        rows = np.empty((count, self.spec.observation_size), np.float32)
        for entry, columns in self._slices:
            rows[:, columns] = getattr(observation, entry).reshape(count, -1)
        return rows

    def send(self, action: FloatArray) -> None:
        """Start the step in the pool's thread."""
        self._action = action.astype(self._dtype)
        self._pool.send(self._action, self._ids)

    def recv(self, out: StepArrays) -> None:
        """Wait for the step and write its result."""
        ids = self._ids
        self._recv(ids, out)
        for _ in range(self.spec.action_repeat - 1):
            ids = ids[~(out.terminated | out.truncated)[ids]]
            if not len(ids):
                break
            earlier = out.reward[ids]
            self._pool.send(self._action[ids], ids)
            self._recv(ids, out)
            out.reward[ids] += earlier

    def _recv(self, ids: Any, out: StepArrays) -> None:
        result = self._pool.recv()
        if self._is_suite:
            last = result.step_type == _LAST
            truncated = last & (result.discount == 1.0)
            observation, reward, terminated = result.observation, result.reward, last & ~truncated
        else:
            observation, reward, terminated, truncated, info = result
            for index, name in enumerate(self.spec.info):
                out.info[ids, index] = info[name]
            # Gymnasium allows both at once; termination takes precedence.
            truncated = truncated & ~terminated
        out.observation[ids] = self._concatenated(observation, len(ids))
        out.reward[ids] = reward
        out.terminated[ids], out.truncated[ids] = terminated, truncated

    def close(self) -> None:
        """End the pool's thread."""
        self._pool.close()


make_sim = EnvPoolSim
