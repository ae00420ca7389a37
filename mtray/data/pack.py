"""From a task's rollout to the rows that are stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tensordict import TensorDictBase

from mtray.data.rows import NEXT_BITS, ROOT_BITS, TRANSITION, bits
from mtray.data.schema import validate
from mtray.data.specs import (
    ACTION,
    DONE_KEYS,
    NEXT,
    OBSERVATION,
    REWARD,
    FloatArray,
    TaskSpec,
)
from mtray.errors import SchemaError


def check_same_observation(data: TensorDictBase, spec: TaskSpec) -> None:
    """Raise unless ``observation`` is the exclusive observation, padded with zeros."""
    common, own = data.get(OBSERVATION), data.get(spec.key)
    width = spec.observation_size
    if common.data_ptr() != own.data_ptr() or common.stride()[:-1] != own.stride()[:-1]:
        equal = torch.equal(common[..., :width].contiguous().view(torch.int32), own.contiguous().view(torch.int32))
        if not equal:
            raise SchemaError(
                f"task {spec.name!r}: 'observation' and {spec.key!r} differ: the first must be the second, "
                "padded with zeros; both can't be kept if they are different data"
            )
    if common[..., width:].contiguous().view(torch.int32).count_nonzero():
        raise SchemaError(f"task {spec.name!r}: 'observation' has values behind the task's {width} entries")


def _empty(shape: tuple[int, int]) -> FloatArray:
    return np.empty(shape, np.float32)


def pack(
    data: TensorDictBase, spec: TaskSpec, width: int, empty: Callable[[tuple[int, int]], FloatArray] | None = None
) -> FloatArray:
    """A task's rollout as rows.

    Args:
        data: dense TensorDict [K, L] (or [N]: N transitions of any order) of one task.
        spec: the task.
        width: the run's common observation width.
        empty: gives the array to write, once its shape is known; by default a new one.

    Returns:
        [rows, row_size] float32, rows >= transitions: see the module's text for the layout.

    Raises:
        SchemaError: the data does not fit the task.
    """
    validate(data, spec, width)
    check_same_observation(data, spec)
    check_same_observation(data.get(NEXT), spec)
    if data.batch_dims == 1:
        data = data.unsqueeze(0)
    if data.batch_dims != 2:
        raise SchemaError(f"task {spec.name!r}: batch size {tuple(data.batch_size)}, expected [K, L] or [N]")
    obs = np.ascontiguousarray(data.get(spec.key).numpy())
    nxt = np.ascontiguousarray(data.get((NEXT, spec.key)).numpy())
    lanes, steps, size = obs.shape
    split = np.ones((lanes, steps), dtype=bool)
    if steps > 1:
        split[:, :-1] = (bits(obs[:, 1:]) != bits(nxt[:, :-1])).any(axis=-1)
    apart = split.reshape(-1)
    ends = np.cumsum(apart + 1)
    rows = (empty or _empty)((int(ends[-1]) if len(ends) else 0, spec.row_size))
    position = ends - 1 - apart
    rows[position, :size] = obs.reshape(-1, size)
    rows[position, size:-2] = data.get(ACTION).numpy().reshape(-1, spec.action_size)
    rows[position, -2] = data.get((NEXT, REWARD)).numpy().reshape(-1)
    flags = np.full(lanes * steps, TRANSITION, dtype=np.int32)
    for key in DONE_KEYS:
        flags |= data.get(key).numpy().reshape(-1) * np.int32(ROOT_BITS[key])
        flags |= data.get((NEXT, key)).numpy().reshape(-1) * np.int32(NEXT_BITS[key])
    bits(rows)[position, -1] = flags
    between = position[apart] + 1
    rows[between, :size] = nxt.reshape(-1, size)[apart]
    rows[between, size:] = 0
    return rows
