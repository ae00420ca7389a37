"""What a push must be like before anything of it is stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mtray.data.messages import Push
from mtray.data.rows import TRANSITION, holds_transition, is_finite, row_flags
from mtray.data.specs import FloatArray
from mtray.errors import SchemaError, TaskError
from mtray.replay.ring import Ring


def check_push(push: Push, rings: Mapping[str, Ring]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return, by task, which rows [n] of a push hold a transition.

    Raises:
        SchemaError: rows of an unknown task or another width, without the observation reached, or too many for a ring.
        TaskError: a value is not finite.
    """
    is_transition = {}
    for task, rows in push.rows.items():
        ring = check_rows(task, rows, rings)
        if not len(rows) or row_flags(rows)[-1] & TRANSITION:
            raise SchemaError(
                f"task {task!r}: the last row must hold the observation reached, as mtray.data.rollout.pack lays it"
            )
        if len(rows) > len(ring.rows):
            raise SchemaError(
                f"task {task!r}: a push of {len(rows)} rows does not fit a ring of {len(ring.rows)}: "
                "raise --replay.capacity-rows or lower --collector.rollout-steps"
            )
        # With the flags, which as floats are finite: without them the rows would not be one contiguous array.
        if not is_finite(rows):
            raise TaskError(
                f"task {task!r}: its data is not finite; nothing of push {push.number} of {push.source} is stored", task
            )
        found, statistics = holds_transition(rows), push.statistics.get(task)
        count = int(np.count_nonzero(found))
        if statistics is not None and statistics.count != count:
            raise SchemaError(f"task {task!r}: statistics of {statistics.count} transitions came with rows of {count}")
        is_transition[task] = found
    return is_transition


def check_rows(task: str, rows: FloatArray, rings: Mapping[str, Ring]) -> Ring:
    """Return the ring of a task's rows.

    Raises:
        SchemaError: there is none, or its rows are of another shape or type.
    """
    ring = rings.get(task)
    if ring is None:
        raise SchemaError(f"push of task {task!r}: this replay holds {', '.join(rings)}")
    spec = ring.spec
    if rows.ndim != 2 or rows.shape[1] != spec.row_size or rows.dtype != np.float32:
        raise SchemaError(
            f"task {task!r}: rows of shape {rows.shape} {rows.dtype}, "
            f"the schema says (any, {spec.row_size}) float32: {spec.observation_size} observation, "
            f"{spec.action_size} action, reward, flags"
        )
    return ring
