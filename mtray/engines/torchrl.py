"""TorchRL environments that a user's maker builds.

A maker is a callable ``maker(num_envs, seed)`` that returns a new TorchRL environment of batch size ``[num_envs]``, or
``[]``: then it is called once per copy, each time with another seed. The environment has one float observation vector
under ``observation`` and one float action vector under ``action``. The ``_reset`` of a batched one restarts only the
copies where the entry ``_reset`` [num_envs, 1] bool of its TensorDict is true; without the entry, all.

`mtray.engines.torchrl_specs` checks the specs; `mtray.engines.torchrl_rollout` steps the environments.
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

from mtray.data.specs import OBSERVATION, REWARD, FloatArray
from mtray.engines.base import LOGGER, TASK_FAILURES, BatchSim, BoolArray, StepArrays, copy_seed, task_error
from mtray.engines.torchrl_inner import check_new, is_started
from mtray.engines.torchrl_rollout import RunningEnv, restarts_all_copies, start_seeded
from mtray.engines.torchrl_specs import info_entries, read_spec
from mtray.errors import MtrayError, TaskError, UsageError

Maker = Callable[[int, int], EnvBase]


class TorchrlSim(BatchSim):
    """K copies of a user's task.

    An episode ends where ``done``, ``terminated`` or ``truncated`` is true; it is truncated unless it terminated. Where
    an environment gives ``done`` alone, TorchRL sets ``terminated`` to the same.
    """

    def __init__(self, name: str, maker: Maker, num_envs: int, seed: int) -> None:
        """Call the maker and read the environment's spec.

        Raises:
            TaskError: the maker raised.
            UsageError: the environment does not meet the requirements above.
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
        batch = tuple(first.batch_size)
        self._parts = [RunningEnv(first, slice(0, self.num_envs if batch else 1))]
        if batch not in ((), (self.num_envs,)):
            self._raise_batch_size(first, f"({self.num_envs},), the number of copies requested, or ()")
        for copy in range(1, 1 if batch else self.num_envs):
            env = self._make(maker, 1, copy_seed(seed, copy))
            self._parts.append(RunningEnv(env, slice(copy, copy + 1)))
            if env.batch_size:
                self._raise_batch_size(env, "(), as at the first call")
        check_new(self.name, [part.env for part in self._parts])
        try:
            specs = [read_spec(self.name, part.env) for part in self._parts]
        except TASK_FAILURES as error:
            self._fail("spec", error)
        self.spec = specs[0]
        self._info = info_entries(first)
        for copy, spec in enumerate(specs):
            if spec != self.spec:
                raise UsageError(f"task {self.name!r}: copy {copy} has spec {spec}, but copy 0 has {self.spec}")
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
            returned = f"the class {kind}" if isinstance(env, type) else kind
            with contextlib.suppress(*TASK_FAILURES):
                # A simulator to free, or a coroutine, which would warn that it was never awaited.
                env.close()
            raise UsageError(f"the maker of task {self.name!r} returned {returned}, expected a torchrl EnvBase")
        return env

    def _raise_batch_size(self, env: EnvBase, expected: str) -> NoReturn:
        raise UsageError(
            f"the maker of task {self.name!r} built an environment of batch size {tuple(env.batch_size)}: "
            f"it must be {expected}"
        )

    def probe(self) -> None:
        """Reset and step a few times, to find errors before a run starts.

        Raises:
            TaskError: the environment raised, or its data does not match the specs.
            UsageError: the data is not finite as float32; or a reset of one copy restarts the others.
        """
        out = StepArrays.empty(self.num_envs, self.spec)
        low, high = self.spec.action_range
        # Not the middle: environments that are at rest there would not move.
        action = np.tile(low + (high - low) * np.float32(0.75), (self.num_envs, 1))
        with np.errstate(over="ignore"), torch.random.fork_rng(()):
            start_seeded(self, out)
            self._check_finite("reset", out)
            start = out.observation.copy()
            self.step(action, out)
            self._check_finite("step", out)
            if len(self._parts) == 1 and self.num_envs == 2 and restarts_all_copies(self, action, start, out):
                raise UsageError(
                    f"task {self.name!r}: its reset of one copy restarts the others: `_reset` must restart only the "
                    "copies where the entry '_reset' of its TensorDict is true; or return one unbatched environment "
                    "(the maker is called once per copy)"
                )

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
                part.env.set_seed(copy_seed(seed, part.copies.start))
            except TASK_FAILURES as error:
                self._fail("set_seed", error)
            part.root = None

    def reset(self, mask: BoolArray, observation: FloatArray) -> None:
        """Start new episodes where ``mask`` is true."""
        for part in self._parts:
            reset = mask[part.copies]
            if not reset.any():
                continue
            try:
                started = part.reset(reset)
            except TASK_FAILURES as error:
                self._fail("reset", error)
            rows = self._observation(part, started)
            ended = reset & part.ended
            if not self._warned and ended.any() and (rows[ended] == part.last_observation[ended]).all(-1).any():
                self._warned = True
                LOGGER.warning(
                    "task %r: an episode begins with the last observation of the episode before; if the environment "
                    "resets itself in its step, the true last observation of each episode is lost",
                    self.name,
                )
            part.ended = part.ended & ~reset
            observation[part.copies][reset] = rows[reset]

    def send(self, action: FloatArray) -> None:
        """Store the actions."""
        self._action = action.copy()

    def recv(self, out: StepArrays) -> None:
        """Step every environment."""
        for part in self._parts:
            copies = part.copies
            try:
                result = part.step(self._action[copies])
            except TASK_FAILURES as error:
                self._fail_step(part, error)
            out.observation[copies] = self._observation(part, result)
            # TorchRL has checked the shape.
            out.reward[copies] = _array(result.get(REWARD), part.size, torch.float32)[:, 0]
            terminated, done = (_flag(result.get(key), part.size) for key in ("terminated", "done"))
            truncated = result.get("truncated", None)
            part.ended = terminated | done | (False if truncated is None else _flag(truncated, part.size))
            for index, name in enumerate(self.spec.info):
                value = result.get(self._info[name], None)
                if value is None:
                    raise TaskError(
                        f"task {self.name!r}: its step returns no {self._info[name]!r}, which its observation spec "
                        "declares: return it in every step, or leave it out of the spec",
                        self.name,
                    )
                out.info[copies, index] = _array(value, part.size, torch.float32)[:, 0]
            out.terminated[copies] = terminated
            out.truncated[copies] = part.ended & ~terminated
            part.last_observation = out.observation[copies]

    def _observation(self, part: RunningEnv, data: TensorDictBase) -> FloatArray:
        value, shape = data.get(OBSERVATION, None), self._observation_shape
        if value is None or value.shape != shape:
            found = "is missing" if value is None else f"has shape {tuple(value.shape)}"
            keys = ", ".join(map(str, data.keys()))
            raise TaskError(
                f"task {self.name!r}: {OBSERVATION!r} {found}, the environment's spec says {shape} "
                f"(returned keys: {keys}): correct the spec or the returned data",
                self.name,
            )
        if not value.is_floating_point():
            raise TaskError(
                f"task {self.name!r}: {OBSERVATION!r} has dtype {value.dtype}, the environment's spec says a float",
                self.name,
            )
        return cast(FloatArray, _array(value, part.size, torch.float32))

    def _fail_step(self, part: RunningEnv, error: BaseException) -> NoReturn:
        names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        # TorchRL's function that reshapes the reward to its spec.
        if "_step_proc_data" in names:
            shape = tuple(part.env.full_reward_spec[REWARD].shape)
            raise TaskError(
                f"task {self.name!r}: its step returns no {REWARD!r} that fits its spec of shape {shape} ({error}): "
                "mtray needs one number per step",
                self.name,
            ) from error
        self._fail("step", error)

    def _fail(self, call: str, error: BaseException) -> NoReturn:
        if isinstance(error, MtrayError):
            raise error
        raise task_error(self.name, call, error) from error

    def close(self) -> None:
        """Close every environment; an error becomes a warning."""
        parts, self._parts = self._parts, []
        for part in parts:
            try:
                # The environment's `is_closed` can be True although it was never closed.
                if is_started(part.env):
                    part.env.close()
            except TASK_FAILURES as error:
                LOGGER.warning("%s", task_error(self.name, "close", error))


def _flag(value: Tensor, size: int) -> BoolArray:
    return cast(BoolArray, _array(value, size, torch.bool)[:, 0])


def _array(value: Tensor, size: int, dtype: torch.dtype) -> Any:
    return value.detach().reshape(size, -1).to("cpu", dtype).numpy()
