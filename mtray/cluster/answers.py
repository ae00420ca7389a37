"""What calls brought: kept for figures, checkpoints and processes to come, and told to control as far as it must know.

Runs in the driver; fed by the supervisor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtray.cluster.actors.hello import Hello
from mtray.cluster.actors.learner import LearnerState
from mtray.cluster.control.protocol import (
    Answered,
    Call,
    Collected,
    Counts,
    Event,
    Failed,
    Failure,
    Method,
    Part,
    Restored,
)
from mtray.cluster.events import EventLog
from mtray.cluster.failures import failure_of, lost_node, trace_of
from mtray.cluster.processes import Processes
from mtray.data.messages import Report
from mtray.data.specs import TaskSpec
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.rundir.directory import versions
from mtray.rundir.metrics import Metrics


class Answers:
    """The newest of what parts gave.

    Attributes:
        state: the learner's newest that was kept.
        made: frames and seconds of the run when this state came.
        snapshot: the replay's of a checkpoint.
        collector_states: each collector's newest; None if it has none.
        lost_node: why Ray has given up this node, once it has.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        run_dir: Path,
        metrics: Metrics,
        events: EventLog,
        processes: Processes,
        resume: Checkpoint | None,
    ) -> None:
        """Begin with what is resumed, or with nothing."""
        self.state = LearnerState()
        self.made = metrics.frames, metrics.seconds
        if resume is not None:
            self.state = LearnerState(resume.policy, resume.learner, resume.meta["metrics"]["updates"])
        self.snapshot: dict[str, Any] = {}
        self.collector_states: dict[int, bytes | None] = {}
        self.lost_node: str | None = None
        self._repeats = {spec.name: spec.action_repeat for spec in specs}
        self._run_dir, self._metrics, self._events, self._processes = run_dir, metrics, events, processes
        # In lockstep, of rollouts that were not pushed yet.
        self._reports: dict[int, Report] = {}

    def event(self, call: Call, result: Any) -> Event:
        """Keep what a call brought, and return what control must know of it."""
        weights = self._processes.take_weights(call)
        if isinstance(result, BaseException):
            if call.part is None and isinstance(result, OSError):
                result = OSError(f"checkpoint in {self._run_dir}: {result.strerror or result}")
            self.lost_node = self.lost_node or lost_node(result)
            if self.lost_node is not None:
                # The run ends at the next turn: control is asked nothing more.
                return Answered(-1)
            failure = failure_of(call.id, result)
            return dataclasses.replace(
                failure, text=failure.text + self._events.keep_trace(call.part, trace_of(result))
            )
        if not self._processes.is_newest(call):
            # Control has forgotten it.
            return Answered(call.id)
        match call.method:
            case Method.COLLECT:
                self._metrics.add_rollout(result)
                return Answered(call.id, self._failed(call.part, result))
            case Method.ACT:
                assert call.part is not None
                self._reports[call.part.place] = result
                return Answered(call.id, self._failed(call.part, result))
            case Method.PUSH:
                assert call.part is not None
                # In the order of the pushes: rollouts end in any order.
                self._metrics.add_rollout(self._reports.pop(call.part.place))
                return Answered(call.id)
            case Method.HELLO:
                assert call.part is not None
                self._events.add_process(call.part, result)
                self._processes.add_node(call.part, result)
                text = differences(call.part, result)
                return Answered(call.id) if text is None else Failed(call.id, Failure.INPUT, text)
            case Method.BUILD if isinstance(result, Restored):
                for name, count in self._processes.restored_frames.items():
                    self._metrics.tasks[name].frames = count
                return Answered(call.id, result)
            case _ if weights is not None:
                if call.method is Method.BUILD:
                    self._metrics.updates = result["updates"]
                self._take_figures(result, weights)
                return Answered(call.id, result["updates"])
            case Method.STATE if call.part is not None and call.part.kind == "collector":
                self.collector_states[call.part.place] = result
                return Answered(call.id, result is not None)
            case Method.STATE:
                self._keep_state(result)
                return Answered(call.id, result.updates)
            case Method.COUNT:
                return Answered(call.id, self.count(result))
            case Method.SNAPSHOT:
                counts, self.snapshot = result
                return Answered(call.id, self.count(counts))
            case _:
                return Answered(call.id, result)

    def _failed(self, part: Part | None, report: Report) -> Collected | None:
        if not report.broken and not report.failures:
            return None
        missing = sum(steps * self._repeats[task] for task, steps in report.broken.items())
        texts = [(error.task, f"{error}{self._events.keep_trace(part, error.trace)}") for error in report.failures]
        return Collected(missing, tuple(texts))

    def count(self, counts: Mapping[str, Any]) -> Counts:
        """Take the replay's counts."""
        frames: Mapping[str, int] = counts["frames"]
        for name, count in frames.items():
            self._metrics.tasks[name].frames = max(count, self._metrics.tasks[name].frames)
        return Counts(sum(frames.values()), counts["is_warm"])

    def _keep_state(self, state: LearnerState) -> None:
        # Answers may come out of order.
        if state.updates >= self.state.updates:
            if state.average is not None:
                # A view would keep all of the answer in Ray's store.
                average = dataclasses.replace(state.average, values=state.average.values.copy())
                state = state._replace(average=average)
            self.state, self._processes.learner_state = state, state.whole
            self.made = self._metrics.frames, self._metrics.seconds

    def _take_figures(self, figures: Mapping[str, Any], weights: Any) -> None:
        metrics = self._metrics
        if figures["version"] < metrics.weights_version or figures["updates"] < metrics.updates:
            # Answers may come out of order.
            return
        metrics.updates, metrics.weights_version = figures["updates"], figures["version"]
        metrics.wait_seconds = figures["wait_seconds"]
        for name, values in figures["tasks"].items():
            metrics.tasks[name].learner = values
        self._processes.weights = metrics.weights_version, [weights]


def differences(part: Part, hello: Hello) -> str | None:
    """Return, in one line, which versions of its node are not the driver's; None if all are the same."""
    here, there = versions(), hello.versions
    names = [name for name in here.keys() | there.keys() if here.get(name) != there.get(name)]
    if not names:
        return None
    found = ", ".join(
        f"{name} {there.get(name, 'missing')} (here {here.get(name, 'missing')})" for name in sorted(names)
    )
    return f"{part.name} on {hello.address} has {found}: install the same on every node"
