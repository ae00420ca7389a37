"""From stored rows to the batches that the learner computes on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor

from mtray.data.pack import check_same_observation
from mtray.data.rows import NEXT_BITS, ROOT_BITS, STEPS_SHIFT, TRANSITION, bits
from mtray.data.schema import by_task, validate
from mtray.data.specs import (
    ACTION,
    DONE_KEYS,
    NEXT,
    OBSERVATION,
    REWARD,
    FloatArray,
    TaskSpec,
    action_width,
    observation_width,
)
from mtray.errors import SchemaError


@dataclass(frozen=True)
class Batch:
    """A batch as the learner computes on it: dense, padded with zeros to the widest task.

    Attributes:
        tasks: names, in the order of the first axis; one that stands there twice has twice the rows.
        observation: [T, B, obs] float32.
        action: [T, B, act] float32.
        reward: [T, B] float32.
        next_observation: [T, B, obs] float32.
        flags: [T, B] int32, the rows' flags words.
    """

    tasks: tuple[str, ...]
    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    flags: Tensor

    def flag(self, key: str, *, root: bool = False) -> Tensor:
        """``done``, ``terminated`` or ``truncated`` of the state reached (or acted on), [T, B] bool."""
        return (self.flags & (ROOT_BITS if root else NEXT_BITS)[key]) != 0

    @property
    def steps(self) -> Tensor:
        """[T, B] int32, how many rewards ``reward`` is the discounted sum of."""
        return (self.flags >> STEPS_SHIFT) + 1

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; one that goes to a GPU is on its way while this returns."""
        tensors: Iterable[Tensor] = self.tensors
        if torch.device(device).type == "cuda" and not self.reward.is_cuda:
            # From other memory the copy would be waited for, and with it all that the GPU has yet to do.
            tensors = (tensor.pin_memory() for tensor in tensors)
        return Batch(self.tasks, *(tensor.to(device, non_blocking=True) for tensor in tensors))

    def unbind(self) -> list[Batch]:
        """The batches of one with a leading axis."""
        return [Batch(self.tasks, *parts) for parts in zip(*(tensor.unbind() for tensor in self.tensors), strict=True)]

    def copy_(self, other: Batch) -> None:
        """Take over another's numbers, of the same tasks and shapes."""
        for tensor, values in zip(self.tensors, other.tensors, strict=True):
            tensor.copy_(values, non_blocking=True)

    def rows(self, task: str, spec: TaskSpec) -> FloatArray:
        """A task's rows as they were drawn, [B, row_size], without their next observations."""
        at = [index for index, name in enumerate(self.tasks) if name == task]
        size = spec.observation_size
        rows = np.empty((len(at), self.reward.shape[1], spec.row_size), np.float32)
        rows[..., :size] = self.observation[at, :, :size].numpy()
        rows[..., size:-2] = self.action[at, :, : spec.action_size].numpy()
        rows[..., -2] = self.reward[at].numpy()
        bits(rows)[..., -1] = self.flags[at].numpy()
        return rows.reshape(-1, spec.row_size)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All but the names, in their order."""
        return self.observation, self.action, self.reward, self.next_observation, self.flags

    def to_stack(self, specs: Mapping[str, TaskSpec]) -> LazyStackedTensorDict:
        """The batch as a lazy stack over tasks, each element a dense [B] of that task with its own widths."""
        elements = []
        for index, task in enumerate(self.tasks):
            spec = specs[task]
            fields: dict[str, Any] = {ACTION: self.action[index, :, : spec.action_size]}
            reached: dict[str, Any] = {REWARD: self.reward[index].unsqueeze(-1)}
            for target, observation in ((fields, self.observation), (reached, self.next_observation)):
                target[OBSERVATION] = observation[index]
                target[spec.key] = observation[index, :, : spec.observation_size]
            for key in DONE_KEYS:
                fields[key] = self.flag(key, root=True)[index].unsqueeze(-1)
                reached[key] = self.flag(key)[index].unsqueeze(-1)
            size = [self.reward.shape[1]]
            elements.append(TensorDict({**fields, NEXT: TensorDict(reached, size)}, size))
        return cast(LazyStackedTensorDict, LazyStackedTensorDict.lazy_stack(elements, 0))

    @classmethod
    def from_stack(cls, stack: TensorDictBase, specs: Sequence[TaskSpec]) -> Batch:
        """The dense form of a lazy stack over tasks, as `to_stack` and the replay give it.

        Raises:
            SchemaError: an element does not fit its task.
        """
        known = {spec.name: spec for spec in specs}
        obs_width, act_width = observation_width(specs), action_width(specs)
        elements = by_task(stack, list(known))
        tasks, size = tuple(elements), next(iter(elements.values())).numel()
        batch = cls.empty(tasks, size, obs_width, act_width)
        for index, (task, data) in enumerate(elements.items()):
            spec = known[task]
            validate(data, spec, obs_width)
            if tuple(data.batch_size) != (size,):
                raise SchemaError(
                    f"task {task!r}: batch size {tuple(data.batch_size)} where another task has ({size},): "
                    "a batch holds equally many rows of every task"
                )
            check_same_observation(data, spec)
            check_same_observation(data.get(NEXT), spec)
            batch.observation[index] = data.get(OBSERVATION)
            batch.next_observation[index] = data.get((NEXT, OBSERVATION))
            batch.action[index, :, : spec.action_size] = data.get(ACTION)
            batch.reward[index] = data.get((NEXT, REWARD)).squeeze(-1)
            flags = torch.full((size,), TRANSITION, dtype=torch.int32)
            for key in DONE_KEYS:
                flags |= data.get(key).squeeze(-1) * ROOT_BITS[key]
                flags |= data.get((NEXT, key)).squeeze(-1) * NEXT_BITS[key]
            batch.flags[index] = flags
        return batch

    @classmethod
    def empty(cls, tasks: tuple[str, ...], size: int, obs: int, act: int, lead: tuple[int, ...] = ()) -> Batch:
        """A batch of zeros, with leading axes if asked."""
        shape = (*lead, len(tasks), size)
        return cls(
            tasks,
            torch.zeros(*shape, obs),
            torch.zeros(*shape, act),
            torch.zeros(*shape),
            torch.zeros(*shape, obs),
            torch.zeros(*shape, dtype=torch.int32),
        )


def unpack_batches(sampled: Mapping[str, FloatArray], specs: Sequence[TaskSpec]) -> list[Batch]:
    """Sampled rows as N batches: see `unpack`."""
    return unpack(sampled, specs).unbind()


def unpack(sampled: Mapping[str, FloatArray], specs: Sequence[TaskSpec]) -> Batch:
    """Sampled rows as batches in one; here, at the batch's edge, narrow tasks are padded.

    Args:
        sampled: task to [N, B_t, row_size + obs_t] float32: N batches of B_t rows, each with its next observation.
        specs: all tasks of the run; their widest give the padded widths.

    Returns:
        N batches over the sampled tasks, in the order of ``sampled``, along a leading axis. A task that has twice the
        rows of another stands in them twice, and so on.
    """
    known = {spec.name: spec for spec in specs}
    count = len(next(iter(sampled.values())))
    size = math.gcd(*(rows.shape[1] for rows in sampled.values()))
    parts = [
        (task, rows[:, start : start + size])
        for task, rows in sampled.items()
        for start in range(0, rows.shape[1], size)
    ]
    tasks = tuple(task for task, _ in parts)
    whole = Batch.empty(tasks, size, observation_width(specs), action_width(specs), lead=(count,))
    observation, action, reward = whole.observation.numpy(), whole.action.numpy(), whole.reward.numpy()
    reached, flags = whole.next_observation.numpy(), whole.flags.numpy()
    for index, (task, rows) in enumerate(parts):
        spec = known[task]
        width = spec.observation_size
        # Copied by numpy, which reads rows that lie in shared memory (read-only) where torch would warn.
        observation[:, index, :, :width] = rows[..., :width]
        action[:, index, :, : spec.action_size] = rows[..., width : spec.row_size - 2]
        reward[:, index] = rows[..., spec.row_size - 2]
        flags[:, index] = bits(rows)[..., spec.row_size - 1]
        reached[:, index, :, :width] = rows[..., spec.row_size :]
    return whole
