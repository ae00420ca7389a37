"""Conversion between TensorDicts with the keys of `specs.py` and arrays.

TensorDicts are the public format and are checked on entry; collectors, replay and learner exchange arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from torch import Tensor

from mtray.data.rollout import TaskRollout
from mtray.data.rows import NEXT_BITS, ROOT_BITS, TRANSITION
from mtray.data.schema import check_same_observation, validate
from mtray.data.specs import ACTION, DONE_KEYS, NEXT, OBSERVATION, REWARD, TaskSpec, observation_width
from mtray.errors import SchemaError


def to_tensordict(
    spec: TaskSpec, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor, flags: Tensor
) -> TensorDict:
    """Return a task's fields [...] as a TensorDict that shares their memory.

    Args:
        spec: the task.
        observation: [..., obs] float32, padded with zeros to the run's width.
        action: [..., act_t] float32.
        reward: [...] float32.
        next_observation: [..., obs] float32.
        flags: [...] int32, flag bits (see `mtray.data.rows`).
    """
    fields: dict[str, Any] = {ACTION: action}
    reached: dict[str, Any] = {REWARD: reward.unsqueeze(-1)}
    for target, common, flag_bits in ((fields, observation, ROOT_BITS), (reached, next_observation, NEXT_BITS)):
        target[OBSERVATION] = common
        target[spec.key] = common[..., : spec.observation_size]
        for key in DONE_KEYS:
            target[key] = ((flags & flag_bits[key]) != 0).unsqueeze(-1)
    return TensorDict({**fields, NEXT: TensorDict(reached, reward.shape)}, reward.shape)


def from_tensordict(data: TensorDictBase, spec: TaskSpec, width: int) -> tuple[Tensor, ...]:
    """Return a task's observation, action, reward, next observation and flags, unpadded.

    Args:
        data: dense TensorDict [...] of the task.
        spec: the task.
        width: width of the run's common ``observation``.

    Raises:
        SchemaError: the data does not match the task's schema.
    """
    validate(data, spec, width)
    reached = data.get(NEXT)
    check_same_observation(data, spec)
    check_same_observation(reached, spec)
    flags = torch.full(data.batch_size, TRANSITION, dtype=torch.int32, device=data.get(ACTION).device)
    for key in DONE_KEYS:
        flags |= data.get(key).squeeze(-1) * ROOT_BITS[key]
        flags |= reached.get(key).squeeze(-1) * NEXT_BITS[key]
    return data.get(spec.key), data.get(ACTION), reached.get(REWARD).squeeze(-1), reached.get(spec.key), flags


def to_rollout(data: TensorDictBase, spec: TaskSpec, width: int) -> TaskRollout:
    """Return a task's TensorDict [K, L] as arrays; transitions [N] in any order become [1, N].

    Raises:
        SchemaError: the data does not match the task's schema.
    """
    fields = from_tensordict(data, spec, width)
    if data.batch_dims not in (1, 2):
        raise SchemaError(f"task {spec.name!r}: batch size {tuple(data.batch_size)}, expected [K, L] or [N]")
    if data.batch_dims == 1:
        fields = tuple(field.unsqueeze(0) for field in fields)
    return TaskRollout(*(field.contiguous().numpy(force=True) for field in fields))


def to_stack(rollouts: Mapping[str, TaskRollout], specs: Sequence[TaskSpec]) -> LazyStackedTensorDict:
    """Return copies of rollouts as a lazy stack over tasks; each element is a dense TensorDict [K, L].

    Args:
        rollouts: task to rollout, of any of the run's tasks, in the stack's order.
        specs: all tasks of the run; ``observation`` is padded to the widest.
    """
    spec_of, width = {spec.name: spec for spec in specs}, observation_width(specs)

    def padded(values: Any) -> Tensor:
        common = torch.zeros(*values.shape[:-1], width)
        common.numpy()[..., : values.shape[-1]] = values
        return common

    elements = [
        to_tensordict(
            spec_of[task],
            padded(rollout.observation),
            torch.from_numpy(rollout.action.copy()),
            torch.from_numpy(rollout.reward.copy()),
            padded(rollout.next_observation),
            torch.from_numpy(rollout.flags),
        )
        for task, rollout in rollouts.items()
    ]
    return cast(LazyStackedTensorDict, LazyStackedTensorDict.lazy_stack(elements, 0))
