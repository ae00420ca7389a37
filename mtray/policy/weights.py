"""Immutable, versioned snapshots of a policy's parameters and buffers.

The learner makes a snapshot as one contiguous float32 array, which Ray shares among the processes of a node without a
copy; collectors copy it into arrays of their own. All values are finite. A digest of the layout keeps a snapshot from
being loaded into a policy of other shapes. Collectors have no torch: making a snapshot is in `mtray.policy.snapshots`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtray.data.specs import FloatArray


@dataclass(frozen=True)
class Weights:
    """A policy's parameters and buffers.

    Attributes:
        version: 0 before the first update, then incremented with every snapshot of the learner.
        layout: digest of the tasks and of the tensors' names and shapes, in order.
        values: [N] float32, all tensors flattened and concatenated.
    """

    version: int
    layout: str
    values: FloatArray
