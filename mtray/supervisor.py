"""The supervisor: places the actors, keeps all of them busy, replaces collectors that die, saves.

Runs in the driver. Data goes from collectors to the replay and from there to the learner without passing here; what
passes here are references, counts and weights' references. It never blocks on one actor: it waits for whichever
call ends first, and a call that does not end in time counts as that actor's death.

Frames are the replay's own counts. What was asked of the collectors and has not arrived is bounded by two calls
each and by `Pacing`, so neither collectors nor learner run away from the other.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from mtray import actors, checkpoint
from mtray.checkpoint import Checkpoint
from mtray.config import Config, to_dict
from mtray.errors import MtrayError, RunError, UsageError
from mtray.metrics import Metrics, Sink
from mtray.pacing import Pacing
from mtray.tasks import Task

# Calls under way to one actor: one runs, one waits, so that the actor never waits for the supervisor.
_CALLS = 2
_POLL_SECONDS = 0.1
# How long an actor may take to end its own processes when the run is over.
_CLOSE_SECONDS = 10.0

_LOGGER = logging.getLogger("mtray")


@dataclass
class _Worker:
    """A collector actor and what is asked of it."""

    index: int
    source: str
    actor: Any
    started: float = field(default_factory=time.monotonic)
    ready: bool = False
    requested: int = 0
    calls: deque[Any] = field(default_factory=deque)
    heard: float = field(default_factory=time.monotonic)
    flushed: bool = False


def make_pacing(config: Config, tasks: int) -> Pacing:
    """The run's pacing.

    Raises:
        UsageError: a slack under which both sides would wait for ever.
    """
    rollout = tasks * config.copies * config.collector.rollout_steps
    # What is asked and not yet counted: two calls and a push under way for each collector.
    round_frames = config.workers * rollout * (_CALLS + config.collector.pushes_in_flight)
    settings = config.learner
    slack = settings.slack_steps
    if slack is None:
        slack = max(1000, 2 * round_frames // tasks)
    return Pacing(
        updates_per_step=settings.updates_per_step,
        tasks=tasks,
        warmup_frames=settings.warmup_steps * tasks,
        slack_frames=slack * tasks,
        round_frames=round_frames,
    )


class Supervisor:
    """One run, from placing its actors to its last checkpoint."""

    def __init__(
        self,
        config: Config,
        tasks: Sequence[Task],
        run_dir: Path,
        sinks: Iterable[Sink],
        *,
        resume: Checkpoint | None = None,
        cpus_per_actor: float = 0.0,
    ) -> None:
        """Prepare; nothing is started. Ray must be up when `run` is called.

        Args:
            config: the run's.
            tasks: what to learn.
            run_dir: where checkpoints go.
            sinks: where lines of figures go.
            resume: what to continue from.
            cpus_per_actor: Ray's logical CPUs that each actor asks for.

        Raises:
            UsageError: settings under which the run could not move.
        """
        self.config = config
        self.tasks = tuple(tasks)
        self.specs = tuple(task.spec for task in tasks)
        self.run_dir = run_dir
        self.metrics = Metrics(task.name for task in tasks)
        self.pacing = make_pacing(config, len(tasks))
        self.stop_reason: str | None = None
        self._sinks = list(sinks)
        self._resume = resume
        self._options = {"num_cpus": cpus_per_actor}
        self._rollout_frames = len(tasks) * config.copies * config.collector.rollout_steps
        self._run_id = uuid.uuid4().hex[:8]
        self._workers: list[_Worker] = []
        self._restarts = [0] * config.workers
        self._gone_frames = 0
        self._start_frames = 0
        self._replay: Any = None
        self._learner: Any = None
        self._train_calls: deque[tuple[Any, Any, int]] = deque()
        self._train_heard = 0.0
        self._weights: list[Any] = []
        self._next_line = self._next_checkpoint = 0.0

    def stop(self, reason: str) -> None:
        """End the run at the next opportunity, saving; may be called from a signal handler."""
        self.stop_reason = self.stop_reason or reason

    def run(self) -> str:
        """Run to the end and give the reason why it ended.

        Raises:
            RunError: the run could not go on.
        """
        try:
            self._start()
            if self.config.deterministic:
                self._run_lockstep()
            else:
                self._run_freely()
            self._line()
            self._save()
            return self.stop_reason or "finished"
        finally:
            self._close()

    # Starting

    def _start(self) -> None:
        replay_actor, learner_actor = _remote(actors.Replay), _remote(actors.Learner)
        gpus = {"num_gpus": 1} if self.config.device.startswith("cuda") else {}
        self._replay = replay_actor.options(**self._options).remote(self.specs, self.config)
        self._learner = learner_actor.options(**self._options, **gpus).remote(self.specs, self.config, self._replay)
        self._workers = [self._start_worker(index) for index in range(self.config.workers)]
        seconds = self.config.run.start_timeout_seconds
        self._get(self._replay.ready.remote(), "replay", seconds)
        self._get(self._learner.ready.remote(), "learner", seconds)
        if self._resume is not None:
            self._restore(self._resume)
        self._weights = [self._learner.weights.remote()]
        self.metrics.weights_version = self._get(self._weights[0], "learner").version
        now = time.monotonic()
        self._next_line = now + self.config.run.log_seconds
        self._next_checkpoint = self.metrics.frames + self.config.run.checkpoint_frames
        self._train_heard = now

    def _restore(self, saved: Checkpoint) -> None:
        self.metrics.load_state(saved.meta["metrics"])
        self.metrics.updates = self._get(self._learner.load_state.remote(saved.learner), "learner")
        if saved.replay is not None:
            self._get(self._replay.load.remote(saved.replay, saved.rows), "replay")
        self._start_frames = self.metrics.frames

    def _start_worker(self, index: int) -> _Worker:
        life = self._restarts[index]
        source = f"{self._run_id}/{index}.{life}"
        # Every task of every worker of every life draws from a stream of its own.
        begin = self._resume.frames if self._resume else 0
        sequence = np.random.SeedSequence([self.config.seed, index, life, begin])
        seeds = [int(seed) for seed in sequence.generate_state(len(self.tasks) + 1)]
        actor = _remote(actors.Collector).options(**self._options)
        return _Worker(index, source, actor.remote(source, self.tasks, self.config, seeds, self._replay))

    # The free-running loop

    def _run_freely(self) -> None:
        stats = self._replay.stats.remote()
        stats_heard = next_poll = time.monotonic()
        while not self._finished():
            self._ask_collectors()
            self._ask_learner()
            self._collect_answers(stats)
            now = time.monotonic()
            if _is_here(stats):
                self._count(self._get(stats, "replay"))
                stats_heard, next_poll, stats = now, now + _POLL_SECONDS, None
            elif stats is not None and now - stats_heard > self.config.run.call_timeout_seconds:
                raise RunError(f"the replay has not answered for {now - stats_heard:.0f} seconds")
            if stats is None and now >= next_poll:
                stats, stats_heard = self._replay.stats.remote(), now
            self._tick(now)
        self._count(self._get(self._replay.stats.remote(), "replay"))

    def _finished(self) -> bool:
        if self._train_calls or any(worker.calls or not worker.flushed for worker in self._workers):
            return False
        done = self.metrics.frames >= self.config.total_frames
        trained = self.metrics.updates >= self.pacing.updates_allowed(self.metrics.frames)
        return self.stop_reason is not None or (done and trained)

    def _asked_frames(self) -> int:
        live = sum(worker.requested for worker in self._workers) * self._rollout_frames
        return self._start_frames + self._gone_frames + live

    def _ask_collectors(self) -> None:
        total = 0 if self.stop_reason else self.config.total_frames
        limit = min(total, self.pacing.frames_allowed(self.metrics.updates))
        version = self.metrics.weights_version
        for calls in range(_CALLS):
            for worker in self._workers:
                if len(worker.calls) <= calls and self._asked_frames() < limit:
                    if not worker.calls:
                        worker.heard = time.monotonic()
                    worker.calls.append(worker.actor.collect.remote(version, self._weights))
                    worker.requested += 1
                    worker.flushed = False
        if self._asked_frames() >= total:
            for worker in self._workers:
                if not worker.calls and not worker.flushed:
                    worker.heard, worker.flushed = time.monotonic(), True
                    worker.calls.append(worker.actor.flush.remote())

    def _ask_learner(self) -> None:
        asked = self.metrics.updates + sum(updates for *_, updates in self._train_calls)
        updates = self.pacing.updates_allowed(self.metrics.frames) - asked
        short = any(task.frames < self.config.learner.warmup_steps for task in self.metrics.tasks.values())
        if self.stop_reason is None and updates > 0 and len(self._train_calls) < _CALLS and not short:
            if not self._train_calls:
                self._train_heard = time.monotonic()
            train = self._learner.train.options(num_returns=2)
            figures, weights = train.remote(updates, self.config.learner.slice_seconds)
            self._train_calls.append((figures, weights, updates))

    def _collect_answers(self, stats: Any) -> None:
        waiting = [worker.calls[0] for worker in self._workers if worker.calls]
        waiting += [figures for figures, *_ in list(self._train_calls)[:1]]
        waiting += [stats] if stats is not None else []
        if waiting:
            ray.wait(waiting, timeout=_POLL_SECONDS)
        else:
            time.sleep(_POLL_SECONDS / 10)
        for worker in list(self._workers):
            self._try_worker(worker, lambda worker=worker: self._take_reports(worker))
        self._take_figures()

    def _take_reports(self, worker: _Worker) -> None:
        now = time.monotonic()
        while worker.calls and _is_here(worker.calls[0]):
            report = ray.get(worker.calls.popleft())
            worker.heard, worker.ready = now, True
            if report is not None:
                self.metrics.add_rollout(report.episodes, report.weights_version)
        run = self.config.run
        limit = run.call_timeout_seconds if worker.ready else run.start_timeout_seconds
        if worker.calls and now - worker.heard > limit:
            raise GetTimeoutError(f"collector {worker.index} has not answered for {limit:g} seconds")

    def _try_worker(self, worker: _Worker, action: Callable[[], None]) -> None:
        """Do something with a collector; replace it if that shows that it died or hangs."""
        try:
            action()
        except ActorUnavailableError:
            return
        except RayTaskError as error:
            if isinstance(error.cause, UsageError):
                raise error.cause from None
            self._replace(worker, error)
        except (RayActorError, GetTimeoutError) as error:
            self._replace(worker, error)

    def _replace(self, worker: _Worker, error: BaseException) -> None:
        index = worker.index
        allowed = self.config.collector.max_restarts
        ray.kill(worker.actor)
        if self._restarts[index] >= allowed:
            raise RunError(
                f"collector {index} died {self._restarts[index] + 1} times (--collector.max-restarts {allowed}), "
                f"the last time with: {error}"
            ) from error
        self._restarts[index] += 1
        self.metrics.restarts += 1
        _LOGGER.warning("collector %d is replaced (%d of %d times): %s", index, self._restarts[index], allowed, error)
        # What it had pushed counts, what it had been asked for beyond that is asked of others.
        stats = self._get(self._replay.stats.remote(), "replay")
        self._gone_frames += stats["sources"].get(worker.source, 0)
        self._workers[self._workers.index(worker)] = self._start_worker(index)

    def _take_figures(self) -> None:
        now = time.monotonic()
        while self._train_calls and _is_here(self._train_calls[0][0]):
            figures, weights, _ = self._train_calls.popleft()
            self._take_weights(self._get(figures, "learner"), weights)
            self._train_heard = now
        limit = self.config.run.call_timeout_seconds
        if self._train_calls and now - self._train_heard > limit:
            raise RunError(f"the learner has not answered for {limit:g} seconds")

    def _take_weights(self, figures: dict[str, Any], weights: Any) -> None:
        metrics = self.metrics
        metrics.updates, metrics.weights_version = figures["updates"], figures["version"]
        metrics.wait_seconds = figures["wait_seconds"]
        for name, values in figures["tasks"].items():
            metrics.tasks[name].learner = values
        self._weights = [weights]

    def _count(self, stats: dict[str, Any]) -> None:
        for name, held in stats["frames"].items():
            if self._resume is not None and self._resume.replay is None:
                held += self._resume.meta["metrics"]["tasks"][name]["frames"]
            self.metrics.tasks[name].frames = held

    # The lockstep loop

    def _run_lockstep(self) -> None:
        while self.stop_reason is None and self.metrics.frames < self.config.total_frames:
            version = self.metrics.weights_version
            acts = [worker.actor.act.remote(version, self._weights, True) for worker in self._workers]
            for worker, act in zip(self._workers, acts, strict=True):
                report = self._get(act, f"collector {worker.index}")
                self.metrics.add_rollout(report.episodes, report.weights_version)
            for worker in self._workers:
                self._get(worker.actor.push.remote(), f"collector {worker.index}")
            self._count(self._get(self._replay.stats.remote(), "replay"))
            updates = self.pacing.updates_allowed(self.metrics.frames) - self.metrics.updates
            if updates > 0:
                train = self._learner.train.options(num_returns=2)
                figures, weights = train.remote(updates, float("inf"))
                self._take_weights(self._get(figures, "learner"), weights)
            self._tick(time.monotonic())

    # Watching, saving, ending

    def _tick(self, now: float) -> None:
        if now >= self._next_line:
            self._next_line = now + self.config.run.log_seconds
            self._line()
        if self.metrics.frames >= self._next_checkpoint:
            self._next_checkpoint = self.metrics.frames + self.config.run.checkpoint_frames
            self._save()

    def _line(self) -> None:
        line = self.metrics.line()
        for sink in self._sinks:
            sink.write(line)

    def _save(self) -> None:
        replay, rows = None, {}
        policy, learner = self._get(self._learner.state.remote(), "learner")
        if self.config.replay.save:
            replay, rows = self._get(self._replay.snapshot.remote(), "replay")
            self._count(replay)
        meta = {
            "frames": self.metrics.frames,
            "metrics": self.metrics.state(),
            "config": to_dict(self.config),
            "specs": [spec.to_dict() for spec in self.specs],
        }
        saved = Checkpoint(self.metrics.frames, meta, policy, learner, replay, rows)
        checkpoint.write(self.run_dir, saved, self.config.run.keep_checkpoints)

    def _get(self, reference: Any, who: str, seconds: float | None = None) -> Any:
        """An answer within its deadline; who did not give it is named."""
        limit = seconds or self.config.run.call_timeout_seconds
        deadline = time.monotonic() + limit
        while True:
            try:
                return ray.get(reference, timeout=min(1.0, limit))
            except GetTimeoutError:
                if time.monotonic() > deadline:
                    raise RunError(f"the {who} did not answer within {limit:g} seconds") from None
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, MtrayError):
                    raise cause from None
                raise RunError(f"the {who} failed: {error}") from error
            except RayActorError as error:
                raise RunError(f"the {who} died: {error}") from error

    def _close(self) -> None:
        for sink in self._sinks:
            sink.close()
        closing = [worker.actor.close.remote() for worker in self._workers]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for actor in [*(worker.actor for worker in self._workers), self._learner, self._replay]:
            if actor is not None:
                ray.kill(actor)


def _remote(cls: type[Any]) -> Any:
    return ray.remote(cls)


def _is_here(reference: Any) -> bool:
    return reference is not None and bool(ray.wait([reference], timeout=0)[0])
