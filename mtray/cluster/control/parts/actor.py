"""A place of the run and the process that fills it, as control sees them, and how long things may take."""

from __future__ import annotations

import enum
from collections.abc import Set
from dataclasses import dataclass, field

from mtray.cluster.control.protocol import Call, Kind, Part, Place


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long things may take, in seconds.

    Attributes:
        start_seconds: for a process to come up, and again to become ready.
        call_seconds: for a call.
        stuck_seconds: for a call beyond ten times the longest of its kind.
        give_up_seconds: for starts to fail in a row.
        stop_seconds: for calls under way to end once the run shall end.
        first_seconds: for which the other collectors of one machine wait for the first one's frames.
        shares_cluster: whether a process may have to wait for room, for as long as it takes.
    """

    start_seconds: float = 180.0
    call_seconds: float = 300.0
    stuck_seconds: float = 30.0
    give_up_seconds: float = 600.0
    stop_seconds: float = 10.0
    first_seconds: float = 20.0
    shares_cluster: bool = False


class Phase(enum.Enum):
    """Where a place's process stands."""

    PAUSING = "pausing"
    PLACING = "placing"
    BUILDING = "building"
    UP = "up"


@dataclass(eq=False)
class Actor:
    """A place of the run and the process that fills it.

    Attributes:
        kind: what it is.
        index: its place among those of its kind.
        place: of a collector, what it steps.
        next_place: what it is to step instead, once its calls have ended.
        builds: how often this process was built.
        is_excused: whether its deadline was put off since it answered, for the replay was silent.
        is_leaving: whether it is to end once its calls have ended and all it pushed is acknowledged.
        is_closed: whether nobody fills the place for now, since there is no room.
        life: processes that have filled the place before this one.
        phase: of this process.
        calls: under way, by id, in the order they were made.
        heard: when it last answered, or was first asked again.
        answered: the latest call that it has answered.
        since: when this phase began.
        failures: deaths in a row without a minute of health between.
        failing_since: when the first of the starts in a row that failed was made.
        has_worked: whether this process has answered a call of work.
        requested: frames asked of this process.
        lost: of these those that it is known not to have pushed.
        settled: the latest flush that was answered.
        replay_life: the replay's process that it talks to; -1 if there was none when it was started.
        suspect: a call that may or may not have run, or None.
        retries: calls that will be made again.
        is_watched: whether a deadline is planned.
        is_told: whether users know that it can't be started.
    """

    kind: Kind
    index: int = 0
    place: Place = field(default_factory=Place)
    next_place: Place | None = None
    builds: int = 0
    is_excused: bool = False
    is_leaving: bool = False
    is_closed: bool = False
    life: int = 0
    phase: Phase = Phase.PAUSING
    calls: dict[int, Call] = field(default_factory=dict)
    heard: float = 0.0
    answered: int = -1
    since: float = 0.0
    failures: int = 0
    failing_since: float | None = None
    has_worked: bool = False
    requested: int = 0
    lost: int = 0
    settled: int = -1
    replay_life: int = -1
    suspect: int | None = None
    retries: int = 0
    is_watched: bool = False
    is_told: bool = False

    @property
    def part(self) -> Part:
        """The process that fills the place now."""
        return Part(self.kind, self.index, self.life)

    @property
    def tasks(self) -> Set[str]:
        """Of a collector, those it steps."""
        return self.place.tasks

    @property
    def rollout_frames(self) -> int:
        """Of a collector, frames of one rollout."""
        return sum(self.place.task_frames.values())

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way or will be made again."""
        return bool(self.calls or self.retries)

    @property
    def is_held(self) -> bool:
        """Whether it gets no more work before it steps something else, or ends."""
        return self.next_place is not None or self.is_leaving

    @property
    def is_up(self) -> bool:
        """Whether it can be asked to work."""
        return self.phase is Phase.UP
