"""The learner as a Ray actor."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray

from mtray.cluster.exchange import Draws
from mtray.config.settings import Config
from mtray.data.specs import TaskSpec
from mtray.errors import NotFiniteError, RunError
from mtray.learn.threads import Threads, prepare_updates
from mtray.tasks.processes import usable_cores

if TYPE_CHECKING:
    from mtray.data.batch import Batch
    from mtray.policy.weights import Weights


class Learner:
    """The learner as an actor: see `mtray.learn.trainer.Trainer`."""

    def __init__(self, specs: tuple[TaskSpec, ...], config: Config, source: Any) -> None:
        """Build networks and optimisers.

        Args:
            specs: of all tasks.
            config: the run's.
            source: the replay.
        """
        import torch

        from mtray.data.batch import unpack
        from mtray.learn.trainer import Trainer
        from mtray.rundir import checkpoint

        prepare_updates()
        # How many threads there are decides how sums are rounded. More than two were not measured.
        counts = [1] if config.deterministic or config.device != "cpu" else range(1, min(2, usable_cores()) + 1)
        self._threads = Threads([config.learner.threads] if config.learner.threads else counts, torch.set_num_threads)
        self._checkpoint, self._unpack = checkpoint, unpack
        self._specs, self._source = specs, source
        self._deterministic = config.deterministic
        self._learner = Trainer(specs, config.network, config.learner, device=config.device, seed=config.seed)
        settings = config.learner
        rows_per_task = settings.rows_of([spec.name for spec in specs])
        self._draws = Draws(
            source, specs, rows_per_task, settings.batches_per_call, settings.calls_ahead, settings.n_step
        )
        # Each as it was drawn, and where the learner computes.
        self._batches: collections.deque[tuple[Batch, Batch]] = collections.deque()
        # Updates made before, and the batch: of all updates that an error may still tell of.
        self._used: collections.deque[tuple[int, Batch]] = collections.deque(maxlen=self._learner.algorithm.look_every)
        self._wait_seconds = 0.0
        self._ages: Mapping[str, float] = {}

    def ready(self) -> int:
        """This actor's process id."""
        return os.getpid()

    def train(self, updates: int, seconds: float) -> tuple[dict[str, Any], Weights]:
        """Make updates, at most so many and about so long; give figures and new weights, as two return values."""
        deadline = time.monotonic() + seconds
        made = 0
        try:
            while made < updates and (made == 0 or time.monotonic() < deadline):
                batch, near = self._next()
                self._used.append((self._learner.updates, batch))
                started = time.perf_counter()
                self._learner.update(near)
                self._threads.spent(time.perf_counter() - started)
                made += 1
            weights = self._learner.weights()
        except NotFiniteError as error:
            raise RunError(f"{error}; {self._origin(error)}") from None
        if self._deterministic:
            # Draws that are under way are made before the next push, whatever the scheduler does.
            self._draws.settle()
        figures = {
            "updates": self._learner.updates,
            "made": made,
            "version": weights.version,
            "wait_seconds": self._wait_seconds,
            "tasks": {
                task: {**values, "data_age": self._ages[task]} for task, values in self._learner.metrics().items()
            },
        }
        return figures, weights

    def _origin(self, error: NotFiniteError) -> str:
        """Which pushes the rows of an update that failed came with."""
        batch = dict(self._used)[error.update]
        parts = []
        for spec in self._specs:
            if spec.name in error.tasks:
                found = ray.get(self._source.pushes_of.remote(spec.name, batch.rows(spec.name, spec)))
                pushes = [f"{source} {', '.join(map(str, numbers))}" for source, numbers in found.items()]
                parts.append(f"{spec.name}: {'; '.join(pushes) or 'loaded with the checkpoint'}")
        return f"its batch's rows came with these pushes: {' | '.join(parts)}"

    def _next(self) -> tuple[Batch, Batch]:
        if not self._batches:
            started = time.monotonic()
            sampled = self._draws.next()
            self._wait_seconds += time.monotonic() - started
            self._ages = sampled.ages
            # A GPU goes on with earlier updates while these are unpacked; statistics are taken over once it has ended.
            batches = self._unpack(sampled.rows, self._specs)
            near = batches.to(self._learner.device)
            self._learner.set_statistics(sampled.statistics)
            self._batches.extend(zip(batches.unbind(), near.unbind(), strict=True))
        return self._batches.popleft()

    def weights(self) -> Weights:
        """A snapshot under a new version."""
        return self._learner.weights()

    def state(self) -> tuple[bytes, bytes]:
        """The averaged policy's state and the whole learner's, as bytes."""
        state = self._learner.state_dict()
        to_bytes = self._checkpoint.to_bytes
        return to_bytes(state["average"]), to_bytes(state)

    def load_state(self, data: bytes) -> int:
        """Continue from the learner's state; give the updates made."""
        self._learner.load_state_dict(self._checkpoint.from_bytes(data))
        return self._learner.updates
