"""The supervisor: carries out what control asks for, and reports to it how each call ended.

Runs in the driver. It decides nothing (`mtray.cluster.control` does). Data goes from collectors to the replay and from
there to the learner without passing here; what passes here are references, counts, figures, and checkpoints. It blocks
on no actor: each call's end comes into one inbox, by a callback of Ray's, so a turn takes as long with a thousand
collectors as with one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from mtray.cluster.actors.collector import Collector
from mtray.cluster.actors.learner import Learner
from mtray.cluster.actors.replay import Replay
from mtray.cluster.control.free import Control
from mtray.cluster.control.lockstep import Lockstep
from mtray.cluster.control.protocol import (
    Answered,
    Call,
    Command,
    Counts,
    End,
    Event,
    Failed,
    Kill,
    Method,
    Part,
    Start,
    Stop,
    Tell,
)
from mtray.cluster.failures import failure_of
from mtray.cluster.plan import make_pacing, make_plan, make_shares, pacing_state, resume_pacing, seeds_of
from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.data.messages import Report
from mtray.errors import RunError, UsageError
from mtray.rundir import checkpoint
from mtray.rundir.checkpoint import Checkpoint
from mtray.rundir.metrics import Metrics
from mtray.rundir.sinks import Guarded, JsonLines, Sink
from mtray.tasks.plan import Task

# How often a request to stop is looked for, and how long collectors may take to end their simulators at the end.
_LOOK_SECONDS = 0.2
_CLOSE_SECONDS = 5.0

_LOGGER = logging.getLogger("mtray")


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
            run_dir: where checkpoints and events go.
            sinks: where lines of figures go.
            resume: what to continue from.
            cpus_per_actor: Ray's logical CPUs that each actor asks for.
            asked_to_stop: once it holds a reason, the run saves and ends; a signal handler may put it there.

        Raises:
            UsageError: settings under which the run could not move.
        """
        self.config = config
        self.tasks = tuple(tasks)
        self.specs = tuple(task.spec for task in tasks)
        self.run_dir = run_dir
        self.metrics = Metrics(task.name for task in tasks)
        self.pacing = resume_pacing(make_pacing(config, self.specs), resume)
        self._asked_to_stop = asked_to_stop
        self._sinks = list(sinks)
        events = run_dir / "events.jsonl"
        self._events = Guarded(JsonLines(events), str(events))
        self._options: dict[str, Any] = {"num_cpus": cpus_per_actor}
        self._run_id = uuid.uuid4().hex[:8]
        self._inbox: queue.SimpleQueue[tuple[Call, Any]] = queue.SimpleQueue()
        self._actors: dict[Part, Any] = {}
        self._resume = resume
        self._begin_frames = resume.frames if resume else 0
        if resume is not None:
            self.metrics.load_state(resume.meta["metrics"])
        # Weights under way by their call, and the newest here in a box: a reference on its own would be resolved.
        self._weights_of: dict[int, Any] = {}
        self._weights: list[Any] = []
        self._state: tuple[bytes, bytes, int] = b"", b"", 0
        self._snapshot: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        self._end: End | None = None
        self._has_stopped = False
        self._next_line = 0.0

    def run(self) -> str:
        """Run to the end and return the reason why it ended.

        Raises:
            UsageError: what the user gave can't work, as found on the way.
            RunError: the run could not go on.
        """
        shares = make_shares(self.config, self.tasks)
        plan = make_plan(self.config, self.specs, shares, self._resume)
        kind = Lockstep if self.config.deterministic else Control
        self._shares, self.control = shares, kind(plan, self.pacing, time.monotonic())
        self._next_line = time.monotonic() + self.config.run.log_seconds
        try:
            self._perform(self.control.start())
            while self._end is None:
                self._turn()
            self._line()
        finally:
            self._close()
        end = self._end
        if end.outcome == "done":
            return end.reason
        raise (UsageError if end.outcome == "input" else RunError)(end.reason)

    # Turns.

    def _turn(self) -> None:
        """Wait for the end of a call, or for what is planned next; then do what control says."""
        tick, now = self.control.next_tick(), time.monotonic()
        wake = min(now + _LOOK_SECONDS, self._next_line, now + _LOOK_SECONDS if tick is None else tick)
        with contextlib.suppress(queue.Empty):
            call, result = self._inbox.get(timeout=max(0.0, wake - now))
            self._handle(self._event(call, result))
        if self._asked_to_stop and not self._has_stopped:
            self._has_stopped = True
            self._handle(Stop(self._asked_to_stop[0]))
        now = time.monotonic()
        if tick is not None and now >= tick:
            self._perform(self.control.tick(now))
        if now >= self._next_line:
            self._next_line = now + self.config.run.log_seconds
            self._line()

    def _handle(self, event: Event) -> None:
        self._perform(self.control.handle(event, time.monotonic()))

    def _perform(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Call(part=None):
                    self._inbox.put((command, self._written()))
                case Call():
                    self._ask(command)
                case Start():
                    self._actors[command.part] = self._start(command.part)
                case Kill():
                    actor = self._actors.pop(command.part, None)
                    if actor is not None:
                        ray.kill(actor)
                case Tell():
                    self._tell(command)
                case End():
                    self._end = command

    def _tell(self, told: Tell) -> None:
        self._events.write({"time": round(self.metrics.seconds, 3), "event": told.event, **told.fields})
        if told.is_warning:
            _LOGGER.warning("%s: %s", told.event, ", ".join(str(value) for value in told.fields.values()))

    # Processes.

    def _start(self, part: Part) -> Any:
        def create(cls: type[Any], *arguments: Any, **options: Any) -> Any:
            remote: Any = ray.remote(cls)
            return remote.options(**self._options, **options).remote(*arguments)

        config = self.config
        if part.kind == "replay":
            return create(Replay, self.specs, config)
        replay = self._actors[Part("replay")]
        if part.kind == "learner":
            gpus = {"num_gpus": 1} if config.device.startswith("cuda") else {}
            return create(Learner, self.specs, config, replay, **gpus)
        seeds = seeds_of(config, part, self._begin_frames, len(self.tasks))
        share = self._shares[part.place]
        return create(Collector, self._source(part), self.tasks, share, config, seeds, replay)

    def _source(self, part: Part) -> str:
        return f"{self._run_id}/{part.place}.{part.life}"

    # Calls and their ends.

    def _ask(self, call: Call) -> None:
        assert call.part is not None
        actor = self._actors.get(call.part)
        if actor is None:
            # Killed meanwhile: control has forgotten the call.
            return
        reference = self._submit(actor, call)
        reference.future().add_done_callback(functools.partial(self._ended, call))

    def _ended(self, call: Call, future: Any) -> None:
        """Take a call's end, in a thread of Ray's."""
        error = future.exception()
        self._inbox.put((call, future.result() if error is None else error))

    def _submit(self, actor: Any, call: Call) -> Any:
        version = self.metrics.weights_version
        match call.method:
            case Method.HELLO:
                return actor.hello.remote()
            case Method.BUILD:
                return self._build(actor, call)
            case Method.COLLECT:
                return actor.collect.remote(version, self._weights)
            case Method.ACT:
                return actor.act.remote(version, self._weights, True)
            case Method.PUSH:
                return actor.push.remote()
            case Method.FLUSH:
                return actor.flush.remote()
            case Method.TRAIN | Method.STATUS:
                seconds = float("inf") if self.config.deterministic else self.config.learner.slice_seconds
                return self._with_weights(call, actor.train.options(num_returns=2).remote(call.amount, seconds))
            case Method.STATE:
                return actor.state.remote()
            case Method.COUNT:
                return actor.count.remote()
            case Method.FENCE:
                assert call.of is not None
                return actor.fence.remote(self._source(call.of))
            case Method.SNAPSHOT:
                return actor.snapshot.remote(self.config.replay.save)
            case _:
                raise ValueError(call)

    def _build(self, actor: Any, call: Call) -> Any:
        assert call.part is not None
        saved = self._resume
        if call.part.kind == "learner":
            state = None if saved is None else saved.learner
            return self._with_weights(call, actor.build.options(num_returns=2).remote(state))
        if call.part.kind == "replay" and saved is not None:
            return actor.build.remote(saved.replay, saved.rows)
        return actor.build.remote()

    def _with_weights(self, call: Call, references: Sequence[Any]) -> Any:
        figures, self._weights_of[call.id] = references
        return figures

    def _event(self, call: Call, result: Any) -> Event:
        """Keep what a call brought, and return what control must know of it."""
        weights = self._weights_of.pop(call.id, None)
        if isinstance(result, Failed):
            return result
        if isinstance(result, BaseException):
            return failure_of(call.id, result)
        match call.method:
            case Method.COLLECT | Method.ACT:
                report: Report = result
                self.metrics.add_rollout(report)
                return Answered(call.id)
            case Method.BUILD if weights is not None:
                self._take_figures(result, weights)
                return Answered(call.id)
            case Method.BUILD if call.part == Part("replay") and self._resume is not None:
                # Rows are not kept here for the whole run.
                self._resume.rows = {}
                return Answered(call.id)
            case Method.TRAIN | Method.STATUS:
                self._take_figures(result, weights)
                return Answered(call.id, result["updates"])
            case Method.STATE:
                self._state = result
                return Answered(call.id)
            case Method.COUNT:
                return Answered(call.id, self._count(result))
            case Method.SNAPSHOT:
                counts, *self._snapshot = result
                return Answered(call.id, self._count(counts))
            case _:
                return Answered(call.id, result)

    def _count(self, counts: Mapping[str, Any]) -> Counts:
        frames: Mapping[str, int] = counts["frames"]
        for name, count in frames.items():
            self.metrics.tasks[name].frames = max(count, self.metrics.tasks[name].frames)
        return Counts(sum(frames.values()), frozenset(counts["tasks"]), counts["is_warm"])

    def _take_figures(self, figures: Mapping[str, Any], weights: Any) -> None:
        metrics = self.metrics
        if figures["version"] < metrics.weights_version or figures["updates"] < metrics.updates:
            return
        metrics.updates, metrics.weights_version = figures["updates"], figures["version"]
        metrics.wait_seconds = figures["wait_seconds"]
        for name, values in figures["tasks"].items():
            metrics.tasks[name].learner = values
        self._weights = [weights]

    # Lines and checkpoints.

    def _line(self) -> None:
        self.metrics.restarts = self.control.restarts
        line = self.metrics.line()
        for sink in self._sinks:
            sink.write(line)

    def _written(self) -> Any:
        """Write a checkpoint of the last state and snapshot; return None, or the error."""
        policy, learner, updates = self._state
        replay, rows = self._snapshot
        metrics = {**self.metrics.state(), "updates": updates}
        for name, count in replay["frames"].items():
            metrics["tasks"][name]["frames"] = count
        meta = {
            "metrics": metrics,
            "pacing": pacing_state(self.pacing),
            "config": to_dict(self.config),
            "specs": [spec.to_dict() for spec in self.specs],
        }
        frames = sum(replay["frames"].values())
        try:
            saved = Checkpoint(frames, meta, policy, learner, replay, rows)
            checkpoint.write(self.run_dir, saved, self.config.run.keep_checkpoints)
        except OSError as error:
            return OSError(f"checkpoint in {self.run_dir}: {error.strerror or error}")
        finally:
            self._snapshot = {}, {}
        return None

    def _close(self) -> None:
        for sink in [*self._sinks, self._events]:
            sink.close()
        collectors = [actor for part, actor in self._actors.items() if part.kind == "collector"]
        closing = [actor.close.remote() for actor in collectors]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
