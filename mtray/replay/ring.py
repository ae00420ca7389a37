"""One task's rows: the newest of them, in one dense array."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mtray.data.rows import NEXT_BITS, STEPS_SHIFT, TRANSITION, holds_transition, row_flags
from mtray.data.specs import FloatArray, TaskSpec
from mtray.errors import SchemaError


def words_of(spec: TaskSpec, capacity: int) -> int:
    """Return the float32 that a ring's memory has."""
    return (capacity + 1) * spec.row_size


class Ring:
    """One task's rows: the newest ``capacity`` of them."""

    def __init__(self, spec: TaskSpec, capacity: int, words: FloatArray | None = None) -> None:
        """Take memory for the rows, or allocate it; the system provides it as they fill.

        Args:
            spec: of the task.
            capacity: rows.
            words: [`words_of` (spec, capacity)] float32.
        """
        self.spec = spec
        if words is None:
            words = np.zeros(words_of(spec, capacity), np.float32)
        # A copy of the first row follows the last, so that every row is followed by its next observation.
        self._memory = words.reshape(capacity + 1, spec.row_size)
        self.rows = self._memory[:capacity]
        # Whether each row holds a transition: beside the rows, because reading their flags would miss the cache.
        self._is_transition = np.zeros(capacity, np.bool_)
        self._window = np.dtype((np.void, 4 * (spec.row_size + spec.observation_size)))
        self.written = 0
        self.transitions = 0
        # Number of the oldest row that was ever here: not 0 if rows were put back.
        self.first = 0

    @property
    def start(self) -> int:
        """Number of the oldest row held; the first row ever written has 0."""
        return max(self.first, self.written - len(self.rows))

    @property
    def is_full(self) -> bool:
        """Whether every row was written."""
        return self.written - self.start >= len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows held."""
        return (self.written - self.start) * self.spec.row_size * 4

    def insert(self, rows: FloatArray, is_transition: npt.NDArray[np.bool_]) -> int:
        """Write rows over the oldest; return the number of transitions among them.

        Args:
            rows: [n, row_size], the last of them without a transition.
            is_transition: [n], which of them hold one.

        Raises:
            SchemaError: more rows than the ring holds.
        """
        capacity, count = len(self.rows), len(rows)
        if count > capacity:
            raise SchemaError(
                f"task {self.spec.name!r}: a push of {count} rows does not fit a ring of {capacity}: "
                "raise --replay.capacity-rows or lower --collector.rollout-steps"
            )
        inserted = int(np.count_nonzero(is_transition))
        begin = self.written % capacity
        first = min(count, capacity - begin)
        overwritten = 0
        for place, part in ((slice(begin, begin + first), slice(first)), (slice(count - first), slice(first, count))):
            overwritten += int(np.count_nonzero(self._is_transition[place]))
            self._is_transition[place] = is_transition[part]
            self.rows[place] = rows[part]
        self._memory[-1] = self._memory[0]
        self.transitions += inserted - overwritten
        self.written += count
        return inserted

    def take_over(self, first: int, written: int, torn: int = 0) -> None:
        """Count the rows that the memory holds already.

        Args:
            first: as the attribute.
            written: rows ever written whole.
            torn: rows after them that may be half written, over the oldest; they are cleared.
        """
        self.first, self.written = first, written
        self.rows[np.arange(written, written + torn) % len(self.rows)] = 0
        self._memory[-1] = self._memory[0]
        # Only rows that are held are looked at: memory that was never written is not provided by being read.
        held = np.arange(self.start, written) % len(self.rows)
        self._is_transition[held] = holds_transition(self.rows[held, -1:])
        self.transitions = int(np.count_nonzero(self._is_transition))

    def read(self, begin: int, end: int) -> tuple[int, FloatArray]:
        """Return a copy of the rows from number ``begin`` to before ``end``, and the number of the first one.

        Rows that were overwritten are left out: the first may be later than ``begin``.
        """
        begin = min(max(begin, self.start), end)
        return begin, self.rows[np.arange(begin, end) % len(self.rows)]

    def write(self, begin: int, rows: FloatArray) -> None:
        """Put back rows that were read, at their places; rows between those held and these are no transitions.

        Args:
            begin: number of the first; not below ``written``.
            rows: [n, row_size]; of more than the ring holds only the newest are kept.
        """
        if not self.written:
            self.first = begin
        elif begin > self.written:
            self._skip_to(begin)
        dropped = max(0, len(rows) - len(self.rows))
        begin, rows = begin + dropped, rows[dropped:]
        # What lay at these places is older than the ring reaches back.
        places = np.arange(begin, begin + len(rows)) % len(self.rows)
        self._is_transition[places] = holds_transition(rows)
        self.rows[places] = rows
        self._memory[-1] = self._memory[0]
        self.written = begin + len(rows)
        self.transitions = int(np.count_nonzero(self._is_transition))

    def _skip_to(self, begin: int) -> None:
        """Clear the places of rows that were lost, from those held to before number ``begin``."""
        capacity = len(self.rows)
        # The newest row may be within a push: its next observation is lost. Its own observation ends the row before.
        newest = (self.written - 1) % capacity
        self._is_transition[newest] = False
        row_flags(self.rows)[newest] &= ~TRANSITION
        places = np.arange(max(self.written, begin - capacity), begin) % capacity
        self._is_transition[places] = False
        self.rows[places] = 0

    def sample(
        self,
        out: FloatArray,
        generator: np.random.Generator,
        steps: int = 1,
        recent_share: float = 0.0,
        recent_rows: int = 0,
    ) -> float:
        """Draw transitions with replacement, each with its next observation: uniformly, or the newest more often.

        Args:
            out: contiguous [N, B, row_size + obs_t] to write: N independent batches, each sorted from the lowest place
                in the ring to the highest.
            generator: draws.
            steps: n of the n-step return; see `ReplayBuffer.sample_rows`.
            recent_share: with which probability each is drawn from the newest rows only.
            recent_rows: how many these are, at least 2.

        Returns:
            The mean number of rows written after those drawn.
        """
        capacity, (batches, size, _) = len(self.rows), out.shape
        # From the oldest to before the newest, which is no transition: a push ends with the observation it reached.
        # Negative places wrap around, as numpy's indices do.
        newest = (self.written - 1) % capacity
        oldest = newest - (self.written - 1 - self.start)
        recent = max(oldest, newest - recent_rows)
        picked = np.empty(0, np.int64)
        while len(picked) < batches * size:
            missing = batches * size - len(picked)
            count = missing + missing // 16 + 16
            low = np.where(generator.random(count) < recent_share, recent, oldest) if recent_share else oldest
            drawn = generator.integers(low, newest, size=count)
            found = drawn[self._is_transition[drawn]]
            if not len(found):
                # The newest may be without any.
                recent = oldest
            picked = np.concatenate([picked, found])
        # Sorted within a batch they are read a fifth faster.
        picked_by_batch = np.sort(picked[: batches * size].reshape(batches, size))
        # A row and its next observation are adjacent: one item of an array whose items overlap, copied whole.
        windows: npt.NDArray[np.void] = np.ndarray(
            capacity, self._window, self._memory, strides=self._memory.strides[:1]
        )
        # Batch by batch, so that numpy's gathered copy stays in the core's cache.
        for batch, rows in zip(out.view(self._window)[..., 0], picked_by_batch, strict=True):
            batch[:] = windows[rows]
        if steps > 1:
            self._look_ahead(out, picked_by_batch, steps)
        return float(newest - picked_by_batch.mean())

    def _look_ahead(self, out: FloatArray, picked: npt.NDArray[np.int64], steps: int) -> None:
        """Turn the one-step transitions ``out`` of the rows ``picked`` [N, B] into ones of up to ``steps`` steps."""
        size, next_bits = self.spec.row_size, sum(NEXT_BITS.values())
        flags, last = row_flags(out[..., :size]), picked.copy()
        ends = self.rows[:, -2:]
        extra_steps = np.zeros(picked.shape, np.int32)
        is_running = (flags & NEXT_BITS["done"]) == 0
        for step in range(1, steps):
            following = (last + 1) % len(self.rows)
            # No transition follows an episode's or a rollout's last step.
            is_running &= self._is_transition[following]
            last[is_running] = following[is_running]
            extra_steps += is_running
            reached = ends[last]
            out[..., size - 2] += is_running * np.float32(self.spec.discount**step) * reached[..., -2]
            is_running &= (row_flags(reached) & NEXT_BITS["done"]) == 0
        flags[:] = (flags & ~next_bits) | (row_flags(ends[last]) & next_bits) | (extra_steps << STEPS_SHIFT)
        out[..., size:] = self.rows[(last + 1) % len(self.rows), : self.spec.observation_size]
