"""One task's rows: the newest of them, in one dense array."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mtray.data.rows import (
    NEXT_BITS,
    STEPS_SHIFT,
    row_flags,
)
from mtray.data.specs import FloatArray, TaskSpec
from mtray.errors import SchemaError

if TYPE_CHECKING:
    pass


class Ring:
    """One task's rows: the newest ``capacity`` of them."""

    def __init__(self, spec: TaskSpec, capacity: int) -> None:
        """Reserve the rows; memory is taken as they fill."""
        self.spec = spec
        # The first row lies once more behind the last, so that from every row on its next observation follows.
        self._memory: FloatArray = np.zeros((capacity + 1, spec.row_size), np.float32)
        self.rows = self._memory[:capacity]
        # Whether each row holds a transition, beside the rows: looking it up in them is another miss of the cache.
        self._acted = np.zeros(capacity, np.bool_)
        self._window = np.dtype((np.void, 4 * (spec.row_size + spec.observation_size)))
        self.written = 0
        self.transitions = 0

    @property
    def start(self) -> int:
        """Number of the oldest row held, counted from the first ever written."""
        return max(0, self.written - len(self.rows))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows held."""
        return (self.written - self.start) * self.spec.row_size * 4

    def insert(self, rows: FloatArray, acted: npt.NDArray[np.bool_]) -> int:
        """Write rows over the oldest; give how many of them hold a transition.

        Args:
            rows: [n, row_size], the last of them without a transition.
            acted: [n], which of them hold one.

        Raises:
            SchemaError: more rows than the ring holds.
        """
        capacity, count = len(self.rows), len(rows)
        if count > capacity:
            raise SchemaError(
                f"task {self.spec.name!r}: a push of {count} rows does not fit a ring of {capacity}: "
                "raise --replay.capacity-rows or lower --collector.rollout-steps"
            )
        inserted = int(np.count_nonzero(acted))
        begin = self.written % capacity
        first = min(count, capacity - begin)
        overwritten = 0
        for place, part in ((slice(begin, begin + first), slice(first)), (slice(count - first), slice(first, count))):
            overwritten += int(np.count_nonzero(self._acted[place]))
            self._acted[place] = acted[part]
            self.rows[place] = rows[part]
        self._memory[-1] = self._memory[0]
        self.transitions += inserted - overwritten
        self.written += count
        return inserted

    def sample(self, out: FloatArray, generator: np.random.Generator, steps: int = 1) -> float:
        """Draw transitions uniformly, with replacement, each with its next observation.

        Args:
            out: contiguous [N, B, row_size + obs_t], where they go: N batches, each drawn on its own, then put from
                the oldest row to the newest.
            generator: what draws.
            steps: of each return; see `Replay.sample_rows`.

        Returns:
            How many rows have been written after those drawn, in the mean.
        """
        capacity, (batches, size, _) = len(self.rows), out.shape
        # From the oldest to before the newest: that is no transition, a push ends with the observation it reached.
        # What lies before the ring's start is counted from its end, as numpy does.
        newest = (self.written - 1) % capacity
        oldest = newest - (self.written - 1 - self.start)
        picked = np.empty(0, np.int64)
        while len(picked) < batches * size:
            missing = batches * size - len(picked)
            drawn = generator.integers(oldest, newest, size=missing + missing // 16 + 16)
            picked = np.concatenate([picked, drawn[self._acted[drawn]]])
        # In this order they are read a fifth faster. Which batch has which rows stays as drawn.
        picked_by_batch = np.sort(picked[: batches * size].reshape(batches, size))
        # A row and its next observation lie side by side: one item, copied whole, of an array whose items overlap.
        windows: npt.NDArray[np.void] = np.ndarray(
            capacity, self._window, self._memory, strides=self._memory.strides[:1]
        )
        # Batch by batch, so that what numpy gathers before it copies stays in the core's own cache.
        for batch, rows in zip(out.view(self._window)[..., 0], picked_by_batch, strict=True):
            batch[:] = windows[rows]
        if steps > 1:
            self._look_ahead(out, picked_by_batch, steps)
        return float(newest - picked_by_batch.mean())

    def _look_ahead(self, out: FloatArray, picked: npt.NDArray[np.int64], steps: int) -> None:
        """Make one-step transitions ``out``, of the rows ``picked`` [N, B], ones of up to so many steps."""
        size, next_bits = self.spec.row_size, sum(NEXT_BITS.values())
        flags, last = row_flags(out[..., :size]), picked.copy()
        ends = self.rows[:, -2:]
        more = np.zeros(picked.shape, np.int32)
        going_on = (flags & NEXT_BITS["done"]) == 0
        for step in range(1, steps):
            following = (last + 1) % len(self.rows)
            # What follows an episode's or a rollout's last step is no transition.
            going_on &= self._acted[following]
            last[going_on] = following[going_on]
            more += going_on
            reached = ends[last]
            out[..., size - 2] += going_on * np.float32(self.spec.discount**step) * reached[..., -2]
            going_on &= (row_flags(reached) & NEXT_BITS["done"]) == 0
        flags[:] = (flags & ~next_bits) | (row_flags(ends[last]) & next_bits) | (more << STEPS_SHIFT)
        out[..., size:] = self.rows[(last + 1) % len(self.rows), : self.spec.observation_size]
