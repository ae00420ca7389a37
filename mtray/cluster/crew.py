"""The crew: a run's collector actors, placed, kept busy, and replaced when they die.

Runs in the driver. A collector that dies, hangs or fails is killed and another takes its place, with seeds of its
own; what the old one had pushed counts, what it was asked for beyond that is asked of the crew again.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from mtray.cluster.actors.collector import Collector
from mtray.collect.placement import Share
from mtray.config.settings import Config
from mtray.data.messages import Report
from mtray.errors import RunError, UsageError
from mtray.tasks.plan import Task

# Calls under way to one actor: one runs, one waits, so that the actor never waits for the driver.
CALLS = 2


# How long collectors may take to end their simulators' processes when the run is over.
_CLOSE_SECONDS = 10.0


_LOGGER = logging.getLogger("mtray")


@dataclass
class _Worker:
    """A collector actor and what is asked of it."""

    index: int
    source: str
    actor: Any
    rollout_frames: int
    begin: float
    ready: bool = False
    requested: int = 0
    flushed: bool = False
    calls: deque[Any] = field(default_factory=deque)
    heard: float = field(default_factory=time.monotonic)

    def ask(self, call: Any) -> None:
        """Remember a call; the clock of an idle actor starts with it."""
        if not self.calls:
            self.heard = time.monotonic()
        self.calls.append(call)

    @property
    def rollouts(self) -> float:
        """Rollouts asked for in this place, by its lives before as well."""
        return self.begin + self.requested


class Crew:
    """The collectors of one run."""

    def __init__(
        self,
        config: Config,
        tasks: Sequence[Task],
        shares: Sequence[Share],
        replay: Any,
        options: Mapping[str, Any],
        source_frames: Callable[[], Mapping[str, int]],
        begin_frames: int,
    ) -> None:
        """Start the collectors; they begin as soon as each is up.

        Args:
            config: the run's.
            tasks: of the run.
            shares: what each collector steps.
            replay: the replay actor, to which they push.
            options: Ray's, of every collector.
            source_frames: asks the replay what it has stored for each source.
            begin_frames: frames the run begins with.
        """
        self.restarts = 0
        self._config = config
        self._tasks = tuple(tasks)
        self._shares = tuple(shares)
        # Where not all step the same, one that runs ahead would bring its tasks' data only.
        self._together = any(share != shares[0] for share in shares)
        self._replay = replay
        self._options = dict(options)
        self._source_frames = source_frames
        self._begin_frames = begin_frames
        self._gone_frames = 0
        self._run_id = uuid.uuid4().hex[:8]
        self._lives = [0] * config.workers
        self._workers = [self._start(index, 0.0) for index in range(config.workers)]

    def _start(self, index: int, begin: float) -> _Worker:
        life, share = self._lives[index], self._shares[index]
        # Every task of every collector of every life and resumption draws from a stream of its own.
        sequence = np.random.SeedSequence([self._config.seed, index, life, self._begin_frames])
        seeds = [int(seed) for seed in sequence.generate_state(len(self._tasks) + 1)]
        source = f"{self._run_id}/{index}.{life}"
        cls: Any = ray.remote(Collector)
        actor = cls.options(**self._options).remote(source, self._tasks, share, self._config, seeds, self._replay)
        step_frames = sum(share.get(task.name, 0) * task.spec.action_repeat for task in self._tasks)
        worker = _Worker(index, source, actor, step_frames * self._config.collector.rollout_steps, begin)
        worker.ask(actor.ready.remote())
        return worker

    @property
    def asked_frames(self) -> int:
        """Frames the run began with, and all that has been asked for since and is not lost."""
        live = sum(worker.requested * worker.rollout_frames for worker in self._workers)
        return self._begin_frames + self._gone_frames + live

    @property
    def idle(self) -> bool:
        """Nothing is under way, and every push has its receipt. One that is not up yet has nothing to do with it."""
        return all(worker.flushed and not worker.calls for worker in self._workers if worker.ready)

    def waiting(self) -> list[Any]:
        """The call of each collector that ends next."""
        return [worker.calls[0] for worker in self._workers if worker.calls]

    def ask(self, total: int, allowed: float, version: int, weights: list[Any]) -> None:
        """Ask for rollouts until ``total`` frames are reached or every collector has its calls.

        The last rollout may go beyond the total, none goes beyond ``allowed``.
        """
        for calls in range(CALLS):
            for worker in self._workers:
                asked = self.asked_frames
                # One that is not up yet would hold what others could bring.
                if (
                    worker.ready
                    and len(worker.calls) <= calls
                    and asked < total
                    and asked + worker.rollout_frames <= allowed
                    and not (self._together and worker.rollouts > self._fewest() + CALLS)
                ):
                    worker.ask(worker.actor.collect.remote(version, weights))
                    worker.requested += 1
                    worker.flushed = False

    def _fewest(self) -> float:
        return min(worker.rollouts - len(worker.calls) for worker in self._workers)

    def flush(self) -> None:
        """Ask those that have nothing to do to wait for their last receipts."""
        for worker in self._workers:
            if worker.ready and not worker.calls and not worker.flushed:
                worker.ask(worker.actor.flush.remote())
                worker.flushed = True

    def reports(self) -> Iterator[Report]:
        """The reports that have come; collectors found dead or hanging are replaced on the way.

        Raises:
            RunError: one died more often than it may.
            UsageError: one found that its input can't work.
        """
        for worker in list(self._workers):
            try:
                yield from self._reports_of(worker)
            except ActorUnavailableError as error:
                _LOGGER.warning("collector %d does not answer, waiting for it: %s", worker.index, error)
            except (RayTaskError, RayActorError, GetTimeoutError) as error:
                self._replace(worker, error)

    def _reports_of(self, worker: _Worker) -> Iterator[Report]:
        while worker.calls and ray.wait([worker.calls[0]], timeout=0)[0]:
            report = ray.get(worker.calls.popleft())
            worker.heard, worker.ready = time.monotonic(), True
            if isinstance(report, Report):
                yield report
        run = self._config.run
        limit = run.call_timeout_seconds if worker.ready else run.start_timeout_seconds
        if worker.calls and time.monotonic() - worker.heard > limit:
            hint = "" if worker.ready else " since it was asked for; `ray status` tells whether the cluster has room"
            raise GetTimeoutError(f"it has not answered for {limit:g} seconds{hint}")

    def _replace(self, worker: _Worker, error: Exception) -> None:
        if isinstance(error, RayTaskError) and isinstance(error.cause, UsageError):
            raise error.cause from None
        index, allowed = worker.index, self._config.collector.max_restarts
        ray.kill(worker.actor)
        if self._lives[index] >= allowed:
            raise RunError(
                f"collector {index} died {allowed + 1} times (--collector.max-restarts {allowed}), "
                f"the last time with: {error}"
            ) from error
        self._lives[index] += 1
        self.restarts += 1
        _LOGGER.warning("collector %d is replaced (%d of %d times): %s", index, self._lives[index], allowed, error)
        brought = self._source_frames().get(worker.source, 0)
        self._gone_frames += brought
        self._workers[index] = self._start(index, worker.begin + brought / worker.rollout_frames)

    def round(self, get: Callable[[Any, str], Any], version: int, weights: list[Any]) -> Iterator[Report]:
        """Lockstep: every collector acts with these weights, then they push one after the other."""
        acts = [worker.actor.act.remote(version, weights, True) for worker in self._workers]
        yield from (get(act, "collector") for act in acts)
        for worker in self._workers:
            get(worker.actor.push.remote(), "collector")

    def close(self) -> None:
        """Let the collectors end their processes, then end them."""
        closing = [worker.actor.close.remote() for worker in self._workers]
        ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for worker in self._workers:
            ray.kill(worker.actor)
