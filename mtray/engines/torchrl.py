"""Any TorchRL environment as an engine: what a user's maker returns.

A maker is a callable ``maker(num_envs, seed)`` that returns a new TorchRL environment of batch size ``[num_envs]`` (or
``[]``, then it is called once per copy with a seed of its own) with one float observation vector under
``observation`` and one float action vector under ``action``.

Each environment is advanced as TorchRL's rollouts do (`mtray.engines.torchrl_rollout`).
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, cast

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from mtray.data.specs import OBSERVATION, REWARD, UNBOUNDED, FloatArray
from mtray.engines.base import LOGGER, TASK_FAILURES, BatchSim, BoolArray, StepArrays, copy_seed, task_error
from mtray.engines.torchrl_rollout import RunningEnv
from mtray.engines.torchrl_specs import NAME as NAME
from mtray.engines.torchrl_specs import check_new, is_started, read_spec
from mtray.errors import MtrayError, TaskError, UsageError

Maker = Callable[[int, int], EnvBase]


class TorchrlSim(BatchSim):
    """K copies of a task that a user's maker builds.

    An episode ends where ``done``, ``terminated`` or ``truncated`` is true; it is truncated unless it terminated.
    """

    def __init__(self, name: str, maker: Maker, num_envs: int, seed: int) -> None:
        """Call the maker and read its specs.

        Raises:
            TaskError: the maker raised.
            UsageError: what it returned does not have the keys and shapes above.
        """
        self.name = name
        self.num_envs = num_envs
        self._warned = False
        self._parts: list[RunningEnv] = []
        try:
            self._build(maker, seed)
        except BaseException:
            self.close()
            raise

    def _build(self, maker: Maker, seed: int) -> None:
        first = self._make(maker, self.num_envs, seed)
        self._parts = [RunningEnv(first, slice(0, self.num_envs))]
        batch = tuple(first.batch_size)
        if not batch:
            self._parts = [RunningEnv(first, slice(0, 1))]
            for copy in range(1, self.num_envs):
                env = self._make(maker, 1, copy_seed(seed, copy))
                self._parts.append(RunningEnv(env, slice(copy, copy + 1)))
                if env.batch_size:
                    self._wrong_batch(env, "(), as it was the first time")
        elif batch != (self.num_envs,):
            self._wrong_batch(first, f"({self.num_envs},), the number of copies asked for, or ()")
        check_new(self.name, [part.env for part in self._parts])
        try:
            specs = [read_spec(self.name, part.env) for part in self._parts]
        except TASK_FAILURES as error:
            self._fail("spec", error)
        self.spec = specs[0]
        for copy, spec in enumerate(specs):
            if spec != self.spec:
                raise UsageError(f"task {self.name!r}: copy {copy} has another spec than copy 0: {spec}, {self.spec}")
        self._observation_shape = (*batch, self.spec.observation_size)

    def _make(self, maker: Maker, num_envs: int, seed: int) -> EnvBase:
        try:
            env: Any = maker(num_envs, seed)
        except TASK_FAILURES as error:
            call = f"maker, called as maker({num_envs}, {seed}) (number of copies, seed),"
            if isinstance(error, ImportError) and "gym" in str(error):
                raise TaskError(f'{task_error(self.name, call, error)}: pip install -e ".[gym]"', self.name) from error
            self._fail(call, error)
        if not isinstance(env, EnvBase):
            kind = env.__name__ if isinstance(env, type) else type(env).__name__
            what = f"the class {kind}" if isinstance(env, type) else kind
            with contextlib.suppress(*TASK_FAILURES):
                # A simulator, or a coroutine that nobody will await.
                env.close()
            raise UsageError(f"the maker of task {self.name!r} returned {what}, expected a torchrl EnvBase")
        return env

    def _wrong_batch(self, env: EnvBase, expected: str) -> NoReturn:
        raise UsageError(
            f"the maker of task {self.name!r} built an environment of batch size {tuple(env.batch_size)}: "
            f"it must be {expected}"
        )

    def probe(self) -> None:
        """Reset and step once, so that what does not fit is found before anything is started.

        Raises:
            TaskError: the environment raised.
            UsageError: what it gives does not fit its specs, or is not finite as float32.
        """
        out = StepArrays.empty(self.num_envs, self.spec)
        with np.errstate(over="ignore"):
            self.reset(np.ones(self.num_envs, np.bool_), out.observation)
            self._check_finite("reset", out)
            self.step(np.tile(_middle(self.spec.action_low, self.spec.action_high), (self.num_envs, 1)), out)
            self._check_finite("step", out)

    def _check_finite(self, call: str, out: StepArrays) -> None:
        for key, values in ((OBSERVATION, out.observation), (REWARD, out.reward)):
            if not np.isfinite(values).all():
                raise UsageError(
                    f"task {self.name!r}: the {key!r} of its first {call} is not finite as float32: {values[0]}"
                )

    def seed(self, seed: int) -> None:
        """Seed every environment."""
        for part in self._parts:
            try:
                part.env.set_seed(copy_seed(seed, part.where.start))
            except TASK_FAILURES as error:
                self._fail("set_seed", error)
            part.root = None

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        for part in self._parts:
            chosen = mask[part.where]
            if not chosen.any():
                continue
            try:
                started = part.reset(chosen)
            except TASK_FAILURES as error:
                self._fail("reset", error)
            rows = self._rows(started, OBSERVATION, self._observation_shape, part.size)
            ended = chosen & part.ended
            if not self._warned and ended.any() and (rows[ended] == part.reached[ended]).all(-1).any():
                self._warn_same()
            part.ended = part.ended & ~chosen
            observation[part.where][chosen] = rows[chosen]

    def _warn_same(self) -> None:
        self._warned = True
        LOGGER.warning(
            "task %r: an episode begins with the observation that the one before ended with; if the environment resets "
            "itself in its step, the last observation of each episode is lost",
            self.name,
        )

    def send(self, action: FloatArray) -> None:
        """Take the actions."""
        self._action = action.copy()

    def recv(self, out: StepArrays) -> None:
        """One step of every environment."""
        for part in self._parts:
            where = part.where
            try:
                reached = part.step(self._action[where])
            except TASK_FAILURES as error:
                self._step_failed(part, error)
            out.observation[where] = self._rows(reached, OBSERVATION, self._observation_shape, part.size)
            # TorchRL has held it to its spec's shape, which is one number.
            out.reward[where] = _array(reached.get(REWARD), part.size, torch.float32)[:, 0]
            terminated, ended = self._ends(part, reached)
            out.terminated[where] = terminated
            out.truncated[where] = ended & ~terminated
            part.ended, part.reached = ended, out.observation[where]

    def _ends(self, part: RunningEnv, reached: TensorDictBase) -> tuple[BoolArray, BoolArray]:
        """Which copies terminated, and which episodes are over."""
        terminated = self._flag(part, reached.get("terminated"))
        ended = terminated | self._flag(part, reached.get("done"))
        truncated = reached.get("truncated", None)
        return terminated, ended if truncated is None else ended | self._flag(part, truncated)

    def _flag(self, part: RunningEnv, value: Tensor) -> BoolArray:
        return cast(BoolArray, _array(value, part.size, torch.bool)[:, 0])

    def _rows(self, data: TensorDictBase, key: str, shape: tuple[int, ...], size: int) -> FloatArray:
        value = data.get(key, None)
        if value is None or value.shape != shape:
            found = "is missing" if value is None else f"has shape {tuple(value.shape)}"
            keys = ", ".join(map(str, data.keys()))
            raise UsageError(
                f"task {self.name!r}: {key!r} {found}, the environment's spec says {shape} "
                f"(keys that it returned: {keys}): correct the spec or what it returns"
            )
        if not value.is_floating_point():
            raise UsageError(
                f"task {self.name!r}: {key!r} has dtype {value.dtype}, the environment's spec says a float"
            )
        return cast(FloatArray, _array(value, size, torch.float32))

    def _step_failed(self, part: RunningEnv, error: BaseException) -> NoReturn:
        names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if "_step_proc_data" in names:
            # Where TorchRL puts the reward into its spec's shape.
            shape = tuple(part.env.full_reward_spec[REWARD].shape)
            raise UsageError(
                f"task {self.name!r}: its step returns no {REWARD!r} that fits its spec of shape {shape} ({error}): "
                "mtray learns from one number a step"
            ) from error
        self._fail("step", error)

    def _fail(self, call: str, error: BaseException) -> NoReturn:
        if isinstance(error, MtrayError):
            raise error
        raise task_error(self.name, call, error) from error

    def close(self) -> None:
        """Close every environment; what they raise is a warning."""
        parts, self._parts = self._parts, []
        for part in parts:
            try:
                # Not by the environment's own flag: TorchRL sets it on those that were never closed, too.
                if is_started(part.env):
                    part.env.close()
            except TASK_FAILURES as error:
                LOGGER.warning("%s", task_error(self.name, "close", error))


def _array(value: Tensor, size: int, dtype: torch.dtype) -> Any:
    return value.detach().reshape(size, -1).to("cpu", dtype).numpy()


def _middle(low: tuple[float, ...], high: tuple[float, ...]) -> FloatArray:
    pairs = zip(low, high, strict=True)
    return np.array([0.0 if a <= -UNBOUNDED else (a + b) / 2 for a, b in pairs], np.float32)
