"""What the policy's state holds, without torch: collectors, which never import it, act on arrays of this layout.

Enters: tasks and network settings. Leaves: names and shapes of all tensors in the order of the policy's ``state_dict``,
a digest of them, and the arrays of a snapshot of the weights.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtray.config.learner import NetworkConfig
from mtray.data.specs import UNBOUNDED, FloatArray, TaskSpec, action_width, observation_width
from mtray.errors import SchemaError

# Bounds of the log standard deviation (BRO, Nauman et al. 2024).
LOG_STD_LOW = -10.0
LOG_STD_HIGH = 2.0

# Bound of the absolute values of normalised observations.
INPUT_LIMIT = 10.0


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


@dataclass(frozen=True)
class PolicyLayout:
    """The layout of a `mtray.policy.policy.MultiTaskPolicy`.

    Attributes:
        specs: the tasks, in the order of the heads.
        config: network settings.
        action_noise: standard deviation of the noise added to actions; None for heads that learn the deviation.
    """

    specs: tuple[TaskSpec, ...]
    config: NetworkConfig
    action_noise: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(spec.name for spec in self.specs)

    @property
    def head_outputs(self) -> int:
        """Numbers that a head gives: means of the widest action, and raw deviations if it learns them."""
        return action_width(self.specs) * (1 if self.action_noise is not None else 2)

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape of each tensor, in order."""
        tasks, obs, act = len(self.specs), observation_width(self.specs), action_width(self.specs)
        config, sizes = self.config, self.config.sizes
        width, embedding, adapter = sizes.actor_width, config.embedding_size, config.adapter_size
        found: dict[str, tuple[int, ...]] = {
            "mean": (tasks, obs),
            "scale": (tasks, obs),
            "embedding": (tasks, embedding),
        }
        found |= dict.fromkeys(("action_middle", "action_reach", "action_mask"), (tasks, act))
        found |= _linear_and_norm("backbone.0", "backbone.1", obs + adapter + embedding, width)
        for block in range(3, 3 + sizes.actor_blocks):
            for linear, norm in ((0, 1), (3, 4)):
                begin = f"backbone.{block}.layers."
                found |= _linear_and_norm(f"{begin}{linear}", f"{begin}{norm}", width, width)
        found |= _grouped("adapters", tasks, obs, adapter)
        inputs = [width + (obs if config.head_reads_observation else 0), *[width] * config.head_layers]
        for index, (before, after) in enumerate(itertools.pairwise(inputs)):
            found |= _grouped(f"heads.hidden.{index}", tasks, before, after)
        return found | _grouped("heads.output", tasks, inputs[-1], self.head_outputs)

    @functools.cached_property
    def digest(self) -> str:
        """The digest that a snapshot of such a policy has."""
        return digest(self.names, self.shapes)

    def arrays(self, weights: Weights) -> dict[str, FloatArray]:
        """Return name to array, copied from a snapshot.

        Raises:
            SchemaError: the snapshot's layout is another.
        """
        check_layout(weights, self.digest)
        return {name: part.copy() for name, part in cut(weights, self.shapes).items()}

    def initial_arrays(self) -> dict[str, FloatArray]:
        """Return name to array of a policy that has learned nothing: it scales to the tasks' bounds."""
        found = {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}
        for name, bounds in zip(("middle", "reach", "mask"), action_bounds(self.specs), strict=True):
            found[f"action_{name}"] = bounds
        return found


def digest(names: Iterable[str], shapes: Mapping[str, Sequence[int]]) -> str:
    """Return a digest of tasks and of tensors' names and shapes, in order."""
    text = ";".join([*names, *(f"{name}{tuple(shape)}" for name, shape in shapes.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_layout(weights: Weights, expected: str) -> None:
    """Raise a SchemaError if a snapshot's layout is not the expected one."""
    if weights.layout != expected:
        raise SchemaError(
            f"weights of layout {weights.layout} do not fit a policy of layout {expected}: "
            "tasks, their order and the network's settings must be those of the run that made them"
        )


def cut(weights: Weights, shapes: Mapping[str, Sequence[int]]) -> dict[str, FloatArray]:
    """Return views of a snapshot's values by name, given all names and shapes in order."""
    ends = itertools.accumulate(math.prod(shape) for shape in shapes.values())
    parts = np.split(weights.values, list(ends)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def action_bounds(specs: Sequence[TaskSpec]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return middle, half range and mask [T, act] of actions; the mask is 0 for padding and entries of equal bounds."""
    middle, half_range, mask = np.zeros((3, len(specs), action_width(specs)), np.float32)
    half_range += 1
    for row, spec in enumerate(specs):
        for column, (low, high) in enumerate(zip(spec.action_low, spec.action_high, strict=True)):
            if low <= -UNBOUNDED and high >= UNBOUNDED:
                low, high = -1.0, 1.0
            centre, half = np.float32((low + high) / 2), np.float32((high - low) / 2)
            # Rounding to float32 can move the ends outside the bounds.
            while half > 0 and (float(centre + half) > high or float(centre - half) < low):
                half = max(half - np.spacing(np.float32(max(abs(low), abs(high)))), np.float32(0))
            middle[row, column], half_range[row, column], mask[row, column] = centre, half, half > 0
    return middle, half_range, mask


def _linear_and_norm(linear: str, norm: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a Linear and of the LayerNorm behind it."""
    shapes = {f"{linear}.weight": (outputs, inputs), f"{linear}.bias": (outputs,)}
    return shapes | {f"{norm}.weight": (outputs,), f"{norm}.bias": (outputs,)}


def _grouped(name: str, tasks: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer per task."""
    return {f"{name}.weight": (tasks, inputs, outputs), f"{name}.bias": (tasks, outputs)}
