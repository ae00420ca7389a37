"""The shared replay: a dense ring per task.

Enters: pushes, each one task-to-rows mapping under an id. Leaves: rows drawn uniformly from each task's ring, equally
many of every task. Runs in one actor of the cluster (or in a plain test). A push that was sent twice is stored and
counted once. Rows lie as `batches.pack` laid them out, each task's of its own width: an observation that is both a
step's end and the next one's start is stored once.

The actor that holds the rings never imports torch, which would cost it seconds and 200 MB: only `extend` and `sample`,
for use in one process, do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mtray.config.settings import ReplayConfig
from mtray.data.messages import Push, Receipt, Sampled
from mtray.data.rows import (
    TRANSITION,
    holds_transition,
    is_finite,
    row_flags,
    sampled_shape,
)
from mtray.data.specs import FloatArray, TaskSpec, observation_width
from mtray.data.statistics import TaskStatistics
from mtray.errors import RunError, SchemaError, UsageError

if TYPE_CHECKING:
    from tensordict import LazyStackedTensorDict, TensorDictBase

from mtray.replay.ring import Ring

# Receipts kept per pusher. A pusher has a few pushes under way at most; one this late is a mistake, not a retry.
_RECEIPTS = 256


class ReplayBuffer:
    """A ring per task, filled by many collectors, read by one learner."""

    def __init__(self, specs: tuple[TaskSpec, ...], config: ReplayConfig, seed: int = 0) -> None:
        """Reserve a ring per task."""
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

    def insert(self, push: Push) -> Receipt:
        """Store a push, once however often it is sent.

        Raises:
            SchemaError: rows of an unknown task or of another width; nothing of the push is stored then.
            RunError: the push is older than the receipts kept, or a value is not finite; nothing of it is stored.
        """
        receipts = self._receipts.get(push.source, {})
        if push.number in receipts:
            return receipts[push.number]
        if len(receipts) >= _RECEIPTS and push.number < min(receipts):
            raise RunError(f"push {push.number} of {push.source} comes after {_RECEIPTS} later ones: it is not a retry")
        acted = {}
        for task, rows in push.rows.items():
            self._check(task, rows)
            # With the flags, which as floats are finite: without them the rows would not be one contiguous array.
            if not is_finite(rows):
                raise RunError(
                    f"push {push.number} of {push.source}: data of task {task!r} is not finite; nothing of it is stored"
                )
            acted[task] = holds_transition(rows)
            held, given = int(np.count_nonzero(acted[task])), push.statistics.get(task)
            if given is not None and given.count != held:
                raise SchemaError(f"task {task!r}: statistics of {given.count} transitions came with rows of {held}")
        frames = {}
        for task, rows in push.rows.items():
            ring, known = self._rings[task], self._statistics[task]
            known.merge(push.statistics.get(task) or TaskStatistics.of(rows, ring.spec.observation_size))
            known.largest_return = max(known.largest_return, push.largest_returns.get(task, 0.0))
            frames[task] = ring.insert(rows, acted[task]) * ring.spec.action_repeat
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
            raise SchemaError(f"task {task!r}: the last row must hold the observation reached, as batches.pack lays it")
        if len(rows) > len(ring.rows):
            raise SchemaError(
                f"task {task!r}: a push of {len(rows)} rows does not fit a ring of {len(ring.rows)}: "
                "raise --replay.capacity-rows or lower --collector.rollout-steps"
            )

    def extend(self, rollout: TensorDictBase, *, source: str = "local", number: int | None = None) -> Receipt:
        """Pack and insert a lazy stack over any subset of tasks, in any order.

        Raises:
            SchemaError: the data does not fit its task's schema.
        """
        from mtray.data.pack import pack
        from mtray.data.schema import by_task

        known = {spec.name: spec for spec in self.specs}
        rows = {task: pack(data, known[task], self.width) for task, data in by_task(rollout, list(known)).items()}
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
            rows_per_task: of each batch, the same of every task or each task's own number.
            batches: how many.
            tasks: which, in which order; by default all.
            out: where the rows shall be written; by default new arrays.
            steps: of each return: a row's reward becomes the discounted sum of that many rewards, or of those until the
                episode or the rollout ends, and its next observation and next flags the last one's. How many more than
                one there are, its flags word tells from bit `rows.STEPS_SHIFT` on.

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
        """One batch as a lazy stack over tasks, each element a dense [B] of that task."""
        from mtray.data.batch import unpack_batches

        batch = unpack_batches(self.sample_rows(rows_per_task, 1, tasks).rows, self.specs)[0]
        return batch.to_stack({spec.name: spec for spec in self.specs})

    def stats(self) -> dict[str, dict[str, int]]:
        """Task to frames inserted ever, transitions and bytes held now."""
        return {
            task: {"frames": self._frames[task], "transitions": ring.transitions, "bytes": ring.nbytes}
            for task, ring in self._rings.items()
        }

    def frames(self) -> dict[str, int]:
        """Task to frames stored, ever."""
        return dict(self._frames)

    def source_frames(self) -> dict[str, int]:
        """Source to frames of all tasks stored for it, ever."""
        return dict(self._source_frames)

    def state(self) -> dict[str, Any]:
        """All but the rows, as plain JSON values."""
        return {
            "frames": dict(self._frames),
            "written": {task: ring.written for task, ring in self._rings.items()},
            "statistics": {
                task: [
                    known.count,
                    known.mean.tolist(),
                    known.square.tolist(),
                    known.largest_reward,
                    known.largest_return,
                ]
                for task, known in self._statistics.items()
            },
            "receipts": {
                source: [[receipt.number, dict(receipt.frames)] for receipt in receipts.values()]
                for source, receipts in self._receipts.items()
            },
            "generator": self._generator.bit_generator.state,
        }

    def rows(self, task: str) -> FloatArray:
        """A task's rows held, oldest first: a copy."""
        ring = self._rings[task]
        return ring.rows[np.arange(ring.start, ring.written) % len(ring.rows)]

    def load(self, state: Mapping[str, Any], rows: Mapping[str, FloatArray]) -> None:
        """Continue from what `state` and `rows` gave: the same rows at the same places, counts, ids and draws.

        Raises:
            SchemaError: rows of another task or width.
        """
        for task, held in rows.items():
            if not len(held):
                continue
            self._check(task, held)
            ring, written = self._rings[task], state["written"][task]
            # With another capacity the rows can't lie where they did; they are then laid from the start.
            same = min(written, len(ring.rows)) == len(held)
            ring.written = written - len(held) if same else 0
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
