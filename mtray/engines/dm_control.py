"""The reference engine: steps K environments of dm_control's suite, one after the other."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import mujoco
import numpy as np

from mtray.data.specs import FloatArray, TaskSpec
from mtray.engines.base import BatchSim, BoolArray, StepArrays, copy_seed
from mtray.engines.states import State, load_random_state, nested, part, random_state

with warnings.catch_warnings():
    # dm_control looks for a display when it is imported; nothing is rendered here.
    warnings.filterwarnings("ignore", message=r".*DISPLAY environment variable is missing")
    from dm_control import suite
    from dm_control.mujoco import Physics, wrapper
    from dm_control.rl.control import Environment
    from dm_control.rl.control import PhysicsError as PhysicsError

NAME = "dm_control"
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
# Fields of the model that differ from episode to episode, or from copy to copy (lqr).
_MODEL_FIELDS = (
    "body_pos",
    "body_quat",
    "geom_pos",
    "site_pos",
    "wrap_prm",
    "hfield_data",
    "jnt_stiffness",
)


def task_names() -> dict[str, tuple[str, str]]:
    """Return the suite's tasks: ``{"humanoid-walk": ("humanoid", "walk"), ...}``."""
    return {f"{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}


def task_sets() -> dict[str, tuple[str, ...]]:
    """Return the task sets: one per domain, ``dmc`` for the benchmarking tasks, ``dmc_all`` for the whole suite."""
    domains = {domain: tuple(f"{domain}-{task}" for task in tasks) for domain, tasks in suite.TASKS_BY_DOMAIN.items()}
    benchmark = tuple(f"{domain}-{task}" for domain, task in suite.BENCHMARKING)
    return {**domains, "dmc": benchmark, "dmc_all": tuple(task_names())}


def load(name: str, random: Any = None) -> Environment:
    """Load a task of the suite; ``random`` is its seed or random state.

    MuJoCo's warnings that dm_control's models use deprecated attributes are left out: the user can't change the models.
    """
    domain, task = task_names()[name]
    logger = logging.getLogger("absl")

    def is_wanted(record: logging.LogRecord) -> bool:
        return "deprecated" not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        return suite.load(domain, task, task_kwargs={} if random is None else {"random": random})
    finally:
        logger.removeFilter(is_wanted)


@functools.cache
def spec_of(name: str, action_repeat: int) -> TaskSpec:
    """Load a task and return its spec."""
    env = load(name)
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


class DmControlSim(BatchSim):
    """K copies of one task of dm_control's suite."""

    def __init__(self, spec: TaskSpec, num_envs: int, seed: int) -> None:
        """Load the task K times, each copy with its own random state."""
        self.spec = spec
        self.num_envs = num_envs
        with _compiled_once():
            self._envs: list[Environment] = [
                load(spec.name, np.random.RandomState(copy_seed(seed, copy))) for copy in range(num_envs)
            ]
        for env in self._envs:
            drop_renderer(env.physics)
        self._slices = spec.slices
        self._last_observation = np.zeros((num_envs, spec.observation_size), np.float32)

    def seed(self, seed: int) -> None:
        """Give each copy's task a new random state, then reset once, as torchrl's DMControlEnv does."""
        for copy, env in enumerate(self._envs):
            env.task._random = np.random.RandomState(copy_seed(seed, copy))
            env.reset()

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        for copy in np.flatnonzero(mask):
            self._write(self._envs[copy].reset().observation, observation[copy])
            self._last_observation[copy] = observation[copy]

    def send(self, action: FloatArray) -> None:
        """Store the actions."""
        self._action = action.astype(np.float64)

    def recv(self, out: StepArrays) -> None:
        """Take one agent step in every copy."""
        for copy, env in enumerate(self._envs):
            reward = 0.0
            try:
                for _ in range(self.spec.action_repeat):
                    time_step = env.step(self._action[copy])
                    reward += time_step.reward
                    if time_step.last():
                        break
            except PhysicsError as error:
                self.warn_diverged(copy, str(error))
                out.observation[copy] = self._last_observation[copy]
                out.reward[copy], out.terminated[copy], out.truncated[copy] = reward, False, True
                out.broken[copy] = True
                continue
            self._write(time_step.observation, out.observation[copy])
            out.reward[copy] = reward
            last = time_step.last()
            # A time limit ends an episode with discount 1, a task's own end with the task's discount.
            out.truncated[copy] = last and bool(np.isclose(time_step.discount, 1.0))
            out.terminated[copy] = last and not out.truncated[copy]
        self._last_observation[:] = out.observation

    def state(self) -> State:
        """See base class."""
        physics = [env.physics for env in self._envs]
        models = {name: np.stack([getattr(each.model, name) for each in physics]) for name in _MODEL_FIELDS}
        own = {
            "physics": np.stack([each.get_state(_STATE) for each in physics]),
            "steps": np.array([env._step_count for env in self._envs]),
            "is_over": np.array([env._reset_next_step for env in self._envs]),
            "last_observation": self._last_observation,
        }
        randoms = random_state([env.task.random for env in self._envs])
        return nested({"own": own, "models": models, "random": randoms})

    def load_state(self, state: State) -> None:
        """See base class."""
        own = part(state, "own")
        for copy, env in enumerate(self._envs):
            # Makes the changes of task and model that are the same in every episode.
            env.reset()
            for name, values in part(state, "models").items():
                getattr(env.physics.model, name)[:] = values[copy]
            env.physics.set_state(own["physics"][copy], _STATE)
            # The next step goes on from what the last one computed of the state it reached.
            mujoco.mj_step1(env.physics.model.ptr, env.physics.data.ptr)
            env._step_count, env._reset_next_step = int(own["steps"][copy]), bool(own["is_over"][copy])
        load_random_state([env.task.random for env in self._envs], part(state, "random"))
        self._last_observation[:] = own["last_observation"]

    def _write(self, observation: Mapping[str, Any], row: FloatArray) -> None:
        for entry, columns in self._slices:
            row[columns] = np.asarray(observation[entry]).ravel()

    def close(self) -> None:
        """Free the simulators' memory."""
        for env in self._envs:
            env.close()


make_sim = DmControlSim


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    # Compiling a task's model takes ten times as long as copying it. Each copy needs its own model, since tasks write
    # to it at resets. A task with random XML (lqr) is compiled for each copy.
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
    """Disable rendering; the simulation stays the same.

    quadruped-escape uploads its terrain to a renderer at every reset, which fails without a display.
    """
    kind: Any = type(physics)
    physics.__class__ = _headless(kind)
