"""A run as control sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from mtray.cluster.control.parts.actor import Limits
from mtray.cluster.control.protocol import Place

# Calls under way to one part: one runs, one waits, so that the part never waits for the driver.
CALLS = 2
# Errors of one task's own code in a row that are taken for accidents.
TASK_ERRORS = 3


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Who steps what while some number of collectors runs.

    Attributes:
        places: of each of them.
        round_frames: as `Pacing` has it.
        slack_frames: as `Pacing` has it.
    """

    places: Sequence[Place]
    round_frames: int
    slack_frames: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run as control sees it.

    Attributes:
        places: of the collectors.
        total_frames: after which the run is finished.
        checkpoint_frames: between two checkpoints.
        checkpoint_seconds: between two checkpoints, unless so many frames come first.
        frames: acknowledged before this run began.
        updates: made before it began.
        warmup_frames: without updates, of a run that begins, and again where the replay has lost its rows.
        task_errors: errors of one task's own code in a row, with less than a minute between, before it has failed.
        sets_aside: whether a task that has failed is set aside, and the run goes on with the others.
        step_frames: task to frames of one agent step; those of a task that is set aside are no longer paced by.
        spread: for runs whose collectors come and go, who steps what with so many collectors and without some tasks;
            None where all places are always filled, or filled again.
        limits: how long things may take.
    """

    places: Sequence[Place]
    total_frames: int
    checkpoint_frames: int
    checkpoint_seconds: float = math.inf
    frames: int = 0
    updates: int = 0
    warmup_frames: int = 0
    task_errors: int = TASK_ERRORS
    sets_aside: bool = False
    step_frames: Mapping[str, int] = field(default_factory=dict)
    spread: Callable[[int, Container[str]], Spread] | None = None
    limits: Limits = field(default_factory=Limits)
