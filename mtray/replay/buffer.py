"""The shared replay: a dense ring per task.

Enters: pushes, each a mapping of tasks to rows under an id. Leaves: rows drawn uniformly from each task's ring, equally
many of every task. Runs in one actor of the cluster (or in a plain test). A push that is sent twice is stored and
counted once. Rows are laid out by `mtray.data.rollout.pack`, each task's of its own width.

`extend` and `sample` give and take TensorDicts, for use within one process. Only they import torch: the actor, which
needs neither, saves the seconds and the 200 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mtray.config.settings import ReplayConfig
from mtray.data.messages import Push, Receipt, Sampled
from mtray.data.rows import TRANSITION, holds_transition, is_finite, row_flags, sampled_shape
from mtray.data.specs import FloatArray, TaskSpec, observation_width
from mtray.data.statistics import TaskStatistics
from mtray.errors import RunError, SchemaError, TaskError, UsageError
from mtray.replay.ring import Ring

if TYPE_CHECKING:
    from tensordict import LazyStackedTensorDict, TensorDictBase

# Receipts kept per source. A source has a few pushes in flight at most; an older push is a mistake, not a retry.
_RECEIPTS = 256


class ReplayBuffer:
    """A ring per task, filled by many collectors, read by one learner."""

    def __init__(self, specs: tuple[TaskSpec, ...], config: ReplayConfig, seed: int = 0) -> None:
        """Allocate a ring per task."""
        self.specs = specs
        self.width = observation_width(specs)
        self._rings = {spec.name: Ring(spec, config.capacity_rows) for spec in specs}
        self._statistics = {
            spec.name: TaskStatistics(0, np.zeros(spec.observation_size), np.zeros(spec.observation_size))
            for spec in specs
        }
        self._receipts: dict[str, dict[int, Receipt]] = {}
        self._generator = np.random.default_rng(np.random.SeedSequence([seed, 0x5EED]))
        self._frames = dict.fromkeys(self._rings, 0)
        self._source_frames: dict[str, int] = {}
        # Sources whose process is gone: what comes of them late is not stored, since it was asked for again.
        self._fenced: set[str] = set()

    def insert(self, push: Push) -> Receipt:
        """Store a push; if it is stored already, return the same receipt again.

        Raises:
            SchemaError: rows of an unknown task or of another width; nothing of the push is stored then.
            RunError: the push is older than the receipts kept, or its source was fenced; nothing of it is stored.
            TaskError: a value is not finite; nothing of the push is stored.
        """
        if push.source in self._fenced:
            raise RunError(f"push {push.number} of {push.source} is refused: its process was replaced")
        receipts = self._receipts.get(push.source, {})
        if push.number in receipts:
            return receipts[push.number]
        if len(receipts) >= _RECEIPTS and push.number < min(receipts):
            raise RunError(f"push {push.number} of {push.source} comes after {_RECEIPTS} later ones: it is not a retry")
        is_transition = {}
        for task, rows in push.rows.items():
            self._check(task, rows)
            # With the flags, which as floats are finite: without them the rows would not be one contiguous array.
            if not is_finite(rows):
                raise TaskError(
                    f"task {task!r}: its data is not finite; nothing of push {push.number} of {push.source} is stored",
                    task,
                )
            is_transition[task] = holds_transition(rows)
            count, statistics = int(np.count_nonzero(is_transition[task])), push.statistics.get(task)
            if statistics is not None and statistics.count != count:
                raise SchemaError(
                    f"task {task!r}: statistics of {statistics.count} transitions came with rows of {count}"
                )
        frames = {}
        for task, rows in push.rows.items():
            ring, total = self._rings[task], self._statistics[task]
            total.merge(push.statistics.get(task) or TaskStatistics.of(rows, ring.spec.observation_size))
            total.largest_return = max(total.largest_return, push.largest_returns.get(task, 0.0))
            inserted = ring.insert(rows, is_transition[task])
            frames[task] = inserted * ring.spec.action_repeat
            self._frames[task] += frames[task]
        self._source_frames[push.source] = self._source_frames.get(push.source, 0) + sum(frames.values())
        receipt = Receipt(push.source, push.number, frames)
        kept = self._receipts.setdefault(push.source, {})
        kept[push.number] = receipt
        if len(kept) > _RECEIPTS:
            del kept[min(kept)]
        return receipt

    def _check(self, task: str, rows: FloatArray) -> None:
        ring = self._rings.get(task)
        if ring is None:
            raise SchemaError(f"push of task {task!r}: this replay holds {', '.join(self._rings)}")
        spec = ring.spec
        if rows.ndim != 2 or rows.shape[1] != spec.row_size or rows.dtype != np.float32:
            raise SchemaError(
                f"task {task!r}: rows of shape {rows.shape} {rows.dtype}, "
                f"the schema says (any, {spec.row_size}) float32: {spec.observation_size} observation, "
                f"{spec.action_size} action, reward, flags"
            )
        if not len(rows) or row_flags(rows)[-1] & TRANSITION:
            raise SchemaError(
                f"task {task!r}: the last row must hold the observation reached, as mtray.data.rollout.pack lays it"
            )
        if len(rows) > len(ring.rows):
            raise SchemaError(
                f"task {task!r}: a push of {len(rows)} rows does not fit a ring of {len(ring.rows)}: "
                "raise --replay.capacity-rows or lower --collector.rollout-steps"
            )

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
            number = max(self._receipts.get(source, {}), default=-1) + 1
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
            out: task to array [N, rows_per_task, row_size + obs_t] to write; by default new arrays.
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
        ages = {task: self._rings[task].sample(out[task], self._generator, steps) for task in tasks}
        return Sampled(out, self._statistics, ages)

    def sample(self, rows_per_task: int, tasks: tuple[str, ...] | None = None) -> LazyStackedTensorDict:
        """Draw one batch as a lazy stack over tasks, each element a dense [B] of that task."""
        from mtray.data.batch import unpack_batches

        batch = unpack_batches(self.sample_rows(rows_per_task, 1, tasks).rows, self.specs)[0]
        return batch.to_stack({spec.name: spec for spec in self.specs})

    def stats(self) -> dict[str, dict[str, int]]:
        """Return, by task, the frames ever inserted and the transitions and bytes held now."""
        return {
            task: {"frames": self._frames[task], "transitions": ring.transitions, "bytes": ring.nbytes}
            for task, ring in self._rings.items()
        }

    def frames(self) -> dict[str, int]:
        """Return the frames ever inserted, by task."""
        return dict(self._frames)

    def holds(self, transitions: int) -> bool:
        """Return whether every task holds so many transitions, or as many as its ring can."""
        return all(ring.transitions >= transitions or ring.is_full for ring in self._rings.values())

    def fence(self, source: str) -> int:
        """Refuse further pushes of a source; return the frames of all tasks that were stored for it."""
        self._fenced.add(source)
        self._receipts.pop(source, None)
        return self._source_frames.get(source, 0)

    def source_frames(self) -> dict[str, int]:
        """Return the frames of all tasks ever inserted, by source."""
        return dict(self._source_frames)

    def state(self) -> dict[str, Any]:
        """Return everything but the rows, as plain JSON values."""
        return {
            "frames": dict(self._frames),
            "written": {task: ring.written for task, ring in self._rings.items()},
            "statistics": {
                task: [
                    total.count,
                    total.mean.tolist(),
                    total.square.tolist(),
                    total.largest_reward,
                    total.largest_return,
                ]
                for task, total in self._statistics.items()
            },
            "receipts": {
                source: [[receipt.number, dict(receipt.frames)] for receipt in receipts.values()]
                for source, receipts in self._receipts.items()
            },
            "generator": self._generator.bit_generator.state,
        }

    def rows(self, task: str) -> FloatArray:
        """Return a copy of a task's rows, oldest first."""
        ring = self._rings[task]
        return ring.rows[np.arange(ring.start, ring.written) % len(ring.rows)]

    def load(self, state: Mapping[str, Any], rows: Mapping[str, FloatArray]) -> None:
        """Restore what `state` and `rows` returned: rows at the same places, counts, ids and draws.

        A ring that is smaller than the saved one keeps the newest rows.

        Raises:
            SchemaError: rows of another task or width.
        """
        for task, held in rows.items():
            ring = self._rings.get(task)
            # A ring that is smaller now keeps the newest.
            held = held if ring is None else held[-len(ring.rows) :]
            if not len(held):
                continue
            self._check(task, held)
            ring, written = self._rings[task], state["written"][task]
            # With another capacity the rows can't have their old places; they then begin at the ring's start.
            is_same_place = min(written, len(ring.rows)) == len(held)
            ring.written = written - len(held) if is_same_place else 0
            ring.insert(held, holds_transition(held))
        self._frames.update(state["frames"])
        for task, (count, mean, square, largest_reward, largest_return) in state["statistics"].items():
            self._statistics[task] = TaskStatistics(
                count, np.array(mean), np.array(square), largest_reward, largest_return
            )
        self._receipts = {
            source: {number: Receipt(source, number, frames) for number, frames in receipts}
            for source, receipts in state["receipts"].items()
        }
        self._generator.bit_generator.state = state["generator"]
