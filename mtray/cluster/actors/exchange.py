"""How collectors and the learner talk to the replay actor: pushes and draws, some of them always under way.

Ray carries pushes. Within a node the rows of draws lie in blocks (`mtray.data.blocks`) and Ray carries a small message,
pickled here: Ray's own serializer takes longer for one, by a tenth of a whole call. From another node Ray carries
everything. Blocks for pushes too would save 0.4 to 0.9 ms of CPU time a push, which is 0.3 percent of a rollout of
humanoids, 4 percent of one of cartpoles, and nothing beside the updates that go with either.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import pickle
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from mtray.collect.clock import Clock
from mtray.data.blocks import Block, SharedRows
from mtray.data.messages import Push, Sampled
from mtray.data.rows import sampled_shape
from mtray.data.specs import FloatArray, TaskSpec
from mtray.data.statistics import TaskStatistics
from mtray.errors import MtrayError, UnreachableError

# How often a push or a draw is sent before the replay counts as lost.
_ATTEMPTS = 5
_RETRY_SECONDS = 1.0


class _BlockPool:
    """Blocks that the replay writes in turns, if it is on this node."""

    def __init__(self, replay: Any, count: int, words: int) -> None:
        self._replay = replay
        self._blocks = collections.deque(Block.new(words) for _ in range(count))
        self._is_shared: bool | None = None

    def acquire(self) -> SharedRows | None:
        """Return rows in the next block, which must be free again; None if the replay is on another node."""
        if self._is_shared is None:
            try:
                self._is_shared = _get(self._replay.reaches.remote(self._blocks[0].address))
            except ActorUnavailableError:
                # The next call tries again.
                return None
        self._blocks.rotate(1)
        return SharedRows(self._blocks[0]) if self._is_shared else None


class Pusher:
    """Pushes under way, a bounded number; one that is not answered is sent again under its id.

    Attributes:
        number: of the next push.
    """

    def __init__(
        self,
        replay: Any,
        source: str,
        limit: int,
        timeout_seconds: float,
        clock: Clock | None = None,
        *,
        prints: bool = False,
    ) -> None:
        """Start with push 0.

        Args:
            replay: the actor.
            source: the name under which to push.
            limit: pushes under way at once.
            timeout_seconds: after which one is sent again.
            clock: told what is spent on pushes and on waiting for receipts.
            prints: whether every push that was acknowledged is printed, with checksums of its rows.
        """
        self._replay = replay
        self._source = source
        self._limit = limit
        self._timeout = timeout_seconds
        self._clock = clock or Clock()
        self._prints = prints
        self.number = 0
        self._pending: collections.deque[_Pending] = collections.deque()

    def push(
        self,
        rows: Mapping[str, FloatArray],
        statistics: Mapping[str, TaskStatistics],
        largest_returns: Mapping[str, float],
        weights_version: int,
    ) -> None:
        """Send rows, once fewer pushes than the limit are unanswered."""
        self.wait(self._limit - 1)
        push = Push(
            source=self._source,
            number=self.number,
            rows=rows,
            statistics=statistics,
            largest_returns=largest_returns,
            weights_version=weights_version,
        )
        self._pending.append(_Pending(self.number, push, self._replay.insert.remote(push)))
        self.number += 1

    def wait(self, left: int = 0) -> None:
        """Wait until at most ``left`` pushes are unanswered.

        Raises:
            UnreachableError: the replay did not answer one, however often it was sent; it is sent again next time.
        """
        self._clock.lap("push")
        while len(self._pending) > left:
            self._await_receipt(self._pending[0])
            pending = self._pending.popleft()
            if self._prints:
                rows = {task: [len(rows), zlib.crc32(rows)] for task, rows in pending.message.rows.items()}
                print(json.dumps({"acknowledged": pending.number, "source": self._source, "rows": rows}), flush=True)
        self._clock.lap("receipt")

    def stored(self) -> int:
        """Return the frames that the replay has stored of every push.

        Raises:
            UnreachableError: it is gone, or does not answer.
        """
        try:
            return int(_get(self._replay.stored.remote(self._source), self._timeout))
        except (ActorUnavailableError, GetTimeoutError) as error:
            raise UnreachableError(f"the replay did not say what it stored of {self._source}") from error

    def connect(self, replay: Any) -> None:
        """Push to another process of the replay, first what has no receipt: it tells by the ids what it has."""
        self._replay = replay
        for pending in self._pending:
            pending.answer = replay.insert.remote(pending.message)

    def _await_receipt(self, pending: _Pending) -> None:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(ActorUnavailableError, GetTimeoutError):
                _get(pending.answer, self._timeout)
                return
            # It may have been stored or not: the replay tells by the push's id.
            pending.answer = self._replay.insert.remote(pending.message)
        raise UnreachableError(
            f"the replay did not answer push {pending.number} of {self._source} in {_ATTEMPTS} attempts"
        )


@dataclass
class _Pending:
    """A push under way."""

    number: int
    message: Any
    answer: Any


def _get(reference: Any, timeout: float | None = None) -> Any:
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
    except RayActorError as error:
        raise UnreachableError("the replay is gone") from error
    except RayTaskError as error:
        if isinstance(error.cause, MtrayError):
            raise error.cause from None
        raise


class Draws:
    """Calls to the replay that are always some ahead of who reads them."""

    def __init__(
        self,
        replay: Any,
        specs: Sequence[TaskSpec],
        rows_per_task: Mapping[str, int],
        batches: int,
        calls_ahead: int,
        steps: int = 1,
    ) -> None:
        """Make no call yet.

        Args:
            replay: the actor.
            specs: of all tasks.
            rows_per_task: of each batch, task by task.
            batches: of each call.
            calls_ahead: calls under way or waiting.
            steps: of each row's return.
        """
        self._replay = replay
        self._size = dict(rows_per_task), batches, steps
        self._shapes = {spec.name: sampled_shape(spec, rows_per_task[spec.name], batches) for spec in specs}
        self._calls_ahead = calls_ahead
        self._calls: collections.deque[Any] = collections.deque()
        self._pool = self._new_pool()

    def _new_pool(self) -> _BlockPool:
        # One is read while the others are written.
        return _BlockPool(self._replay, self._calls_ahead + 1, sum(map(math.prod, self._shapes.values())))

    def next(self) -> Sampled:
        """Return the next call's batches: arrays that may be overwritten when this is called again.

        Raises:
            UnreachableError: the replay is gone, or could not be reached however often it was asked.
        """
        for _ in range(_ATTEMPTS):
            self._ask()
            try:
                answer = _get(self._calls.popleft())
            except (ActorUnavailableError, UnreachableError) as error:
                # What was lost may be drawn all the same, later, so its block is not used again.
                self.drop()
                if isinstance(error, UnreachableError):
                    raise
                time.sleep(_RETRY_SECONDS)
                continue
            self._ask()
            sampled: Sampled = pickle.loads(answer) if isinstance(answer, bytes) else answer
            return sampled
        raise UnreachableError(f"the replay could not be reached in {_ATTEMPTS} attempts to draw")

    def connect(self, replay: Any) -> None:
        """Draw from another process of the replay; what was drawn before is dropped."""
        self._replay = replay
        self.drop()

    def drop(self) -> None:
        """Drop what was drawn ahead; its blocks are not used again."""
        self._calls.clear()
        self._pool = self._new_pool()

    def settle(self) -> None:
        """Wait until every draw that is under way is made."""
        if self._calls:
            ray.wait(list(self._calls), num_returns=len(self._calls))

    def _ask(self) -> None:
        while len(self._calls) < self._calls_ahead:
            out, rows = None, self._pool.acquire()
            if rows is not None:
                for task, shape in self._shapes.items():
                    rows.add(task, shape)
                out = pickle.dumps(rows)
            self._calls.append(self._replay.sample_rows.remote(*self._size, out))
