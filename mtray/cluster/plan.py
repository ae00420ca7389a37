"""What a run will do, from its config: pacing, who steps what, seeds, and the plan that control follows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence

import numpy as np

from mtray.cluster.control.parts.actor import Limits
from mtray.cluster.control.plan import CALLS, Plan, Spread
from mtray.cluster.control.protocol import Part, Place
from mtray.collect.placement import Share, partition, replicate, step_seconds
from mtray.config.checks import require
from mtray.config.settings import Config
from mtray.data.specs import TaskSpec
from mtray.replay.pacing import Pacing, least_slack
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.tasks.plan import Task

# Frames that no run reaches.
_NEVER = 10**15
# Frames between two checkpoints of a run in lockstep, by default.
_CUT_FRAMES = 100_000


def make_pacing(config: Config, specs: Sequence[TaskSpec]) -> Pacing:
    """Return the pacing of a new run, from a config without gaps.

    Raises:
        UsageError: a slack under which both sides would wait for ever.
    """
    settings = config.learner
    step_frames = sum(spec.action_repeat for spec in specs)
    round_frames, slack_frames = _round_and_slack(config, specs, config.collectors)
    assert settings.updates_per_step is not None
    assert settings.least_updates_per_step is not None
    least = math.ceil(least_slack(settings.least_updates_per_step, step_frames, round_frames) / step_frames)
    if settings.slack_steps is not None and settings.updates_per_step:
        require(
            settings.slack_steps >= least,
            f"--learner.slack-steps {settings.slack_steps}: collectors have {round_frames // step_frames} steps of "
            f"every task under way, and an update needs {1 / settings.least_updates_per_step:g}, so at least {least} "
            "is needed or both sides would wait for ever",
        )
    return Pacing(
        updates_per_step=settings.updates_per_step,
        step_frames=step_frames,
        start_frames=settings.warmup_steps * step_frames,
        slack_frames=slack_frames,
        round_frames=round_frames,
        least_updates_per_step=settings.least_updates_per_step,
    )


def _round_and_slack(config: Config, specs: Sequence[TaskSpec], collectors: int) -> tuple[int, int]:
    """Return frames under way at once from so many collectors, and how far they may be ahead of the learner."""
    settings = config.learner
    step_frames = sum(spec.action_repeat for spec in specs)
    # What is asked and not yet counted: two calls and the pushes under way of each collector.
    calls = CALLS + config.collector.pushes_in_flight
    round_frames = step_frames * config.copies(len(specs)) * collectors * config.collector.rollout_steps * calls
    if settings.slack_steps is not None:
        return round_frames, settings.slack_steps * step_frames
    # Where the learner is the slower side, collectors are this far ahead all the time, and what they bring was
    # chosen by weights as old: no more than keeps both sides from waiting.
    ratio = settings.least_updates_per_step
    update_frames = step_frames / ratio if ratio else 0.0
    return round_frames, math.ceil(1.25 * round_frames + 2 * update_frames)


def resume_pacing(pacing: Pacing, saved: Checkpoint | None) -> Pacing:
    """Return the pacing of a run that goes on from a checkpoint, or of a new one."""
    if saved is None:
        return pacing
    before = Pacing(**saved.meta["pacing"])
    return pacing.resumed(before, saved.frames, saved.meta["metrics"]["updates"], lost_rows=not saved.rows)


class Shares:
    """What each collector steps, however many there are."""

    def __init__(self, config: Config, tasks: Sequence[Task]) -> None:
        """Measure what tasks cost, where that matters.

        Raises:
            UsageError: the rings are too small for what one collector sends of a task.
        """
        self._config = config
        self._names = [task.name for task in tasks]
        self._copies = config.copies(len(tasks))
        self._is_partitioned = config.host == "inline" and len(tasks) > config.collector.tasks_each
        is_measured = self._is_partitioned and config.collectors > 1
        # Measured costs differ from run to run, and with them who steps what.
        self._costs = {
            task.name: step_seconds(task) if is_measured and not config.deterministic else 1.0 for task in tasks
        }
        self.check(self.of(config.collectors))

    def of(self, collectors: int, without: Container[str] = ()) -> list[Share]:
        """Return the share of each of so many collectors."""
        costs = {name: cost for name, cost in self._costs.items() if name not in without}
        if not self._is_partitioned or collectors == 1 or not costs:
            return replicate(list(costs), self._copies, collectors)
        # Each has a copy of one task at least.
        copies = max(self._copies * collectors, math.ceil(collectors / len(costs)))
        return partition(costs, copies, collectors)

    def check(self, shares: Sequence[Share]) -> None:
        """Raise if the rings are too small for what one collector sends of a task."""
        limit = self._config.replay.capacity_rows
        most = 2 * max(max(share.values()) for share in shares) * self._config.collector.rollout_steps
        require(
            most <= limit,
            f"--replay.capacity-rows {limit}: a collector that steps most copies of a task sends up to {most} rows at "
            "once, so at least that many are needed",
        )


def make_plan(config: Config, specs: Sequence[TaskSpec], shares: Shares, saved: Checkpoint | None) -> Plan:
    """Return the plan that control follows."""
    repeats = {spec.name: spec.action_repeat for spec in specs}
    run, steps = config.run, config.collector.rollout_steps

    def places(collectors: int, without: Container[str] = ()) -> list[Place]:
        return [
            Place(copies=share, task_frames={task: steps * share[task] * repeats[task] for task in share})
            for share in shares.of(collectors, without)
        ]

    def spread(collectors: int, without: Container[str]) -> Spread:
        rest = [spec for spec in specs if spec.name not in without]
        round_frames, slack_frames = _round_and_slack(config, rest, collectors)
        return Spread(places=places(collectors, without), round_frames=round_frames, slack_frames=slack_frames)

    is_elastic = config.address is not None and not config.deterministic
    return Plan(
        places=places(config.collectors),
        total_frames=_NEVER if config.frames is None else config.frames,
        checkpoint_frames=run.checkpoint_frames or (_CUT_FRAMES if config.deterministic else _NEVER),
        checkpoint_seconds=math.inf if config.deterministic else run.checkpoint_seconds,
        frames=saved.frames if saved else 0,
        updates=saved.meta["metrics"]["updates"] if saved else 0,
        warmup_frames=config.learner.warmup_steps * sum(repeats.values()),
        task_errors=config.collector.max_restarts,
        sets_aside=config.on_task_failure == "continue",
        step_frames=repeats,
        spread=spread if is_elastic else None,
        limits=Limits(
            start_seconds=run.start_timeout_seconds,
            call_seconds=run.call_timeout_seconds,
            give_up_seconds=run.give_up_seconds,
            shares_cluster=config.address is not None,
        ),
    )


def seeds_of(config: Config, part: Part, begin_frames: int, tasks: int, builds: int = 0) -> list[int]:
    """Return a collector's seeds: one per task of the run, then one for the actions.

    Every task of every collector, of every life of it, of every time that it was built anew, and of every resumed run
    draws from a stream of its own.
    """
    sequence = np.random.SeedSequence([config.seed, part.place, part.life, begin_frames, *([builds] if builds else [])])
    return [int(seed) for seed in sequence.generate_state(tasks + 1)]


def pacing_state(pacing: Pacing) -> Mapping[str, float]:
    """Return a pacing as plain values."""
    return dataclasses.asdict(pacing)
