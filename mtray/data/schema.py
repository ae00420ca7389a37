"""Checks of TensorDicts against their task's spec: exactly its keys, with their shapes and dtypes.

Data that does not match is an error that names the task, the key and both shapes. Nothing is dropped, padded or filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import LazyStackedTensorDict, TensorDictBase

from mtray.data.specs import ACTION, DONE_KEYS, NEXT, OBSERVATION, REWARD, TaskSpec, task_key
from mtray.errors import SchemaError


def expected_shapes(spec: TaskSpec, width: int) -> dict[str | tuple[str, str], tuple[int, torch.dtype]]:
    """Return key to (last axis, dtype) for data of a task in a run whose common observation is ``width`` wide."""
    state = {OBSERVATION: (width, torch.float32), spec.key: (spec.observation_size, torch.float32)}
    state |= dict.fromkeys(DONE_KEYS, (1, torch.bool))
    shapes: dict[str | tuple[str, str], tuple[int, torch.dtype]] = {ACTION: (spec.action_size, torch.float32)}
    shapes.update(state)
    shapes.update({(NEXT, key): value for key, value in state.items()})
    shapes[NEXT, REWARD] = (1, torch.float32)
    return shapes


def validate(data: TensorDictBase, spec: TaskSpec, width: int) -> None:
    """Check that a task's dense data has exactly its schema's keys, with their shapes and dtypes.

    Raises:
        SchemaError: names the task, the key, the expected and the found shape.
    """
    expected = expected_shapes(spec, width)
    batch = tuple(data.batch_size)
    found = dict(data.items(include_nested=True, leaves_only=True))
    for key, value in found.items():
        if key not in expected:
            raise SchemaError(
                f"task {spec.name!r}: key {key!r} of shape {tuple(value.shape)} is not in the task's schema "
                f"({_names(expected)}): remove it before pushing, nothing is dropped silently"
            )
    for key, (last, dtype) in expected.items():
        value = found.get(key)
        if value is None:
            raise SchemaError(
                f"task {spec.name!r}: key {key!r} of shape {(*batch, last)} is missing (found {_names(found)})"
            )
        if tuple(value.shape) != (*batch, last) or value.dtype != dtype:
            raise SchemaError(
                f"task {spec.name!r}: key {key!r} has shape {tuple(value.shape)} {value.dtype}, "
                f"the schema says {(*batch, last)} {dtype}"
            )


def check_same_observation(data: TensorDictBase, spec: TaskSpec) -> None:
    """Check that ``observation`` is the exclusive observation, padded with zeros.

    Raises:
        SchemaError: names the task and says which of the two conditions fails.
    """
    common, exclusive = data.get(OBSERVATION), data.get(spec.key)
    width = spec.observation_size
    if common.data_ptr() != exclusive.data_ptr() or common.stride()[:-1] != exclusive.stride()[:-1]:
        unpadded = common[..., :width].contiguous().view(torch.int32)
        if not torch.equal(unpadded, exclusive.contiguous().view(torch.int32)):
            raise SchemaError(
                f"task {spec.name!r}: 'observation' and {spec.key!r} differ: the first must be the second, "
                "padded with zeros, because only the second is stored"
            )
    if common[..., width:].contiguous().view(torch.int32).count_nonzero():
        raise SchemaError(f"task {spec.name!r}: 'observation' has nonzero values after the task's {width} entries")


def _names(keys: Iterable[Any]) -> str:
    return ", ".join(sorted(key if isinstance(key, str) else "/".join(key) for key in keys))


def task_of(data: TensorDictBase, names: Iterable[str]) -> str:
    """Return the name of the task whose exclusive key a TensorDict has.

    Raises:
        SchemaError: it has none of the named tasks' keys, or several.
    """
    keys = set(data.keys())
    found = [name for name in names if task_key(name) in keys]
    if len(found) != 1:
        raise SchemaError(
            f"a TensorDict must have exactly one task's observation_<task> key, found {found or 'none'} "
            f"among its keys ({_names(keys)})"
        )
    return found[0]


def by_task(stack: TensorDictBase, names: Sequence[str]) -> dict[str, TensorDictBase]:
    """Return task to dense TensorDict of a lazy stack over tasks, or of one task, in the stack's order.

    Raises:
        SchemaError: an element has not exactly one task's key, or a task is in the stack twice.
    """
    elements = stack.tensordicts if isinstance(stack, LazyStackedTensorDict) else [stack]
    out: dict[str, TensorDictBase] = {}
    for element in elements:
        name = task_of(element, names)
        if name in out:
            raise SchemaError(f"task {name!r} is twice in one stack: concatenate its data first")
        out[name] = element
    return out
