"""dm_control's suite: the reference engine.

Steps dm_control's own environments, K in a row, with no Python objects per step beyond dm_control's own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from dm_control import suite
from dm_control.mujoco import Physics, wrapper
from dm_control.rl.control import Environment, PhysicsError

from mtray.data.specs import FloatArray, TaskSpec
from mtray.engines.base import BatchSim, BoolArray, StepArrays, copy_seed

NAME = "dm_control"


def task_names() -> dict[str, tuple[str, str]]:
    """Task name to (domain, task) over the whole suite: ``humanoid-walk`` is ("humanoid", "walk")."""
    return {f"{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}


def task_sets() -> dict[str, tuple[str, ...]]:
    """Set name to task names: one set per domain, ``dmc`` for the benchmarking tasks, ``dmc_all`` for the suite."""
    sets = {
        domain: tuple(f"{domain}-{task}" for task in suite.TASKS_BY_DOMAIN[domain]) for domain in suite.TASKS_BY_DOMAIN
    }
    sets["dmc"] = tuple(f"{domain}-{task}" for domain, task in suite.BENCHMARKING)
    sets["dmc_all"] = tuple(task_names())
    return sets


@functools.cache
def spec_of(name: str, action_repeat: int) -> TaskSpec:
    """The spec of the suite's task ``name``, read from a copy that is loaded for the purpose."""
    env = suite.load(*task_names()[name])
    action = env.action_spec()
    limit = env._step_limit
    low, high = (np.broadcast_to(bound, action.shape) for bound in (action.minimum, action.maximum))
    return TaskSpec(
        name=name,
        engine=NAME,
        observation=tuple((key, int(np.prod(spec.shape))) for key, spec in env.observation_spec().items()),
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        horizon=None if np.isinf(limit) else int(np.ceil(limit)),
        time_step_seconds=float(env.control_timestep()),
        action_repeat=action_repeat,
    )


def make_sim(spec: TaskSpec, num_envs: int, seed: int) -> DmControlSim:
    """K copies of a task."""
    return DmControlSim(spec, num_envs, seed)


class DmControlSim(BatchSim):
    """K copies of one task of dm_control's suite."""

    def __init__(self, spec: TaskSpec, num_envs: int, seed: int) -> None:
        """Load the task K times, each copy with its own random state."""
        domain, task = task_names()[spec.name]
        self.spec = spec
        self.num_envs = num_envs
        with _compiled_once():
            self._envs: list[Environment] = [
                suite.load(domain, task, task_kwargs={"random": np.random.RandomState(copy_seed(seed, copy))})
                for copy in range(num_envs)
            ]
        for env in self._envs:
            drop_renderer(env.physics)
        self._slices = self.spec.slices
        self._reached = np.zeros((num_envs, spec.observation_size), np.float32)

    def seed(self, seed: int) -> None:
        """As torchrl's DMControlEnv does: a new random state for the task, then one reset."""
        for copy, env in enumerate(self._envs):
            env.task._random = np.random.RandomState(copy_seed(seed, copy))
            env.reset()

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        for copy in np.flatnonzero(mask):
            self._write(self._envs[copy].reset().observation, observation[copy])
            self._reached[copy] = observation[copy]

    def send(self, action: FloatArray) -> None:
        """Take the actions."""
        self._action = action.astype(np.float64)

    def recv(self, out: StepArrays) -> None:
        """One agent step of every copy."""
        actions = self._action
        for copy, env in enumerate(self._envs):
            reward = 0.0
            try:
                for _ in range(self.spec.action_repeat):
                    time_step = env.step(actions[copy])
                    reward += time_step.reward
                    if time_step.last():
                        break
            except PhysicsError as error:
                self.warn_diverged(copy, str(error))
                out.observation[copy] = self._reached[copy]
                out.reward[copy], out.terminated[copy], out.truncated[copy] = reward, False, True
                continue
            self._write(time_step.observation, out.observation[copy])
            out.reward[copy] = reward
            last = time_step.last()
            # A time limit ends an episode with discount 1, a task's own end with the task's discount.
            limit = last and bool(np.isclose(time_step.discount, 1.0))
            out.truncated[copy] = limit
            out.terminated[copy] = last and not limit
        self._reached[:] = out.observation

    def _write(self, observation: Mapping[str, Any], row: FloatArray) -> None:
        for entry, where in self._slices:
            value = observation[entry]
            row[where] = value if np.ndim(value) < 2 else np.ravel(value)

    def close(self) -> None:
        """Free the simulators' memory."""
        for env in self._envs:
            env.close()


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    # Compiling a task's model takes ten times as long as copying the compiled one. Each copy has a model of its own,
    # which tasks write to at reset; a task whose XML is drawn (lqr) is compiled each time.
    compile_xml = wrapper.MjModel.from_xml_string
    compiled: dict[Any, Any] = {}

    def compile_or_copy(xml_string: Any, assets: Mapping[str, Any] | None = None) -> Any:
        key = (xml_string, tuple(sorted(assets or ())))
        if key not in compiled:
            compiled[key] = compile_xml(xml_string, assets=assets)
        return compiled[key].copy()

    wrapper.MjModel.from_xml_string = compile_or_copy
    try:
        yield
    finally:
        wrapper.MjModel.from_xml_string = compile_xml


@functools.cache
def _headless(physics: Any) -> Any:
    return type(physics.__name__, (physics,), {"contexts": property(lambda self: None)})


def drop_renderer(physics: Physics) -> None:
    """Let a task that is never drawn know it."""
    # quadruped-escape uploads its terrain to a renderer at every reset, and fails where there is none. Nothing is
    # drawn here, so say there is none to upload to; the simulation is untouched.
    kind: Any = type(physics)
    physics.__class__ = _headless(kind)
