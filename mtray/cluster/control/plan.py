"""A run as control sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mtray.cluster.control.lifecycle import Limits

# Calls under way to one part: one runs, one waits, so that the part never waits for the driver.
CALLS = 2


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one collector steps.

    Attributes:
        rollout_frames: frames of one rollout, over its tasks.
        tasks: names.
    """

    rollout_frames: int
    tasks: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run as control sees it.

    Attributes:
        places: of the collectors.
        total_frames: after which the run is finished.
        checkpoint_frames: between two checkpoints.
        frames: acknowledged before this run began.
        updates: made before it began.
        limits: how long things may take.
    """

    places: Sequence[Place]
    total_frames: int
    checkpoint_frames: int
    frames: int = 0
    updates: int = 0
    limits: Limits = field(default_factory=Limits)
