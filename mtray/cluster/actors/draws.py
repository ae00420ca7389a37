"""How the learner draws from the replay actor, always some calls ahead.

Within a node the rows lie in blocks (`mtray.data.blocks`) and Ray carries a small message, pickled here: Ray's own
serializer takes longer for one, by a tenth of a whole call. From another node Ray carries everything.
"""

from __future__ import annotations

import collections
import math
import pickle
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError

from mtray.cluster.actors.pushes import ATTEMPTS, RETRY_SECONDS, answer_of
from mtray.data.blocks import Block, SharedRows
from mtray.data.messages import Sampled
from mtray.data.rows import sampled_shape
from mtray.data.specs import TaskSpec
from mtray.errors import UnreachableError


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
                self._is_shared = answer_of(self._replay.reaches.remote(self._blocks[0].address))
            except ActorUnavailableError:
                # The next call tries again.
                return None
        self._blocks.rotate(1)
        return SharedRows(self._blocks[0]) if self._is_shared else None


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
        for _ in range(ATTEMPTS):
            self._ask()
            try:
                answer = answer_of(self._calls.popleft())
            except (ActorUnavailableError, UnreachableError) as error:
                # What was lost may be drawn all the same, later, so its block is not used again.
                self.drop()
                if isinstance(error, UnreachableError):
                    raise
                time.sleep(RETRY_SECONDS)
                continue
            self._ask()
            sampled: Sampled = pickle.loads(answer) if isinstance(answer, bytes) else answer
            return sampled
        raise UnreachableError(f"the replay could not be reached in {ATTEMPTS} attempts to draw")

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
