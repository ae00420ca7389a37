"""The supervisor: carries out what control asks for, and reports to it how each call ended.

Runs in the driver. It decides nothing (`mtray.cluster.control` does). Data goes from collectors to the replay and from
there to the learner without passing here; what passes here are references, counts, figures, and checkpoints. It blocks
on no actor: each call's end comes into one inbox, by a callback of Ray's, so a turn takes as long with a thousand
collectors as with one.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mtray.cluster.actors.cores import LearnersCore
from mtray.cluster.answers import Answers
from mtray.cluster.control.free import Control
from mtray.cluster.control.lockstep import Lockstep
from mtray.cluster.control.protocol import (
    Call,
    Command,
    End,
    Event,
    Kill,
    SetAside,
    Start,
    Stop,
    Tell,
)
from mtray.cluster.evaluations import Evaluations
from mtray.cluster.events import EventLog
from mtray.cluster.failures import one_line
from mtray.cluster.plan import Shares, make_pacing, make_plan, pacing_state, resume_pacing
from mtray.cluster.processes import Processes
from mtray.cluster.session.clock import DriverClock
from mtray.cluster.session.nodes import Placement
from mtray.cluster.session.watch import Watch
from mtray.config.plain import to_dict
from mtray.config.settings import Config
from mtray.errors import RunError, UsageError
from mtray.replay.waiting import START
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.rundir.checkpoints.writer import CheckpointWriter, Fetch
from mtray.rundir.metrics import Metrics
from mtray.rundir.screen import Screen, counted
from mtray.rundir.sinks import Sink
from mtray.tasks.plan import Task

# How often a request to stop is looked for.
_LOOK_SECONDS = 0.2


class Supervisor:
    """One run, from placing its actors to its last checkpoint."""

    def __init__(
        self,
        config: Config,
        tasks: Sequence[Task],
        run_dir: Path,
        sinks: Iterable[Sink],
        screen: Screen,
        *,
        shares: Shares,
        resume: Checkpoint | None = None,
        skipped: Sequence[str] = (),
        seconds_before: float = 0.0,
        cpus_per_actor: float = 0.0,
        placement: Placement | None = None,
        follows_room: bool = False,
        asked_to_stop: Sequence[str] = (),
        ray_death: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Prepare; nothing is started. Ray must be up when `run` is called.

        Args:
            config: the run's.
            tasks: what to learn.
            run_dir: where checkpoints and events go.
            sinks: where lines of figures go.
            screen: where they go too, and what happens.
            shares: what each collector steps.
            resume: what to continue from.
            skipped: newer checkpoints that are not, with the reason.
            seconds_before: how long the run has run already.
            cpus_per_actor: Ray's logical CPUs that each actor asks for.
            placement: of a joined cluster, chooses nodes.
            follows_room: whether there are as many collectors as the cluster has room for.
            asked_to_stop: once it holds a reason, the run saves and ends; a signal handler may put it there.
            ray_death: how Ray died, in one line, once it has.

        Raises:
            UsageError: settings under which the run could not move.
        """
        self.config = config
        self.tasks = tuple(tasks)
        self.specs = tuple(task.spec for task in tasks)
        self.run_dir = run_dir
        self.metrics = Metrics((task.name for task in tasks), seconds_before)
        self._shares = shares.of(config.collectors)
        plan = make_plan(config, self.specs, shares, resume)
        pacing = resume_pacing(make_pacing(config, self.specs), resume)
        kind = Lockstep if config.deterministic else Control
        self._clock = DriverClock()
        self.control = kind(plan, pacing, self._clock.now())
        self._asked_to_stop, self._ray_death = asked_to_stop, ray_death
        self._sinks, self._screen = [*sinks, screen], screen
        self._events = EventLog(run_dir, lambda: self.metrics.seconds)
        self._cpus_per_actor, self._placement, self._follows_room = cpus_per_actor, placement, follows_room
        self._resume, self._skipped = resume, skipped
        if resume is not None:
            self.metrics.load_state(resume.meta["metrics"])
        self._end: End | None = None
        self._has_stopped = False
        self._watch: Watch | None = None
        # On a cluster each process has a core.
        is_first = config.address is None and config.device == "cpu" and not config.learner.keeps_ratio
        self._learners_core = LearnersCore() if is_first else None
        self._where = ""
        self._next_line = 0.0
        # When the run finished, by control's clock; and whether only its last evaluation is left.
        self._finished: float | None = None
        self.is_evaluated_last = False

    def run(self) -> str:
        """Run to the end and return the reason why it ended.

        Raises:
            UsageError: what the user gave can't work, as found on the way.
            RunError: the run could not go on.
        """
        row_bytes = {spec.name: 4 * spec.row_size for spec in self.specs}
        self._writer = CheckpointWriter(self.run_dir, self.config.run.keep_checkpoints, row_bytes, self._resume)
        self.processes = Processes(
            self.config, self.tasks, self._shares, self._cpus_per_actor, self._writer, self._placement
        )
        self._answers = Answers(self.specs, self.run_dir, self.metrics, self._events, self.processes, self._resume)
        self._evaluations = Evaluations(
            self.config, self.specs, self.run_dir, self.processes, self._answers, self.metrics, self._tell
        )
        self._next_line = time.monotonic() + self.config.run.log_seconds
        if self._resume is None:
            self._events.tell(Tell("start", {}))
        else:
            self._events.tell_resume(self._resume, self._skipped, self._writer.superseded)
        try:
            self._perform(self.control.start())
            if self._placement is not None:
                put, nodes = self.processes.inbox.put, self.processes.nodes
                self._watch = Watch(put, nodes, self._cpus_per_actor, follows_room=self._follows_room)
            while self._end is None:
                self._turn()
            if self._end.is_finished and not self._asked_to_stop:
                self._evaluate_last()
            self._line()
            self._tell(Tell("end", {"cause": self._end.reason}))
        except BaseException as error:
            # A second signal, or what nobody expected: whoever watches the run sees that it has ended.
            self._events.tell(Tell("end", {"cause": one_line(error) or type(error).__name__}))
            raise
        finally:
            self._close()
        end = self._end
        if end.outcome == "done":
            return end.reason
        raise (UsageError if end.outcome == "input" else RunError)(end.reason)

    # Turns.

    def _turn(self) -> None:
        """Wait for the end of a call, or for what is planned next; then do what control says."""
        tick, now = self.control.next_tick(), self._clock.now()
        wait = min(_LOOK_SECONDS, self._next_line - time.monotonic(), _LOOK_SECONDS if tick is None else tick - now)
        ended = None
        with contextlib.suppress(queue.Empty):
            ended = self.processes.inbox.get(timeout=max(0.0, wait))
        # First: what is done with Ray after its death may never return.
        death = self._ray_death() or self._answers.lost_node
        if death is not None:
            self._end = self._end_alone(death)
            return
        if ended is not None:
            self._take(ended)
            # All that has come, before time is looked at.
            for _ in range(self.processes.inbox.qsize()):
                self._take(self.processes.inbox.get_nowait())
        if self._asked_to_stop and not self._has_stopped:
            self._has_stopped = True
            self._handle(Stop(self._asked_to_stop[0]))
        minutes = self.config.minutes
        if minutes is not None and not self._has_stopped and self.metrics.seconds >= 60 * minutes:
            self._has_stopped = True
            self._handle(Stop(f"finished after {counted(minutes, 'minute')}", is_due=True))
        now = self._clock.now()
        if tick is not None and now >= tick:
            self._perform(self.control.tick(now))
        if self._end is None:
            self._evaluations.turn(now)
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self.config.run.log_seconds
            self._line()

    def _take(self, ended: tuple[Call, Any] | Event) -> None:
        self._handle(self._answers.event(*ended) if isinstance(ended, tuple) else ended)

    def _handle(self, event: Event) -> None:
        self._perform(self.control.handle(event, self._clock.now()))

    def _perform(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Call(part=None):
                    self.processes.in_background(command, self._writing(self.processes.rows_reader()))
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
        self._events.tell(told)
        self._screen.tell(told.event, told.fields)
        self._tell_where(told.event)

    def _tell_where(self, event: str) -> None:
        """On a joined cluster, say who is where once the run begins and whenever tasks were spread anew."""
        if self._placement is None or event not in ("warm", "spread"):
            return
        where, waiting = self.processes.where(), self.control.waiting
        where += f"; {waiting} more wait for room" if waiting else ""
        if where != self._where:
            self._where = where
            self._screen.say(where)

    def _evaluate_last(self) -> None:
        """Evaluate what a finished run has come to, with all cores to itself; a signal or Ray's death ends that."""
        self._finished = self._clock.now()
        self.metrics.stop_clock()
        if not self._evaluations.goes_on(self._finished):
            return
        self.is_evaluated_last = True
        self._screen.say("evaluating the policy that the run ends with ...")
        if self._learners_core is not None:
            self._learners_core.give_back(self._beside_learner())
        # All is saved: a second signal does not make it a run that failed.
        with contextlib.suppress(KeyboardInterrupt):
            self.processes.close_actors()
            self._await_evaluation()
        self.is_evaluated_last = False
        self._screen.print_all_tasks()

    def _await_evaluation(self) -> None:
        while not self._asked_to_stop:
            death = self._ray_death()
            if death is not None:
                self._evaluations.leave_ray()
                self._evaluations.fail(death)
                return
            if not self._evaluations.goes_on(self._clock.now()):
                return
            self._events.touch()
            time.sleep(_LOOK_SECONDS)

    # Lines and checkpoints.

    def _line(self) -> None:
        metrics, control = self.metrics, self.control
        self._count_faults()
        metrics.updates_owed = control.updates_owed
        now = self._clock.now() if self._finished is None else self._finished
        metrics.waiting = control.take_waits(now, metrics.replay_seconds())
        line = self.metrics.line()
        for sink in self._sinks:
            sink.write(line)
        if self._finished is None and self._end is None:
            self._share_cores()

    def _share_cores(self) -> None:
        if self._learners_core is None:
            return
        # Processes that start need all cores.
        waits = {START: 1.0} if self.control.is_starting else self.metrics.waiting["learner"]
        for learner in self.processes.here("learner"):
            self._learners_core.share(learner, self._beside_learner(), waits, self._clock.now())

    def _beside_learner(self) -> list[int]:
        return [*self.processes.here("collector", "replay"), *self._evaluations.processes]

    def _count_faults(self) -> None:
        control = self.control
        self.metrics.count_faults(control.restarts, control.frames_lost, control.updates_lost)

    def _writing(self, fetch: Fetch) -> Callable[[], Any]:
        """Return what writes a checkpoint of the last state and snapshot, with the rows that ``fetch`` reads."""
        self._count_faults()
        state = self._answers.state
        replay = self._answers.snapshot
        states = self._answers.collector_states if self.control.has_states else {}
        collectors = [state for _, state in sorted(states.items()) if state is not None]
        metrics = {**self.metrics.state(), "updates": state.updates}
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
        frames = sum(replay["frames"].values())
        saved = Checkpoint(frames, meta, state.policy, state.whole, replay, collectors=collectors)
        return lambda: self._writer.write(saved, fetch if self.config.replay.save else None)

    def _end_alone(self, death: str) -> End:
        """End a run whose Ray has died: save what this process holds, the rings' memory and the learner's kept state.

        No other process is needed, so nothing of this can hang.
        """
        self._events.tell(Tell("failure", {"cause": death}))
        self._evaluations.leave_ray()
        self._end_watch()
        try:
            self._save_alone()
            text = f"{death}; {self.metrics.frames:,} frames and {self.metrics.updates:,} updates are saved"
        except Exception as error:
            # Whatever keeps it from being saved, the end is told.
            self._events.tell(Tell("unsaved", {"cause": one_line(error)}))
            text = f"{death}; nothing was saved at the end: {one_line(error)}"
        newest = self._writer.newest
        text += "" if newest is None else f"; go on with --resume {newest.path}"
        return End(text, "failed")

    def _save_alone(self) -> None:
        replay = self.processes.leave_ray(is_stuck=self._ray_death() is None)
        updates = self._answers.state.updates
        if self.config.deterministic:
            raise RunError("--deterministic goes on from a multiple of --run.checkpoint-frames")
        if updates < 0:
            raise RunError("the learner has given no state yet")
        self._answers.snapshot = replay.state()
        self._answers.count({"frames": self._answers.snapshot["frames"], "is_warm": True})
        self.control.updates_lost += max(0, self.metrics.updates - updates)
        self.metrics.updates = updates
        self.control.is_at_cut = False
        self._writing(replay.read_rows)()
        self._events.tell(Tell("save", {"frames": self.metrics.frames, "updates": updates}))

    def _close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self._events.close()
        self._end_watch()
        self._evaluations.close()
        self.processes.close()

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()
