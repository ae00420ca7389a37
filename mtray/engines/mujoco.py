"""dm_control's suite stepped by ``mujoco.batch``: the reference engine's results, bit for bit, in less time.

One batch holds all copies of a task, so Python's overhead is paid per step and not per copy. Observations and rewards
come from the views of `mtray.engines.suite`. At an episode's start a dm_control environment resets with the copy's
random state, and its state is copied into the batch.

Tasks without a view (lqr, quadruped-escape) are stepped by the reference engine.
"""

from __future__ import annotations

import dataclasses
import importlib
from importlib.util import find_spec
from typing import Any, cast

import mujoco
import numpy as np
import numpy.typing as npt
from mujoco.batch import Batch

from mtray.data.specs import FloatArray, TaskSpec
from mtray.engines import dm_control as reference
from mtray.engines.base import BatchSim, BoolArray, StepArrays, copy_seed
from mtray.engines.states import State, load_random_state, nested, part, random_state
from mtray.engines.suite.base import View

NAME = "mujoco"
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_VELOCITY_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL)
_WARNINGS = [name for name in mujoco.mjtWarning.__members__ if name != "mjNWARNING"]

task_names = reference.task_names
task_sets = reference.task_sets


def spec_of(name: str, action_repeat: int) -> TaskSpec:
    """Return the reference engine's spec."""
    return dataclasses.replace(reference.spec_of(name, action_repeat), engine=NAME)


def make_sim(spec: TaskSpec, num_envs: int, seed: int) -> BatchSim:
    """Return K copies of a task."""
    kind = MujocoSim if has_view(spec.name) else reference.DmControlSim
    return kind(spec, num_envs, seed)


def has_view(name: str) -> bool:
    """Return whether a task is stepped in a batch."""
    domain, task = task_names()[name]
    return find_spec(_view_module(domain)) is not None and task not in _view_of(domain).unsupported


def _view_module(domain: str) -> str:
    return f"mtray.engines.suite.{domain}"


def _view_of(domain: str) -> type[View]:
    return cast(type[View], importlib.import_module(_view_module(domain)).TaskView)


class MujocoSim(BatchSim):
    """K copies of one task of dm_control's suite in one ``mujoco.batch.Batch``."""

    def __init__(self, spec: TaskSpec, num_envs: int, seed: int) -> None:
        """Load the task and make a batch of its model."""
        self.spec = spec
        self.num_envs = num_envs
        # Only starts episodes, for all copies. The first reset makes the task's permanent changes of the model.
        self._env = env = reference.load(spec.name, 0)
        reference.drop_renderer(env.physics)
        env.reset()
        self._slices = [columns for _, columns in spec.slices]
        self._substeps = env._n_sub_steps
        self._limit = env._step_limit
        # Persistent: each simulation keeps its MjData, so a step reuses results of the step before, as in dm_control.
        self._sims = Batch(env.physics.model.ptr, num_envs, nthread=1, persistent=True)
        self._ctrl = self._sims.bind("ctrl")
        # Counts, [n, kinds of warning].
        self._warnings = self._sims.warning[..., 1]
        self._last_observation = np.zeros((num_envs, spec.observation_size), np.float32)
        self._view = _view_of(task_names()[spec.name][0])(self._sims, env.task)
        self._fields = {name: self._sims.expand(name) for name in self._view.model_fields}
        self._steps = np.zeros(num_envs, np.int64)
        self._random = self._random_states(seed)

    def _random_states(self, seed: int) -> list[np.random.RandomState]:
        return [np.random.RandomState(copy_seed(seed, copy)) for copy in range(self.num_envs)]

    def seed(self, seed: int) -> None:
        """Give each copy a new random state, then reset once, as the reference engine does."""
        self._random = self._random_states(seed)
        for copy in range(self.num_envs):
            self._start_episode(copy)

    def _start_episode(self, copy: Any) -> Any:
        self._env.task._random = self._random[copy]
        return self._env.reset().observation

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        copies = np.flatnonzero(mask)
        physics = self._env.physics
        for copy in copies:
            for value, columns in zip(self._start_episode(copy).values(), self._slices, strict=True):
                observation[copy, columns] = np.ravel(value)
            mujoco.mj_getState(physics.model.ptr, physics.data.ptr, self._sims.state[copy], _STATE)
            for name, values in self._fields.items():
                values[copy] = getattr(physics.model, name)
        self._last_observation[copies] = observation[copies]
        self._steps[copies] = 0
        self._sims.forward(copies, _VELOCITY_STAGE)
        # Warnings of the reset do not count.
        self._warnings[copies] = 0

    def send(self, action: FloatArray) -> None:
        """Store the actions."""
        self._ctrl[:] = action

    def recv(self, out: StepArrays) -> None:
        """Take one agent step in every copy."""
        reward = np.zeros(self.num_envs)
        # Copies to step; None for all.
        copies: Any = None
        for _ in range(self.spec.action_repeat):
            self._sims.step(copies, self._substeps, _VELOCITY_STAGE)
            stepped = slice(None) if copies is None else copies
            # Any warning of MuJoCo's means divergence, as in dm_control.
            valid = ~self._warnings.any(-1)
            reward[stepped] += np.where(valid, self._view.reward(), 0.0)[stepped]
            self._steps[stepped] += 1
            running = valid & (self._steps < self._limit)
            if not running.all():
                copies = np.flatnonzero(running)
                if not len(copies):
                    break
        # Copies that stopped early keep the state of their last step.
        for value, columns in zip(self._view.observe(), self._slices, strict=True):
            out.observation[:, columns] = value.reshape(self.num_envs, -1)
        out.reward[:] = reward
        # Tasks with a view end at the time limit only.
        out.terminated[:] = False
        np.greater_equal(self._steps, self._limit, out=out.truncated)
        for copy in np.flatnonzero(~valid).tolist():
            names = [name for name, count in zip(_WARNINGS, self._warnings[copy], strict=True) if count]
            self.warn_diverged(copy, ", ".join(names))
            out.observation[copy] = self._last_observation[copy]
            out.truncated[copy] = out.broken[copy] = True
        self._last_observation[:] = out.observation

    def state(self) -> State:
        """See base class."""
        return nested({"arrays": self._arrays(), "random": random_state(self._random)})

    def load_state(self, state: State) -> None:
        """See base class."""
        saved = part(state, "arrays")
        for name, array in self._arrays().items():
            array[:] = saved[name]
        load_random_state(self._random, part(state, "random"))
        # The next step goes on from what the last one computed of the state it reached.
        self._sims.forward(None, _VELOCITY_STAGE)
        self._warnings[:] = 0

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        own = {"physics": self._sims.state, "steps": self._steps, "last_observation": self._last_observation}
        return own | self._fields

    def close(self) -> None:
        """Free the simulators' memory."""
        self._env.close()
