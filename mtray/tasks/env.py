"""One task as a TorchRL environment, with the tutorial's keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from mtray.config.settings import CollectorConfig
from mtray.data.specs import ACTION, DONE_KEYS, NEXT, OBSERVATION, REWARD, FloatArray, TaskSpec
from mtray.engines.base import BatchSim, BoolArray, StepArrays
from mtray.errors import UsageError
from mtray.tasks.plan import DEFAULT_ENGINE, Task
from mtray.tasks.registry import resolve, resolve_like


class Learned(Protocol):
    """A policy that knows its tasks, such as `mtray.policy.policy.MultiTaskPolicy`."""

    specs: tuple[TaskSpec, ...]


class TaskEnv(EnvBase):
    """K copies of one task as a TorchRL environment of batch size [K] (or unbatched), float32.

    Keys: ``observation`` [K, obs] (zero-padded to the run's widest task), ``observation_<task>`` [K, obs_t],
    ``action`` [K, act_t], ``reward``, ``done``, ``terminated``, ``truncated`` [K, 1]. Copies reset one by one
    (``_reset``). For K = 1 the numbers are those of torchrl's DMControlEnv with the tutorial's transforms (with
    CatTensors' ``sort=False``: entries stay in dm_control's order), bit for bit.

    The simulators are built at the first reset, so an environment made only for its specs costs nothing.
    """

    def __init__(
        self, task: Task, *, num_envs: int | None = None, seed: int = 0, observation_width: int | None = None
    ) -> None:
        """See the class and `mtray.tasks.makers.TaskMaker`.

        Raises:
            UsageError: the common observation is narrower than the task's own.
        """
        self.task = task
        self.task_spec = spec = task.spec
        self.num_envs = num_envs or 1
        self.observation_width = observation_width or spec.observation_size
        if self.observation_width < spec.observation_size:
            raise UsageError(
                f"task {spec.name!r} has {spec.observation_size} observation entries, more than the common "
                f"'observation' of width {self.observation_width}"
            )
        self._sim: BatchSim | None = None
        self._start_seed = seed
        # Where each copy stands: a partial reset gives back the others' rows.
        self._current: FloatArray = self._padded()
        batch = [] if num_envs is None else [num_envs]
        super().__init__(device=None, batch_size=torch.Size(batch))
        low = torch.tensor(spec.action_low, dtype=torch.float32).expand(*batch, -1)
        high = torch.tensor(spec.action_high, dtype=torch.float32).expand(*batch, -1)
        self.observation_spec = Composite(
            {
                OBSERVATION: Unbounded((*batch, self.observation_width), dtype=torch.float32),
                spec.key: Unbounded((*batch, spec.observation_size), dtype=torch.float32),
            },
            shape=batch,
        )
        self.action_spec = Bounded(low, high, (*batch, spec.action_size), dtype=torch.float32)
        self.reward_spec = Unbounded((*batch, 1), dtype=torch.float32)
        self.full_done_spec = Composite(
            {key: Binary(n=1, shape=(*batch, 1), dtype=torch.bool) for key in DONE_KEYS}, shape=batch
        )

    @property
    def sim(self) -> BatchSim:
        """The simulators, built now if they are not yet."""
        if self._sim is None:
            self._sim = self.task.make_sim(self.num_envs, self._start_seed)
        return self._sim

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self.sim.seed(seed)

    def _observations(self, padded: FloatArray) -> dict[str, torch.Tensor]:
        common = torch.from_numpy(padded).view(*self.batch_size, -1)
        return {OBSERVATION: common, self.task_spec.key: common[..., : self.task_spec.observation_size].clone()}

    def _flags(self, terminated: BoolArray, truncated: BoolArray) -> dict[str, torch.Tensor]:
        shape = (*self.batch_size, 1)
        ends = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        return {key: torch.from_numpy(value).view(shape) for key, value in ends.items()}

    def _padded(self) -> FloatArray:
        return np.zeros((self.num_envs, self.observation_width), np.float32)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        padded = self._padded()
        mask = np.ones(self.num_envs, np.bool_)
        if tensordict is not None and "_reset" in tensordict:
            mask = tensordict.get("_reset").reshape(-1).numpy()
            padded[:] = self._current
        self.sim.reset(mask, padded[:, : self.task_spec.observation_size])
        self._current = padded.copy()
        never = np.zeros((2, self.num_envs), np.bool_)
        return TensorDict({**self._observations(padded), **self._flags(*never)}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        spec = self.task_spec
        padded = self._padded()
        out = StepArrays.empty(self.num_envs, spec)
        out = StepArrays(padded[:, : spec.observation_size], out.reward, out.terminated, out.truncated)
        # A policy that is being trained gives actions with gradients; simulators have none.
        action = tensordict.get(ACTION).detach().to(torch.float32).reshape(self.num_envs, spec.action_size)
        self.sim.step(action.numpy(), out)
        self._current = padded.copy()
        reward = torch.from_numpy(out.reward).view(*self.batch_size, 1)
        fields = {**self._observations(padded), **self._flags(out.terminated, out.truncated), REWARD: reward}
        return TensorDict(fields, self.batch_size)

    def step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """As torchrl's, without its generic work: a step, then a reset of the copies whose episode ended."""
        reached = self._step(tensordict)
        tensordict.set(NEXT, reached)
        root = reached.exclude(REWARD)
        done = reached.get("done")
        if done.any():
            root = self._reset(TensorDict({"_reset": done}, self.batch_size))
        return tensordict, root

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the simulators."""
        if self._sim is not None:
            self._sim.close()
            self._sim = None
        super().close(raise_if_closed=raise_if_closed)


def make_task_env(
    name: str,
    *,
    engine: str | None = None,
    num_envs: int | None = None,
    seed: int = 0,
    observation_width: int | None = None,
    action_repeat: int | None = None,
    like: Learned | None = None,
) -> TaskEnv:
    """One task as a TorchRL environment, unbatched unless ``num_envs`` is given.

    It acts at the rate of training: with the engine and action repeat of the policy that it is ``like``, else with
    training's defaults.

    ::

        policy = mtray.load_policy("runs/a")
        env = mtray.make_task_env("cheetah-run", like=policy)

    Args:
        name: the task, as after ``--tasks``.
        engine: what simulates it; by default the policy's, or training's default.
        num_envs: K copies.
        seed: of the first copy; the others' follow from it.
        observation_width: width of the common ``observation``; by default the task's own.
        action_repeat: control steps per agent step; by default the policy's, or training's default. Tasks of makers
            repeat actions themselves.
        like: a policy of this task, as `mtray.load_policy` returns it.

    Raises:
        UsageError: the name is unknown or means several tasks, or the task is not as the policy learned it.
    """
    tasks = tasks_like([name], engine, action_repeat, like)
    if len(tasks) != 1:
        raise UsageError(f"{name!r} means {len(tasks)} tasks ({', '.join(t.name for t in tasks)}): name one of them")
    return TaskEnv(tasks[0], num_envs=num_envs, seed=seed, observation_width=observation_width)


def tasks_like(
    names: Sequence[str], engine: str | None = None, action_repeat: int | None = None, like: Learned | None = None
) -> tuple[Task, ...]:
    """The tasks of these names, with a policy's engines and action repeats where they are not given.

    Raises:
        UsageError: an unknown name, or a task that the policy did not learn, or learned with another spec.
    """
    if like is not None:
        if not hasattr(like, "specs"):
            raise UsageError(f"like={like!r} is no policy: give what mtray.load_policy returns")
        return resolve_like(names, like.specs, engine, action_repeat)
    tasks = resolve(names, engine or DEFAULT_ENGINE, action_repeat or CollectorConfig.action_repeat)
    for task in tasks:
        if action_repeat not in (None, task.spec.action_repeat):
            raise UsageError(f"task {task.name!r} repeats actions itself: action_repeat={action_repeat} has no effect")
    return tasks
