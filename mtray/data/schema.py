"""Checks of TensorDicts against their task's spec: exactly its keys, with their shapes and dtypes.

Data that does not fit is an error that names the task, the key and both shapes. Nothing is dropped, padded or filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from tensordict import LazyStackedTensorDict, TensorDictBase

from mtray.data.specs import ACTION, DONE_KEYS, NEXT, OBSERVATION, REWARD, TaskSpec, task_key
from mtray.errors import SchemaError


def expected_shapes(spec: TaskSpec, width: int) -> dict[str | tuple[str, str], tuple[int, torch.dtype]]:
    """Return key to (last axis, dtype) for data of a task in a run whose common observation is ``width`` wide."""
    shapes: dict[str | tuple[str, str], tuple[int, torch.dtype]] = {ACTION: (spec.action_size, torch.float32)}
    for prefix in ((), (NEXT,)):
        keys = {OBSERVATION: width, spec.key: spec.observation_size}
        for key, last in keys.items():
            shapes[cast(Any, (*prefix, key) if prefix else key)] = (last, torch.float32)
        for key in DONE_KEYS:
            shapes[cast(Any, (*prefix, key) if prefix else key)] = (1, torch.bool)
    shapes[NEXT, REWARD] = (1, torch.float32)
    return shapes


def validate(data: TensorDictBase, spec: TaskSpec, width: int) -> None:
    """Raise unless a task's dense data has exactly its schema's keys, with their shapes and dtypes.

    Raises:
        SchemaError: names the task, the key, what was expected and what came.
    """
    expected = expected_shapes(spec, width)
    batch = tuple(data.batch_size)
    found = {key: value for key, value in data.items(include_nested=True, leaves_only=True)}
    for key in found:
        if key not in expected:
            shape = tuple(found[key].shape)
            raise SchemaError(
                f"task {spec.name!r}: key {key!r} of shape {shape} is not in the task's schema "
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
    """Raise unless ``observation`` is the exclusive observation, padded with zeros.

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
                "padded with zeros; both can't be kept if they are different data"
            )
    if common[..., width:].contiguous().view(torch.int32).count_nonzero():
        raise SchemaError(f"task {spec.name!r}: 'observation' has values behind the task's {width} entries")


def _names(keys: Iterable[Any]) -> str:
    return ", ".join(sorted(key if isinstance(key, str) else "/".join(key) for key in keys))


def task_of(data: TensorDictBase, names: Iterable[str]) -> str:
    """Return the task whose exclusive key this TensorDict carries.

    Raises:
        SchemaError: none or several of the named tasks' keys are there.
    """
    keys = set(data.keys())
    found = [name for name in names if task_key(name) in keys]
    if len(found) != 1:
        raise SchemaError(
            f"a TensorDict must carry exactly one task's observation_<task> key, found {found or 'none'} "
            f"among its keys ({_names(keys)})"
        )
    return found[0]


def by_task(stack: TensorDictBase, names: Sequence[str]) -> dict[str, TensorDictBase]:
    """Return the dense TensorDicts of a lazy stack over tasks (or of one task) by task, in the stack's order."""
    elements = stack.tensordicts if isinstance(stack, LazyStackedTensorDict) else [stack]
    out: dict[str, TensorDictBase] = {}
    for element in elements:
        name = task_of(element, names)
        if name in out:
            raise SchemaError(f"task {name!r} is twice in one stack: concatenate its data first")
        out[name] = element
    return out
