"""How collectors send pushes to the replay actor, some of them always under way.

Ray carries them. Blocks of shared memory would save 0.4 to 0.9 ms of CPU time a push, which is 0.3 percent of a rollout
of humanoids, 4 percent of one of cartpoles, and nothing beside the updates that go with either.
"""

from __future__ import annotations

import collections
import contextlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from mtray.collect.clock import Clock
from mtray.data.messages import Push
from mtray.data.specs import FloatArray
from mtray.data.statistics import TaskStatistics
from mtray.errors import MtrayError, UnreachableError

# How often a push or a draw is sent before the replay counts as lost.
ATTEMPTS = 5
RETRY_SECONDS = 1.0


class Pusher:
    """Pushes under way, a bounded number; one that is not answered is sent again under its id.

    Attributes:
        number: of the next push.
        clock: told what is spent on pushes and on waiting for receipts.
    """

    def __init__(
        self,
        replay: Any,
        source: str,
        limit: int,
        timeout_seconds: float,
        *,
        prints: bool = False,
    ) -> None:
        """Start with push 0.

        Args:
            replay: the actor.
            source: the name under which to push.
            limit: pushes under way at once.
            timeout_seconds: after which one is sent again.
            prints: whether every push that was acknowledged is printed, with checksums of its rows.
        """
        self._replay = replay
        self._source = source
        self._limit = limit
        self._timeout = timeout_seconds
        self.clock = Clock()
        self._prints = prints
        self.number = 0
        self._pending: collections.deque[_Pending] = collections.deque()

    def push(
        self,
        rows: Mapping[str, FloatArray],
        statistics: Mapping[str, TaskStatistics],
        largest_returns: Mapping[str, float],
    ) -> None:
        """Send rows, once fewer pushes than the limit are unanswered."""
        self.wait(self._limit - 1)
        push = Push(
            source=self._source,
            number=self.number,
            rows=rows,
            statistics=statistics,
            largest_returns=largest_returns,
        )
        self._pending.append(_Pending(self.number, push, self._replay.insert.remote(push)))
        self.number += 1
        self.clock.lap("push")

    def wait(self, left: int = 0) -> None:
        """Wait until at most ``left`` pushes are unanswered.

        Raises:
            UnreachableError: the replay did not answer one, however often it was sent; it is sent again next time.
        """
        self.clock.lap("push")
        while len(self._pending) > left:
            self._await_receipt(self._pending[0])
            pending = self._pending.popleft()
            if self._prints:
                rows = {task: [len(rows), zlib.crc32(rows)] for task, rows in pending.message.rows.items()}
                print(json.dumps({"acknowledged": pending.number, "source": self._source, "rows": rows}), flush=True)
        self.clock.lap("receipt")

    def stored(self) -> int:
        """Return the frames that the replay has stored of every push.

        Raises:
            UnreachableError: it is gone, or does not answer.
        """
        try:
            return int(answer_of(self._replay.stored.remote(self._source), self._timeout))
        except (ActorUnavailableError, GetTimeoutError) as error:
            raise UnreachableError(f"the replay did not say what it stored of {self._source}") from error

    def connect(self, replay: Any) -> None:
        """Push to another process of the replay, first what has no receipt: it tells by the ids what it has."""
        self._replay = replay
        for pending in self._pending:
            pending.answer = replay.insert.remote(pending.message)
        self.clock.lap("push")

    def _await_receipt(self, pending: _Pending) -> None:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(ActorUnavailableError, GetTimeoutError):
                answer_of(pending.answer, self._timeout)
                return
            # It may have been stored or not: the replay tells by the push's id.
            pending.answer = self._replay.insert.remote(pending.message)
        raise UnreachableError(
            f"the replay did not answer push {pending.number} of {self._source} in {ATTEMPTS} attempts"
        )


@dataclass
class _Pending:
    """A push under way."""

    number: int
    message: Any
    answer: Any


def answer_of(reference: Any, timeout: float | None = None) -> Any:
    """Return the replay's answer.

    Raises:
        ActorUnavailableError: it can't be reached now.
        GetTimeoutError: it did not answer in time.
        UnreachableError: it is gone.
    """
    try:
        return ray.get(reference, timeout=timeout)
    except ActorUnavailableError:
        raise
    except (RayActorError, ObjectLostError) as error:
        # An answer that was not fetched yet goes with its node.
        raise UnreachableError("the replay is gone") from error
    except RayTaskError as error:
        if isinstance(error.cause, MtrayError):
            raise error.cause from None
        raise
