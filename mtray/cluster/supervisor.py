"""The supervisor: carries out what control asks for, and reports to it how each call ended.

Runs in the driver. It decides nothing (`mtray.cluster.control` does). Data goes from collectors to the replay and from
there to the learner without passing here; what passes here are references, counts, figures, and checkpoints. It blocks
on no actor: each call's end comes into one inbox, by a callback of Ray's, so a turn takes as long with a thousand
collectors as with one.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtray.cluster.control.free import Control
from mtray.cluster.control.lockstep import Lockstep
from mtray.cluster.control.protocol import (
    Answered,
    Call,
    Command,
    Counts,
    End,
    Event,
    Kill,
    Method,
    Restored,
    SetAside,
    Start,
    Stop,
    Tell,
)
from mtray.cluster.failures import failure_of
from mtray.cluster.plan import make_pacing, make_plan, make_shares, pacing_state, resume_pacing
from mtray.cluster.processes import Processes
from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.data.messages import Report
from mtray.errors import RunError, UsageError
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.rundir.checkpoints.writer import CheckpointWriter
from mtray.rundir.metrics import Metrics
from mtray.rundir.sinks import Guarded, JsonLines, Sink
from mtray.tasks.plan import Task

# How often a request to stop is looked for.
_LOOK_SECONDS = 0.2

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
        self._pacing = resume_pacing(make_pacing(config, self.specs), resume)
        self._asked_to_stop = asked_to_stop
        self._sinks = list(sinks)
        events = run_dir / "events.jsonl"
        self._events = Guarded(JsonLines(events), str(events))
        self._cpus_per_actor = cpus_per_actor
        self._resume = resume
        if resume is not None:
            self.metrics.load_state(resume.meta["metrics"])
        # The learner's newest state that was kept, and the replay's of a checkpoint.
        self._state: tuple[bytes, bytes, int] = b"", b"", -1
        self._snapshot: dict[str, Any] = {}
        # In lockstep, of rollouts that were not pushed yet.
        self._reports: dict[int, Report] = {}
        # The newest state of each collector; None if it has none.
        self._collector_states: dict[int, bytes | None] = {}
        # Process id and log of the newest process of each part, by the part's name.
        self._processes_of: dict[str, tuple[int, str | None]] = {}
        self._end: End | None = None
        self._has_stopped = False
        self._next_line = 0.0

    def run(self) -> str:
        """Run to the end and return the reason why it ended.

        Raises:
            UsageError: what the user gave can't work, as found on the way.
            RunError: the run could not go on.
        """
        self._shares = shares = make_shares(self.config, self.tasks)
        plan = make_plan(self.config, self.specs, shares, self._resume)
        kind = Lockstep if self.config.deterministic else Control
        self.control = kind(plan, self._pacing, time.monotonic())
        row_bytes = {spec.name: 4 * spec.row_size for spec in self.specs}
        self._writer = CheckpointWriter(self.run_dir, self.config.run.keep_checkpoints, row_bytes, self._resume)
        self.processes = Processes(self.config, self.tasks, shares, self._cpus_per_actor, self._writer)
        self._next_line = time.monotonic() + self.config.run.log_seconds
        if self._resume is not None:
            self._tell(Tell("resume", {"checkpoint": str(self._resume.path), "frames": self._resume.frames}))
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
            self._handle(self._event(*self.processes.inbox.get(timeout=max(0.0, wake - now))))
            # All that has come, before time is looked at: a driver that was suspended has heard of nobody meanwhile.
            for _ in range(self.processes.inbox.qsize()):
                self._handle(self._event(*self.processes.inbox.get_nowait()))
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
                    self.processes.in_background(command, self._writing())
                case Call():
                    self.processes.ask(command)
                case Start():
                    self.processes.start(command.part)
                case Kill():
                    self.processes.kill(command.part)
                case SetAside():
                    self.processes.set_aside(command.task)
                case Tell():
                    self._tell(command)
                case End():
                    self._end = command

    def _tell(self, told: Tell) -> None:
        fields = dict(told.fields)
        if told.event in ("placed", "death"):
            process, log = self._processes_of.get(fields["part"], (None, None))
            fields |= {"process": process} | ({} if log is None else {"log": f"logs/{log}"})
        self._events.write({"time": round(self.metrics.seconds, 3), "event": told.event, **fields})
        if told.is_warning:
            _LOGGER.warning("%s: %s: %s", told.event, told.fields.get("part", "the run"), told.fields.get("cause"))

    # Calls' ends.

    def _event(self, call: Call, result: Any) -> Event:
        """Keep what a call brought, and return what control must know of it."""
        weights = self.processes.take_weights(call)
        if isinstance(result, BaseException):
            if call.part is None and isinstance(result, OSError):
                result = OSError(f"checkpoint in {self.run_dir}: {result.strerror or result}")
            return failure_of(call.id, result)
        if not self.processes.is_newest(call):
            # Control has forgotten it.
            return Answered(call.id)
        match call.method:
            case Method.COLLECT:
                self.metrics.add_rollout(result)
                return Answered(call.id)
            case Method.ACT:
                assert call.part is not None
                self._reports[call.part.place] = result
                return Answered(call.id)
            case Method.PUSH:
                assert call.part is not None
                # In the order of the pushes: rollouts end in any order.
                self.metrics.add_rollout(self._reports.pop(call.part.place))
                return Answered(call.id)
            case Method.HELLO:
                assert call.part is not None
                self._processes_of[call.part.name] = result
                return Answered(call.id)
            case Method.BUILD if isinstance(result, Restored):
                for name, count in self.processes.restored_frames.items():
                    self.metrics.tasks[name].frames = count
                return Answered(call.id, result)
            case _ if weights is not None:
                if call.method is Method.BUILD:
                    self.metrics.updates = result["updates"]
                self._take_figures(result, weights)
                return Answered(call.id, result["updates"])
            case Method.STATE if call.part is not None and call.part.kind == "collector":
                self._collector_states[call.part.place] = result
                return Answered(call.id, result is not None)
            case Method.STATE:
                self._keep_state(result)
                return Answered(call.id, result[2])
            case Method.COUNT:
                return Answered(call.id, self._count(result))
            case Method.SNAPSHOT:
                counts, self._snapshot = result
                return Answered(call.id, self._count(counts))
            case _:
                return Answered(call.id, result)

    def _count(self, counts: Mapping[str, Any]) -> Counts:
        frames: Mapping[str, int] = counts["frames"]
        for name, count in frames.items():
            self.metrics.tasks[name].frames = max(count, self.metrics.tasks[name].frames)
        return Counts(sum(frames.values()), counts["is_warm"])

    def _keep_state(self, state: tuple[bytes, bytes, int]) -> None:
        # Answers may come out of order.
        if state[2] >= self._state[2]:
            self._state, self.processes.learner_state = state, state[1]

    def _take_figures(self, figures: Mapping[str, Any], weights: Any) -> None:
        metrics = self.metrics
        if figures["version"] < metrics.weights_version or figures["updates"] < metrics.updates:
            # Answers may come out of order.
            return
        metrics.updates, metrics.weights_version = figures["updates"], figures["version"]
        metrics.wait_seconds = figures["wait_seconds"]
        for name, values in figures["tasks"].items():
            metrics.tasks[name].learner = values
        self.processes.weights = metrics.weights_version, [weights]

    # Lines and checkpoints.

    def _line(self) -> None:
        metrics, control = self.metrics, self.control
        metrics.restarts = control.restarts
        metrics.frames_lost, metrics.updates_lost = control.frames_lost, control.updates_lost
        line = self.metrics.line()
        for sink in self._sinks:
            sink.write(line)

    def _writing(self) -> Callable[[], Any]:
        """Return what writes a checkpoint of the last state and snapshot."""
        policy, learner, updates = self._state
        replay = self._snapshot
        states = self._collector_states if self.control.has_states else {}
        collectors = [state for _, state in sorted(states.items()) if state is not None]
        metrics = {**self.metrics.state(), "updates": updates}
        for name, count in replay["frames"].items():
            metrics["tasks"][name]["frames"] = count
        meta = {
            "metrics": metrics,
            "pacing": pacing_state(self.control.pacing),
            "collectors": self._shares if collectors else [],
            "is_at_cut": self.control.is_at_cut,
            "config": to_dict(self.config),
            "specs": [spec.to_dict() for spec in self.specs],
        }
        saved = Checkpoint(sum(replay["frames"].values()), meta, policy, learner, replay, collectors=collectors)
        fetch = self.processes.rows_reader() if self.config.replay.save else None
        return lambda: self._writer.write(saved, fetch)

    def _close(self) -> None:
        for sink in [*self._sinks, self._events]:
            sink.close()
        self.processes.close()
