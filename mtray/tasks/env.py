"""One task as a TorchRL environment, with the keys of TorchRL's multi-task tutorial."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from mtray.config.checks import require_count, require_seed
from mtray.config.settings import CollectorConfig
from mtray.data.specs import ACTION, DONE_KEYS, NEXT, OBSERVATION, REWARD, FloatArray, TaskSpec
from mtray.engines.base import BatchSim, BoolArray, StepArrays
from mtray.errors import UsageError
from mtray.tasks.plan import DEFAULT_ENGINE, Task
from mtray.tasks.registry import check_repeat, resolve, resolve_like


class PolicyLike(Protocol):
    """A policy with the specs of its tasks, such as `mtray.policy.policy.MultiTaskPolicy`."""

    specs: tuple[TaskSpec, ...]


class TaskEnv(EnvBase):
    """K copies of one task as a TorchRL environment of batch size [K], or unbatched; float32.

    Keys: ``observation`` [K, obs] (zero-padded to the run's widest task), ``observation_<task>`` [K, obs_t],
    ``action`` [K, act_t], ``reward``, ``done``, ``terminated``, ``truncated`` [K, 1]. Partial resets (``_reset``) are
    supported. For K = 1 the data equals that of torchrl's DMControlEnv with the tutorial's transforms, bit for bit,
    except that entries stay in dm_control's order (CatTensors' ``sort=False``).

    The simulators are built at the first reset, so an environment that is made for its specs costs little.
    """

    def __init__(
        self, task: Task, *, num_envs: int | None = None, seed: int = 0, observation_width: int | None = None
    ) -> None:
        """Declare the specs; `mtray.tasks.makers.TaskMaker` describes the arguments.

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
        self._first_seed = seed
        # The last observations; a partial reset returns those of the other copies.
        self._current: FloatArray = self._padded()
        # [K, n], what the environment reported with the last step, under the names of its spec.
        self.info: FloatArray = np.zeros((self.num_envs, len(spec.info)), np.float32)
        # [K], whose last step failed (`BatchSim.recv`): its episode does not count.
        self.broken: BoolArray = np.zeros(self.num_envs, np.bool_)
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
        """The simulators, built at the first access."""
        if self._sim is None:
            self._sim = self.task.make_sim(self.num_envs, self._first_seed)
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
        no_ends = np.zeros((2, self.num_envs), np.bool_)
        return TensorDict({**self._observations(padded), **self._flags(*no_ends)}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        spec = self.task_spec
        padded = self._padded()
        out = dataclasses.replace(StepArrays.empty(self.num_envs, spec), observation=padded[:, : spec.observation_size])
        # A policy in training returns actions that require gradients.
        action = tensordict.get(ACTION).detach().to(torch.float32).reshape(self.num_envs, spec.action_size)
        self.sim.step(action.numpy(), out)
        self._current, self.info, self.broken = padded.copy(), out.info, out.broken
        reward = torch.from_numpy(out.reward).view(*self.batch_size, 1)
        fields = {**self._observations(padded), **self._flags(out.terminated, out.truncated), REWARD: reward}
        return TensorDict(fields, self.batch_size)

    def step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """Step, then reset the copies whose episode ended; faster than torchrl's generic implementation.

        As there, root entries that a policy carries from step to step are kept (a partial reset sets them to zero in
        the copies that it resets), and so is what a policy wrote under ``next``.
        """
        result = self._step(tensordict)
        if (preset := tensordict.get(NEXT, None)) is not None:
            result.update(preset.exclude(*result.keys()))
        tensordict.set(NEXT, result)
        following = self._step_mdp(tensordict)
        return tensordict, self.maybe_reset(following) if result.get("done").any() else following

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
    like: PolicyLike | None = None,
) -> TaskEnv:
    """Return one task as a TorchRL environment, unbatched unless ``num_envs`` is given.

    Engine and action repeat are by default those that the policy ``like`` was trained with, or training's defaults.

    ::

        policy = mtray.load_policy("runs/a")
        env = mtray.make_task_env("cheetah-run", like=policy)

    Args:
        name: the task, as after ``--tasks``.
        engine: the simulator.
        num_envs: number of copies, K.
        seed: seed of the first copy; the other copies' seeds are derived from it.
        observation_width: width of the common ``observation``; by default the task's.
        action_repeat: control steps per agent step; for tasks of makers it can't be set.
        like: a policy of this task, from `mtray.load_policy`.

    Raises:
        UsageError: num_envs or seed is out of range, the name is unknown or a set of tasks, or the task differs from
            what the policy learned.
    """
    check_copies(num_envs, seed)
    tasks = tasks_like([name], engine, action_repeat, like)
    if len(tasks) != 1:
        raise UsageError(f"{name!r} names {len(tasks)} tasks ({', '.join(t.name for t in tasks)}): choose one of them")
    return TaskEnv(tasks[0], num_envs=num_envs, seed=seed, observation_width=observation_width)


def check_copies(num_envs: int | None, seed: int) -> None:
    """Raise a UsageError if the number of copies or the seed is out of range."""
    if num_envs is not None:
        require_count("num_envs", num_envs)
    require_seed("seed", seed)


def tasks_like(
    names: str | Sequence[str],
    engine: str | None = None,
    action_repeat: int | None = None,
    like: PolicyLike | None = None,
) -> tuple[Task, ...]:
    """Return the tasks of these names; engines and action repeats are by default those of the policy ``like``.

    Raises:
        UsageError: an unknown name, or a task that the policy did not learn, or learned with another spec.
    """
    if like is not None:
        if not hasattr(like, "specs"):
            raise UsageError(f"like={like!r} is no policy of mtray's: pass the result of mtray.load_policy")
        return resolve_like(names, like.specs, engine, action_repeat)
    check_repeat((), action_repeat)
    tasks = resolve(names, engine or DEFAULT_ENGINE, action_repeat or CollectorConfig.action_repeat)
    check_repeat(tasks, action_repeat)
    return tasks
