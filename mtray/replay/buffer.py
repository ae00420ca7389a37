"""The shared replay: a dense ring per task.

Enters: pushes, each a mapping of tasks to rows under an id. Leaves: rows drawn from each task's ring, equally many of
every task. Runs in one actor of the cluster (or in a plain test). A push that is sent twice is stored and
counted once. Rows are laid out by `mtray.data.rollout.pack`, each task's of its own width.

`extend` and `sample` give and take TensorDicts, for use within one process. Only they import torch: the actor, which
needs neither, saves the seconds and the 200 MB.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mtray.config.settings import ReplayConfig
from mtray.data.messages import Push, Receipt, Sampled
from mtray.data.rows import sampled_shape
from mtray.data.specs import FloatArray, TaskSpec, observation_width
from mtray.errors import UsageError
from mtray.replay.account import Account, rows_of
from mtray.replay.checks import check_push, check_rows
from mtray.replay.memory import RingMemory, end_process, process_identity
from mtray.replay.ring import Ring

if TYPE_CHECKING:
    from tensordict import LazyStackedTensorDict, TensorDictBase


class ReplayBuffer:
    """A ring per task, filled by many collectors, read by one learner."""

    def __init__(
        self, specs: tuple[TaskSpec, ...], config: ReplayConfig, seed: int = 0, memory: RingMemory | None = None
    ) -> None:
        """Allocate a ring per task, or lay it into memory that outlives this process.

        With such memory `begin_journal` or `take_over` must be called before the first push.

        Raises:
            ValueError: the memory is that of other rings.
        """
        self.specs = specs
        self.width = observation_width(specs)
        self._memory, self._seed = memory, seed
        self._rings = {
            spec.name: Ring(spec, config.capacity_rows, None if memory is None else memory.words(spec.name))
            for spec in specs
        }
        self._account = Account(specs, config.capacity_rows)
        self._recent = config.recent_share or 0.0, config.recent_rows
        self._generator = self._new_generator()

    def _new_generator(self, *entropy: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self._seed, 0x5EED, *entropy]))

    def insert(self, push: Push) -> Receipt:
        """Store a push; if it is stored already, return the same receipt again.

        Raises:
            SchemaError: rows of an unknown task or of another width; nothing of the push is stored then.
            RunError: the push is older than the receipts kept, or its source was fenced; nothing of it is stored.
            TaskError: a value is not finite; nothing of the push is stored.
        """
        stored = self._account.find(push.source, push.number)
        if stored is not None:
            return stored
        is_transition = check_push(push, self._rings)
        frames = {
            task: int(np.count_nonzero(found)) * self._rings[task].spec.action_repeat
            for task, found in is_transition.items()
        }
        receipt = Receipt(push.source, push.number, frames)
        self._account.merge(push)
        journal = None if self._memory is None else self._memory.journal
        if journal is not None:
            journal.add(self._account.record(receipt, {task: len(rows) for task, rows in push.rows.items()}))
        for task, rows in push.rows.items():
            self._rings[task].insert(rows, is_transition[task])
        self._account.add(receipt)
        if journal is not None:
            journal.done()
            if journal.is_long:
                self.begin_journal()
        return receipt

    def extend(self, rollout: TensorDictBase, *, source: str = "local", number: int | None = None) -> Receipt:
        """Check, pack and insert a lazy stack over any subset of tasks, in any order.

        Raises:
            SchemaError: the data does not fit its task's schema.
        """
        from mtray.data.rollout import pack
        from mtray.data.schema import by_task
        from mtray.data.tensordicts import to_rollout

        spec_of = {spec.name: spec for spec in self.specs}
        rows = {
            task: pack(to_rollout(data, spec_of[task], self.width))
            for task, data in by_task(rollout, list(spec_of)).items()
        }
        if number is None:
            number = self._account.next_number(source)
        return self.insert(Push(source=source, number=number, rows=rows))

    def sample_rows(
        self,
        rows_per_task: int | Mapping[str, int],
        batches: int = 1,
        tasks: tuple[str, ...] | None = None,
        out: Mapping[str, FloatArray] | None = None,
        steps: int = 1,
    ) -> Sampled:
        """Draw batches.

        Args:
            rows_per_task: in each batch, the same for every task or by task.
            batches: N.
            tasks: which, in this order; by default all.
            out: task to array [N, rows_per_task, row_size + obs_t] to write, of these tasks at least; by default new
                arrays.
            steps: n of the n-step return: a row's reward becomes the discounted sum of n rewards, or of fewer if the
                episode or the rollout ends before, and its next observation and next flags become those of the last.
                Its flags word holds the number of rewards minus one from bit `rows.STEPS_SHIFT` on.

        Raises:
            UsageError: a task is unknown or has no data yet.
        """
        tasks = tuple(self._rings) if tasks is None else tasks
        for task in tasks:
            ring = self._rings.get(task)
            if ring is None or not ring.transitions:
                held = {name: ring.transitions for name, ring in self._rings.items()}
                raise UsageError(f"no transition of task {task!r} to sample: the replay holds {held}")
        if out is None:
            counts = dict.fromkeys(tasks, rows_per_task) if isinstance(rows_per_task, int) else rows_per_task
            out = {
                task: np.empty(sampled_shape(self._rings[task].spec, counts[task], batches), np.float32)
                for task in tasks
            }
        elif out.keys() != set(tasks):
            out = {task: out[task] for task in tasks}
        ages = {task: self._rings[task].sample(out[task], self._generator, steps, *self._recent) for task in tasks}
        return Sampled(out, self._account.statistics, ages)

    def sample(self, rows_per_task: int, tasks: tuple[str, ...] | None = None) -> LazyStackedTensorDict:
        """Draw one batch as a lazy stack over tasks, each element a dense [B] of that task."""
        from mtray.data.batch import unpack_batches

        batch = unpack_batches(self.sample_rows(rows_per_task, 1, tasks).rows, self.specs)[0]
        return batch.to_stack({spec.name: spec for spec in self.specs})

    def stats(self) -> dict[str, dict[str, int]]:
        """Return, by task, the frames ever inserted and the transitions and bytes held now."""
        return {
            task: {"frames": self._account.frames[task], "transitions": ring.transitions, "bytes": ring.nbytes}
            for task, ring in self._rings.items()
        }

    def frames(self) -> dict[str, int]:
        """Return the frames ever inserted, by task."""
        return dict(self._account.frames)

    def holds(self, transitions: int, aside: Collection[str] = ()) -> bool:
        """Return whether every task has this many transitions, or as many as its ring can hold.

        Args:
            transitions: per task.
            aside: tasks that may hold fewer, or none.
        """
        rings = (ring for task, ring in self._rings.items() if task not in aside)
        return all(ring.transitions >= transitions or ring.is_full for ring in rings)

    def holds_any(self, task: str) -> bool:
        """Return whether a task has a transition."""
        return self._rings[task].transitions > 0

    def fence(self, source: str) -> int:
        """Refuse further pushes of a source; return the frames of all tasks that were stored for it."""
        return self._account.fence(source)

    def source_frames(self) -> dict[str, int]:
        """Return the frames of all tasks ever inserted, by source."""
        return dict(self._account.source_frames)

    def state(self) -> dict[str, Any]:
        """Return everything but the rows, as plain JSON values."""
        return {
            **self._account.state(),
            "written": {task: ring.written for task, ring in self._rings.items()},
            "start": {task: ring.start for task, ring in self._rings.items()},
            "generator": self._generator.bit_generator.state,
        }

    def held(self, task: str) -> tuple[int, int]:
        """Return the numbers of the oldest row held and of the next to be written; the first ever written has 0."""
        ring = self._rings[task]
        return ring.start, ring.written

    def read_rows(self, task: str, begin: int, end: int) -> tuple[int, FloatArray]:
        """Return a copy of a task's rows from number ``begin`` to before ``end``, and the number of the first.

        Rows that were overwritten are left out: the first may be later than ``begin``.
        """
        return self._rings[task].read(begin, end)

    def rows(self, task: str) -> FloatArray:
        """Return a copy of a task's rows, oldest first."""
        return self.read_rows(task, *self.held(task))[1]

    def write_rows(self, task: str, begin: int, rows: FloatArray) -> None:
        """Put back rows that `read_rows` returned, older ones first; `load` is called after.

        A ring that is smaller than the saved one keeps the newest rows.

        Raises:
            SchemaError: rows of another task or width.
        """
        check_rows(task, rows, self._rings).write(begin, rows)

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the rest of what `state` returned: counts, ids and draws."""
        self._account.load(state)
        self._generator.bit_generator.state = state["generator"]

    # Memory that outlives this process.

    def begin_journal(self) -> None:
        """Write the whole state into the memory's journal; who takes the memory over begins from it."""
        assert self._memory is not None
        self._memory.journal.begin(json.dumps({**self.state(), "process": process_identity()}).encode())

    def take_over(self) -> None:
        """Go on from what another process left in the memory: every push that has a receipt.

        A push that it was storing as it ended is not stored, and the oldest rows, which it may have overwritten, are
        lost. Draws are new ones: what that process drew is not known.

        Raises:
            RunError: that process left nothing, or it is still there and does not end when killed.
        """
        assert self._memory is not None
        journal = self._memory.journal
        end_process(json.loads(journal.read()[0])["process"])
        text, records = journal.read()
        state = json.loads(text)
        self.load(state)
        written, torn = state["written"], dict.fromkeys(self._rings, 0)
        for record, is_done in records:
            if not is_done:
                # Only the last can be.
                torn |= rows_of(record)
                break
            self._account.apply(record)
            for task, count in rows_of(record).items():
                written[task] += count
        for task, ring in self._rings.items():
            ring.take_over(state["start"][task], written[task], torn[task])
        self._generator = self._new_generator(*process_identity())
        self.begin_journal()
