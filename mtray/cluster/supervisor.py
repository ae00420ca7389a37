"""The supervisor: places the actors, keeps all of them busy, watches, saves.

Runs in the driver. Data goes from collectors to the replay and from there to the learner without passing here; what
passes here are references, counts and weights' references. It never blocks on one actor: it waits for whichever
call ends first, and each call has a deadline.

Frames are the replay's own counts. What was asked of the collectors and has not arrived is bounded by two calls
each and by `Pacing`, so neither collectors nor learner run away from the other.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from mtray.cluster.actors.learner import Learner
from mtray.cluster.actors.replay import Replay
from mtray.cluster.crew import CALLS, Crew
from mtray.collect.placement import Share, everywhere, spread, step_seconds
from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.data.specs import TaskSpec
from mtray.errors import MtrayError, RunError, UsageError
from mtray.replay.pacing import Pacing
from mtray.rundir import checkpoint
from mtray.rundir.checkpoint import Checkpoint
from mtray.rundir.metrics import Metrics
from mtray.rundir.sinks import Sink
from mtray.tasks.plan import Task

_POLL_SECONDS = 0.1


def make_pacing(config: Config, specs: Sequence[TaskSpec]) -> Pacing:
    """The run's pacing.

    Raises:
        UsageError: a slack under which both sides would wait for ever.
    """
    settings = config.learner
    step_frames = sum(spec.action_repeat for spec in specs)
    # What is asked and not yet counted: two calls and the pushes under way of each collector.
    calls = CALLS + config.collector.pushes_in_flight
    round_frames = step_frames * config.copies(len(specs)) * config.workers * config.collector.rollout_steps * calls
    if settings.slack_steps is not None:
        slack_frames = settings.slack_steps * step_frames
    else:
        # Where the learner is the slower side, collectors are this far ahead all the time, and what they bring was
        # chosen by weights as old: no more than keeps both sides from waiting.
        update_frames = step_frames / settings.updates_per_step if settings.updates_per_step else 0.0
        slack_frames = math.ceil(1.25 * round_frames + 2 * update_frames)
    return Pacing(
        updates_per_step=settings.updates_per_step,
        step_frames=step_frames,
        warmup_frames=settings.warmup_steps * step_frames,
        slack_frames=slack_frames,
        round_frames=round_frames,
    )


def make_shares(config: Config, tasks: Sequence[Task]) -> list[Share]:
    """What each collector steps.

    Raises:
        UsageError: the rings are too small for what one collector sends of a task.
    """
    names, copies = [task.name for task in tasks], config.copies(len(tasks))
    if config.host != "inline" or len(tasks) <= config.collector.tasks_each or config.workers == 1:
        return everywhere(names, copies, config.workers)
    # Measured costs differ from run to run, and with them who steps what.
    costs = {task.name: 1.0 if config.deterministic else step_seconds(task) for task in tasks}
    shares = spread(costs, copies * config.workers, config.workers)
    most, limit = 2 * max(max(share.values()) for share in shares) * config.collector.rollout_steps, config.replay
    if most > limit.capacity_rows:
        raise UsageError(
            f"--replay.capacity-rows {limit.capacity_rows}: a collector that steps most copies of a task sends up to "
            f"{most} rows at once, so at least that many are needed"
        )
    return shares


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
        asked_to_stop: Sequence[str] = (),
    ) -> None:
        """Prepare; nothing is started. Ray must be up when `run` is called.

        Args:
            config: the run's.
            tasks: what to learn.
            run_dir: where checkpoints go.
            sinks: where lines of figures go.
            resume: what to continue from.
            cpus_per_actor: Ray's logical CPUs that each actor asks for.
            asked_to_stop: once it holds a reason, the run saves and ends at the next opportunity; a signal handler may
                put it there.

        Raises:
            UsageError: settings under which the run could not move.
        """
        self.config = config
        self.tasks = tuple(tasks)
        self.specs = tuple(task.spec for task in tasks)
        self.run_dir = run_dir
        self.metrics = Metrics(task.name for task in tasks)
        self.pacing = make_pacing(config, self.specs)
        self._asked_to_stop = asked_to_stop
        self._sinks = list(sinks)
        self._resume = resume
        self._options: dict[str, Any] = {"num_cpus": cpus_per_actor}
        self._replay: Any = None
        self._learner: Any = None
        self._crew: Crew | None = None
        self._train_calls: deque[tuple[Any, Any, int]] = deque()
        self._train_heard = 0.0
        self._weights: list[Any] = []
        self._next_line = 0.0
        self._next_checkpoint = 0

    @property
    def stop_reason(self) -> str | None:
        """Why the run shall end early; None if it shall not."""
        return self._asked_to_stop[0] if self._asked_to_stop else None

    def run(self) -> str:
        """Run to the end and give the reason why it ended.

        Raises:
            RunError: the run could not go on.
        """
        try:
            crew = self._start()
            if self.config.deterministic:
                self._run_lockstep(crew)
            else:
                self._run_freely(crew)
            self._line()
            self._save()
            return self.stop_reason or "finished"
        finally:
            self._close()

    def _start(self) -> Crew:
        replay_class: Any = ray.remote(Replay)
        learner_class: Any = ray.remote(Learner)
        gpus = {"num_gpus": 1} if self.config.device.startswith("cuda") else {}
        self._replay = replay_class.options(**self._options).remote(self.specs, self.config)
        self._learner = learner_class.options(**self._options, **gpus).remote(self.specs, self.config, self._replay)
        begin = self._resume.frames if self._resume else 0
        shares = make_shares(self.config, self.tasks)
        self._crew = Crew(self.config, self.tasks, shares, self._replay, self._options, self._source_frames, begin)
        seconds = self.config.run.start_timeout_seconds
        self._get(self._replay.ready.remote(), "replay", seconds)
        self._get(self._learner.ready.remote(), "learner", seconds)
        if self._resume is not None:
            self._restore(self._resume)
        self._weights = [self._learner.weights.remote()]
        self.metrics.weights_version = self._get(self._weights[0], "learner").version
        self._next_line = time.monotonic() + self.config.run.log_seconds
        self._next_checkpoint = self.metrics.frames + self.config.run.checkpoint_frames
        return self._crew

    def _restore(self, saved: Checkpoint) -> None:
        self.metrics.load_state(saved.meta["metrics"])
        self.metrics.updates = self._get(self._learner.load_state.remote(saved.learner), "learner")
        if saved.replay is not None:
            self._get(self._replay.load.remote(saved.replay, saved.rows), "replay")

    def _source_frames(self) -> Mapping[str, int]:
        sources: Mapping[str, int] = self._get(self._replay.stats.remote(), "replay")["sources"]
        return sources

    # The free-running loop

    def _run_freely(self, crew: Crew) -> None:
        stats, asked_at, next_poll = None, 0.0, 0.0
        while not self._finished(crew):
            now = time.monotonic()
            if stats is None and now >= next_poll:
                stats, asked_at = self._replay.stats.remote(), now
            self._ask(crew)
            self._wait([*crew.waiting(), *(figures for figures, *_ in list(self._train_calls)[:1])], stats)
            for report in crew.reports():
                self.metrics.add_rollout(report)
            self._take_figures()
            if stats is not None and _is_here(stats):
                self._count(self._get(stats, "replay"))
                stats, next_poll = None, asked_at + _POLL_SECONDS
            elif stats is not None and now - asked_at > self.config.run.call_timeout_seconds:
                raise RunError(f"the replay has not answered for {now - asked_at:.0f} seconds")
            self._tick()
        self._count(self._get(self._replay.stats.remote(), "replay"))

    def _finished(self, crew: Crew) -> bool:
        if self._train_calls or not crew.idle:
            return False
        done = self.metrics.frames >= self.config.total_frames
        trained = self.metrics.updates >= self.pacing.updates_allowed(self.metrics.frames)
        return self.stop_reason is not None or (done and trained)

    def _ask(self, crew: Crew) -> None:
        total = 0 if self.stop_reason else self.config.total_frames
        allowed = self.pacing.frames_allowed(self.metrics.updates)
        crew.ask(total, allowed, self.metrics.weights_version, self._weights)
        if crew.asked_frames >= total:
            crew.flush()
        asked = self.metrics.updates + sum(updates for *_, updates in self._train_calls)
        updates = self.pacing.updates_allowed(self.metrics.frames) - asked
        warmup = self.config.learner.warmup_steps
        short = any(self.metrics.tasks[spec.name].frames < warmup * spec.action_repeat for spec in self.specs)
        if self.stop_reason or short or updates <= 0 or len(self._train_calls) >= CALLS:
            return
        if not self._train_calls:
            self._train_heard = time.monotonic()
        figures, weights = self._train(updates, self.config.learner.slice_seconds)
        self._train_calls.append((figures, weights, updates))

    def _train(self, updates: int, seconds: float) -> tuple[Any, Any]:
        figures, weights = self._learner.train.options(num_returns=2).remote(updates, seconds)
        return figures, weights

    def _wait(self, calls: list[Any], stats: Any) -> None:
        calls = calls if stats is None else [*calls, stats]
        if calls:
            ray.wait(calls, timeout=_POLL_SECONDS)
        else:
            time.sleep(_POLL_SECONDS / 10)

    def _take_figures(self) -> None:
        while self._train_calls and _is_here(self._train_calls[0][0]):
            figures, weights, _ = self._train_calls.popleft()
            self._take_weights(self._get(figures, "learner"), weights)
            self._train_heard = time.monotonic()
        limit = self.config.run.call_timeout_seconds
        if self._train_calls and time.monotonic() - self._train_heard > limit:
            raise RunError(f"the learner has not answered for {limit:g} seconds")

    def _take_weights(self, figures: Mapping[str, Any], weights: Any) -> None:
        metrics = self.metrics
        metrics.updates, metrics.weights_version = figures["updates"], figures["version"]
        metrics.wait_seconds = figures["wait_seconds"]
        for name, values in figures["tasks"].items():
            metrics.tasks[name].learner = values
        self._weights = [weights]

    def _count(self, stats: Mapping[str, Any]) -> None:
        for name, frames in stats["frames"].items():
            if self._resume is not None and self._resume.replay is None:
                frames += self._resume.meta["metrics"]["tasks"][name]["frames"]
            self.metrics.tasks[name].frames = frames

    # The lockstep loop

    def _run_lockstep(self, crew: Crew) -> None:
        while self.stop_reason is None and self.metrics.frames < self.config.total_frames:
            for report in crew.round(self._get, self.metrics.weights_version, self._weights):
                self.metrics.add_rollout(report)
            self._count(self._get(self._replay.stats.remote(), "replay"))
            updates = self.pacing.updates_allowed(self.metrics.frames) - self.metrics.updates
            if updates > 0:
                figures, weights = self._train(updates, float("inf"))
                self._take_weights(self._get(figures, "learner"), weights)
            self._tick()

    # Watching, saving, ending

    def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + self.config.run.log_seconds
            self._line()
        if self.metrics.frames >= self._next_checkpoint:
            self._next_checkpoint = self.metrics.frames + self.config.run.checkpoint_frames
            self._save()

    def _line(self) -> None:
        self.metrics.restarts = self._crew.restarts if self._crew else 0
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
                # In short waits, so that a signal is not kept waiting.
                return ray.get(reference, timeout=min(1.0, limit))
            except GetTimeoutError:
                if time.monotonic() > deadline:
                    raise RunError(f"the {who} did not answer within {limit:g} seconds") from None
            except RayTaskError as error:
                if isinstance(error.cause, MtrayError):
                    raise error.cause from None
                raise RunError(f"the {who} failed: {error}") from error
            except RayActorError as error:
                raise RunError(f"the {who} died: {error}") from error

    def _close(self) -> None:
        for sink in self._sinks:
            sink.close()
        if self._crew is not None:
            self._crew.close()
        for actor in (self._learner, self._replay):
            if actor is not None:
                ray.kill(actor)


def _is_here(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])
