"""What control is told and what it asks for: plain values, without Ray.

A run has parts: one replay, one learner, collectors. Control gives commands; a driver carries them out and reports each
call's end as an event. A call ends with an answer or a failure, late, twice, or never; control needs no more than that.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Container, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["replay", "learner", "collector"]


class Part(NamedTuple):
    """One process that fills a place of the run.

    Attributes:
        kind: what it is.
        place: its place among those of its kind.
        life: how many processes have filled the place before.
    """

    kind: Kind
    place: int = 0
    life: int = 0

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"collector {self.place}" if self.kind == "collector" else f"the {self.kind}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one collector steps.

    Attributes:
        task_frames: task to frames of one rollout.
        copies: task to simulators.
    """

    task_frames: Mapping[str, int] = field(default_factory=dict)
    copies: Mapping[str, int] = field(default_factory=dict)

    @property
    def tasks(self) -> Set[str]:
        """The names."""
        return self.task_frames.keys()

    def without(self, tasks: Container[str]) -> Place:
        """Return this place without some tasks."""
        return Place(
            task_frames={task: frames for task, frames in self.task_frames.items() if task not in tasks},
            copies={task: copies for task, copies in self.copies.items() if task not in tasks},
        )


class Method(enum.Enum):
    """What a part can be asked for. A part works on one call at a time, in the order they were given."""

    HELLO = "hello"
    """Answered once the process is there."""
    BUILD = "build"
    """Make the part ready; does nothing where it is ready. A collector that is ready is built anew where the call says
    that it is to step something else: ``amount`` counts how often. Answer: the replay's is `Restored`, the learner's
    the updates made in all."""
    CONNECT = "connect"
    """Go on with the replay's new process, and send it again what the old one may not have stored. Answer: a
    collector's is that of FLUSH, the learner's that of STATUS."""
    COLLECT = "collect"
    """Step one rollout and push it; its receipt may come later. Answer: `Collected`, or None if nothing failed."""
    FLUSH = "flush"
    """Wait for every receipt. Answer: frames acknowledged of all that this process pushed."""
    ACT = "act"
    """Lockstep: step one rollout with the newest weights. Answer: as COLLECT's."""
    PUSH = "push"
    """Lockstep: push it and wait for the receipt."""
    TRAIN = "train"
    """Make up to ``amount`` updates. Answer: updates made in all."""
    STATUS = "status"
    """Answer: updates made in all."""
    STATE = "state"
    """The learner's state, for a checkpoint or for a new process. Answer: updates made in all. Lockstep: also a
    collector's, for a checkpoint. Answer: whether it has one, so that a new process can go on within episodes."""
    CUT = "cut"
    """Lockstep: go on as a run that is resumed from the checkpoint of ``amount`` frames does. Answer: the learner's is
    that of STATUS."""
    COUNT = "count"
    """Answer: `Counts`."""
    FENCE = "fence"
    """Refuse further pushes of a process that is gone, ``of``. Answer: frames acknowledged of all that it pushed."""
    SNAPSHOT = "snapshot"
    """The replay's state, for a checkpoint. Answer: `Counts` as of it."""
    WRITE = "write"
    """Write a checkpoint of the last state and snapshot. Done by the driver itself, no part."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the replay holds: the truth of what was collected.

    Attributes:
        frames: of all tasks, ever acknowledged.
        is_warm: whether every task holds the warm-up's transitions (or as many as its ring can).
    """

    frames: int
    is_warm: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """What failed in a rollout.

    Attributes:
        missing: frames of steps that failed, of those asked for.
        failures: task and error of each simulator that was built anew.
    """

    missing: int = 0
    failures: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """What a new process of the replay holds.

    Attributes:
        counts: frames, and whether the warm-up's rows are held.
        source: of the rows: ``memory`` (every acknowledged one), ``checkpoint``, or ``nothing``.
        stored: frames stored for each collector process of this run.
        has_rows: False if the replay starts empty although frames were counted.
    """

    counts: Counts
    source: str = "memory"
    stored: Mapping[Part, int] = field(default_factory=dict)
    has_rows: bool = True


# Commands.


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process; its first call will be HELLO."""

    part: Part


@dataclass(frozen=True, slots=True)
class Call:
    """Ask a part for something.

    Attributes:
        id: of the call; its end is reported with it.
        part: who is asked; None for WRITE.
        method: what for.
        amount: of TRAIN, updates; of CUT, frames; of a collector's BUILD, how often it was built before.
        of: of FENCE, the process that is gone.
        place: of a collector's BUILD, what it steps from then on.
    """

    id: int
    part: Part | None
    method: Method
    amount: int = 0
    of: Part | None = None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Kill:
    """End a process, if it is still there."""

    part: Part


@dataclass(frozen=True, slots=True)
class SetAside:
    """Step a task no more in processes that are started from now on, and count the warm-up as over without it."""

    task: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Something happened that users want to know.

    Attributes:
        event: its name in events.jsonl.
        fields: of its line there.
        sentence: for the screen: what happened to whom, why, and what the run does now; empty if nothing is shown.
    """

    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The run is over.

    Attributes:
        reason: ``finished``, the reason of a stop, or what went wrong.
        outcome: ``done`` (finished, or stopped on request), ``failed``, or ``input`` (what the user gave can't work).
        is_finished: whether it made all that it was to make, and saved it; a task may have been set aside.
    """

    reason: str
    outcome: Literal["done", "failed", "input"] = "done"
    is_finished: bool = False


Command: TypeAlias = Start | Call | Kill | SetAside | Tell | End


# Events.


class Failure(enum.Enum):
    """How a call can fail."""

    DIED = "died"
    """The process is gone."""
    UNAVAILABLE = "unavailable"
    """It can't be reached now; the call may have run or not."""
    PEER = "peer"
    """It could not reach another part; the call may have run in part."""
    RAISED = "raised"
    """It raised."""
    TASK = "task"
    """A task's own code raised."""
    INPUT = "input"
    """What the user gave can't work."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A call's answer."""

    call: int
    value: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A call's failure.

    Attributes:
        text: one line for the user.
        task: of a TASK failure.
    """

    call: int
    kind: Failure
    text: str
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody asks the run to save and end, or its time is over (``is_due``), which is a regular end."""

    reason: str
    is_due: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """There is room for so many collectors, those that run included."""

    collectors: int


@dataclass(frozen=True, slots=True)
class Draining:
    """The node of some processes will go soon."""

    parts: Collection[Part]


Event: TypeAlias = Answered | Failed | Stop | Room | Draining
