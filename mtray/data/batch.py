"""Batches: the padded tensors that the learner computes on, made from sampled rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from tensordict import LazyStackedTensorDict, TensorDictBase
from torch import Tensor

from mtray.data.rows import NEXT_BITS, STEPS_SHIFT, bits
from mtray.data.schema import by_task
from mtray.data.specs import FloatArray, TaskSpec, action_width, observation_width
from mtray.data.tensordicts import from_tensordict, to_tensordict
from mtray.errors import SchemaError


@dataclass(frozen=True)
class Batch:
    """Transitions of several tasks, dense: the same number per place of the task axis, zero-padded to the widest task.

    Attributes:
        tasks: names along the task axis; a task named twice has twice the rows.
        observation: [T, B, obs] float32.
        action: [T, B, act] float32.
        reward: [T, B] float32.
        next_observation: [T, B, obs] float32.
        flags: [T, B] int32, the rows' flag bits (see `mtray.data.rows`).
    """

    tasks: tuple[str, ...]
    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    flags: Tensor

    def flag(self, key: str) -> Tensor:
        """Return ``done``, ``terminated`` or ``truncated`` [T, B] bool of the next state."""
        return (self.flags & NEXT_BITS[key]) != 0

    @property
    def steps(self) -> Tensor:
        """Number of rewards summed in ``reward``, [T, B] int32: n_step, or fewer at an end."""
        return (self.flags >> STEPS_SHIFT) + 1

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; a copy to a GPU is asynchronous."""
        tensors: Iterable[Tensor] = self.tensors
        if torch.device(device).type == "cuda" and not self.reward.is_cuda:
            # A copy from pageable memory would block until the GPU has done all queued work.
            tensors = (tensor.pin_memory() for tensor in tensors)
        return Batch(self.tasks, *(tensor.to(device, non_blocking=True) for tensor in tensors))

    def unbind(self) -> list[Batch]:
        """Split along the leading axis."""
        return [Batch(self.tasks, *parts) for parts in zip(*(tensor.unbind() for tensor in self.tensors), strict=True)]

    def rows(self, begin: int, end: int) -> Batch:
        """Return these rows of every task, as views."""
        return Batch(self.tasks, *(tensor[:, begin:end] for tensor in self.tensors))

    def copy_(self, other: Batch) -> None:
        """Copy the values of a batch of the same shapes."""
        for tensor, values in zip(self.tensors, other.tensors, strict=True):
            tensor.copy_(values, non_blocking=True)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The five tensors, in the order of the fields."""
        return self.observation, self.action, self.reward, self.next_observation, self.flags

    def to_stack(self, specs: Mapping[str, TaskSpec]) -> LazyStackedTensorDict:
        """Return a lazy stack over tasks; each element is a dense TensorDict [B] of that task, unpadded."""
        elements = [
            to_tensordict(
                specs[task],
                self.observation[index],
                self.action[index, :, : specs[task].action_size],
                self.reward[index],
                self.next_observation[index],
                self.flags[index],
            )
            for index, task in enumerate(self.tasks)
        ]
        return cast(LazyStackedTensorDict, LazyStackedTensorDict.lazy_stack(elements, 0))

    @classmethod
    def from_stack(cls, stack: TensorDictBase, specs: Sequence[TaskSpec]) -> Batch:
        """Return the batch of a lazy stack over tasks, as `to_stack` and `ReplayBuffer.sample` return it.

        Raises:
            SchemaError: an element does not match its task's schema, or has another batch size than the first.
        """
        spec_of = {spec.name: spec for spec in specs}
        width = observation_width(specs)
        elements = by_task(stack, list(spec_of))
        tasks, size = tuple(elements), next(iter(elements.values())).numel()
        batch = cls.zeros(tasks, size, width, action_width(specs))
        for index, (task, data) in enumerate(elements.items()):
            spec = spec_of[task]
            observation, action, reward, next_observation, flags = from_tensordict(data, spec, width)
            if tuple(data.batch_size) != (size,):
                raise SchemaError(
                    f"task {task!r}: batch size {tuple(data.batch_size)}, but another task has ({size},): "
                    "give the same number of rows of every task"
                )
            batch.observation[index, :, : spec.observation_size] = observation
            batch.next_observation[index, :, : spec.observation_size] = next_observation
            batch.action[index, :, : spec.action_size] = action
            batch.reward[index] = reward
            batch.flags[index] = flags
        return batch

    @classmethod
    def zeros(cls, tasks: tuple[str, ...], size: int, obs: int, act: int, lead: tuple[int, ...] = ()) -> Batch:
        """Allocate a batch of zeros [*lead, T, B]."""
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
    """Return sampled rows as a list of N batches [T, B]."""
    return unpack(sampled, specs).unbind()


def unpack(sampled: Mapping[str, FloatArray], specs: Sequence[TaskSpec]) -> Batch:
    """Return sampled rows as N batches stacked along a leading axis. Padding happens here only.

    Args:
        sampled: task to [N, B_t, row_size + obs_t] float32: N batches of B_t rows, each with its next observation.
        specs: all tasks of the run; the widest set the padded widths.

    Returns:
        A batch [N, T, B] with B the greatest common divisor of all B_t; a task takes B_t / B places of the task axis.
    """
    spec_of = {spec.name: spec for spec in specs}
    count = len(next(iter(sampled.values())))
    size = math.gcd(*(rows.shape[1] for rows in sampled.values()))
    parts = [
        (task, rows[:, start : start + size])
        for task, rows in sampled.items()
        for start in range(0, rows.shape[1], size)
    ]
    tasks = tuple(task for task, _ in parts)
    batches = Batch.zeros(tasks, size, observation_width(specs), action_width(specs), lead=(count,))
    observation, action, reward, next_observation, flags = (tensor.numpy() for tensor in batches.tensors)
    for index, (task, rows) in enumerate(parts):
        spec = spec_of[task]
        width = spec.observation_size
        # Copied by numpy: torch warns about read-only memory, and rows in shared memory can be read-only.
        observation[:, index, :, :width] = rows[..., :width]
        action[:, index, :, : spec.action_size] = rows[..., width : spec.row_size - 2]
        reward[:, index] = rows[..., spec.row_size - 2]
        flags[:, index] = bits(rows)[..., spec.row_size - 1]
        next_observation[:, index, :, :width] = rows[..., spec.row_size :]
    return batches
