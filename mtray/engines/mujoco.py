"""dm_control's suite stepped by ``mujoco.batch``: the same numbers as the reference engine, in less time.

All copies of a task lie in one batch and are stepped, observed and rewarded together, so dm_control's Python around the
physics is paid once per step, not once per copy. Episodes begin as dm_control begins them: one of its environments
resets with each copy's own random state, and what it reached is copied into the batch. Physics is the same call of
the same library, observations and rewards are the views of `mtray.engines.suite`.

Tasks without a view (lqr, quadruped-escape) are stepped by the reference engine, with equal results at its speed.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import mujoco
import numpy as np
from dm_control import suite
from mujoco.batch import Batch

from mtray.data.specs import FloatArray, TaskSpec
from mtray.engines import dm_control as reference
from mtray.engines.base import BatchSim, BoolArray, StepArrays, copy_seed
from mtray.engines.suite.base import View

NAME = "mujoco"
# A file of `mtray.engines.suite` each.
DOMAINS = (
    "acrobot",
    "ball_in_cup",
    "cartpole",
    "cheetah",
    "dog",
    "finger",
    "fish",
    "hopper",
    "humanoid",
    "humanoid_CMU",
    "manipulator",
    "pendulum",
    "point_mass",
    "quadruped",
    "reacher",
    "stacker",
    "swimmer",
    "walker",
)
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_UP_TO_VELOCITY = int(mujoco.mjtStage.mjSTAGE_VEL)

task_names = reference.task_names
task_sets = reference.task_sets


def spec_of(name: str, action_repeat: int) -> TaskSpec:
    """The reference engine's spec."""
    return dataclasses.replace(reference.spec_of(name, action_repeat), engine=NAME)


def make_sim(spec: TaskSpec, num_envs: int, seed: int) -> BatchSim:
    """K copies of a task."""
    kind = MujocoSim if has_view(spec.name) else reference.DmControlSim
    return kind(spec, num_envs, seed)


def has_view(name: str) -> bool:
    """Whether a task is stepped in a batch."""
    domain, task = task_names()[name]
    return domain in DOMAINS and task not in _view_of(domain).without


def _view_of(domain: str) -> type[View]:
    view: type[View] = importlib.import_module(f"mtray.engines.suite.{domain}").TaskView
    return view


class MujocoSim(BatchSim):
    """K copies of one task of dm_control's suite in one ``mujoco.batch.Batch``."""

    def __init__(self, spec: TaskSpec, num_envs: int, seed: int) -> None:
        """Load the task once and lay its simulations out."""
        domain, task = task_names()[spec.name]
        self.spec = spec
        self.num_envs = num_envs
        # Begins every copy's episodes, and steps nothing. Its first reset, whose draws nobody gets, writes into the
        # model what the task writes there for good.
        self._env = env = suite.load(domain, task, task_kwargs={"random": 0})
        reference.drop_renderer(env.physics)
        env.reset()
        self._slices = [where for _, where in self.spec.slices]
        self._substeps = env._n_sub_steps
        self._limit = env._step_limit
        # A simulation keeps its own MjData, as dm_control's does: a control step ends with the next one's first half,
        # which the next one then need not repeat.
        self._sims = Batch(env.physics.model.ptr, num_envs, nthread=1, persistent=True)
        self._ctrl = self._sims.bind("ctrl")
        # [n, kinds of warning], counts. Their other column is what each warned of last.
        self._warnings = self._sims.warning[..., 1]
        self._reached = np.zeros((num_envs, spec.observation_size), np.float32)
        self._view = _view_of(domain)(self._sims, env.task)
        self._fields = {name: self._sims.expand(name) for name in self._view.model_fields}
        self._steps = np.zeros(num_envs, np.int64)
        self._random: list[np.random.RandomState] = []
        self._seed_random(seed)

    def _seed_random(self, seed: int) -> None:
        self._random = [np.random.RandomState(copy_seed(seed, copy)) for copy in range(self.num_envs)]

    def seed(self, seed: int) -> None:
        """A new random state for every copy, then one reset, as the reference engine does."""
        self._seed_random(seed)
        for copy in range(self.num_envs):
            self._begin(copy)

    def _begin(self, copy: Any) -> Any:
        self._env.task._random = self._random[copy]
        return self._env.reset().observation

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        copies = np.flatnonzero(mask)
        physics = self._env.physics
        for copy in copies:
            for value, where in zip(self._begin(copy).values(), self._slices, strict=True):
                observation[copy, where] = np.ravel(value)
            mujoco.mj_getState(physics.model.ptr, physics.data.ptr, self._sims.state[copy], _STATE)
            for name, values in self._fields.items():
                values[copy] = getattr(physics.model, name)
        self._reached[copies] = observation[copies]
        self._steps[copies] = 0
        self._sims.forward(copies, _UP_TO_VELOCITY)
        # Only what a step warns of counts.
        self._warnings[copies] = 0

    def send(self, action: FloatArray) -> None:
        """Take the actions."""
        self._ctrl[:] = action

    def recv(self, out: StepArrays) -> None:
        """One agent step of every copy."""
        reward = np.zeros(self.num_envs)
        copies: Any = None
        for _ in range(self.spec.action_repeat):
            self._sims.step(copies, self._substeps, _UP_TO_VELOCITY)
            where = slice(None) if copies is None else copies
            # As in dm_control any warning of MuJoCo's is the end of a valid simulation.
            valid = ~self._warnings.any(-1)
            reward[where] += np.where(valid, self._view.reward(), 0.0)[where]
            self._steps[where] += 1
            going = valid & (self._steps < self._limit)
            if not going.all():
                copies = np.flatnonzero(going)
                if not len(copies):
                    break
        # The last of an episode's observations stays in place while other copies are stepped on.
        for value, entry in zip(self._view.observe(), self._slices, strict=True):
            out.observation[:, entry] = value.reshape(self.num_envs, -1)
        out.reward[:] = reward
        # No task that has a view ends its episodes itself.
        out.terminated[:] = False
        np.greater_equal(self._steps, self._limit, out=out.truncated)
        self._cut(np.flatnonzero(~valid), out)
        self._reached[:] = out.observation

    def _cut(self, copies: Any, out: StepArrays) -> None:
        for copy in copies:
            names = [name for name, count in zip(_WARNINGS, self._warnings[copy], strict=True) if count]
            self.warn_diverged(copy, ", ".join(names))
            out.observation[copy], out.truncated[copy] = self._reached[copy], True

    def close(self) -> None:
        """Free the simulators' memory."""
        self._env.close()


_WARNINGS = [name for name in mujoco.mjtWarning.__members__ if name != "mjNWARNING"]
