"""What a run will do, from its config: pacing, who steps what, seeds, and the plan that control follows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mtray.cluster.control.parts.actor import Limits
from mtray.cluster.control.plan import CALLS, Place, Plan
from mtray.cluster.control.protocol import Part
from mtray.collect.placement import Share, partition, replicate, step_seconds
from mtray.config.checks import require
from mtray.config.settings import Config
from mtray.data.specs import TaskSpec
from mtray.errors import UsageError
from mtray.replay.pacing import Pacing, least_slack
from mtray.rundir.checkpoints.checkpoint import Checkpoint
from mtray.tasks.plan import Task


def make_pacing(config: Config, specs: Sequence[TaskSpec]) -> Pacing:
    """Return the pacing of a new run.

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
        if settings.updates_per_step:
            least = math.ceil(least_slack(settings.updates_per_step, step_frames, round_frames) / step_frames)
            require(
                settings.slack_steps >= least,
                f"--learner.slack-steps {settings.slack_steps}: collectors have {round_frames // step_frames} steps of "
                f"every task under way, and an update needs {1 / settings.updates_per_step:g}, so at least {least} is "
                "needed or both sides would wait for ever",
            )
    else:
        # Where the learner is the slower side, collectors are this far ahead all the time, and what they bring was
        # chosen by weights as old: no more than keeps both sides from waiting.
        update_frames = step_frames / settings.updates_per_step if settings.updates_per_step else 0.0
        slack_frames = math.ceil(1.25 * round_frames + 2 * update_frames)
    return Pacing(
        updates_per_step=settings.updates_per_step,
        step_frames=step_frames,
        start_frames=settings.warmup_steps * step_frames,
        slack_frames=slack_frames,
        round_frames=round_frames,
    )


def resume_pacing(pacing: Pacing, saved: Checkpoint | None) -> Pacing:
    """Return the pacing of a run that goes on from a checkpoint, or of a new one."""
    if saved is None:
        return pacing
    before = Pacing(**saved.meta["pacing"])
    return pacing.resumed(before, saved.frames, saved.meta["metrics"]["updates"], lost_rows=not saved.rows)


def make_shares(config: Config, tasks: Sequence[Task]) -> list[Share]:
    """Return what each collector steps.

    Raises:
        UsageError: the rings are too small for what one collector sends of a task.
    """
    names, copies = [task.name for task in tasks], config.copies(len(tasks))
    if config.host != "inline" or len(tasks) <= config.collector.tasks_each or config.workers == 1:
        return replicate(names, copies, config.workers)
    # Measured costs differ from run to run, and with them who steps what.
    costs = {task.name: 1.0 if config.deterministic else step_seconds(task) for task in tasks}
    shares = partition(costs, copies * config.workers, config.workers)
    most, limit = 2 * max(max(share.values()) for share in shares) * config.collector.rollout_steps, config.replay
    if most > limit.capacity_rows:
        raise UsageError(
            f"--replay.capacity-rows {limit.capacity_rows}: a collector that steps most copies of a task sends up to "
            f"{most} rows at once, so at least that many are needed"
        )
    return shares


def make_plan(config: Config, specs: Sequence[TaskSpec], shares: Sequence[Share], saved: Checkpoint | None) -> Plan:
    """Return the plan that control follows."""
    repeats = {spec.name: spec.action_repeat for spec in specs}
    run = config.run
    steps = config.collector.rollout_steps
    return Plan(
        places=[Place(task_frames={task: steps * share[task] * repeats[task] for task in share}) for share in shares],
        total_frames=config.total_frames,
        checkpoint_frames=run.checkpoint_frames,
        checkpoint_seconds=math.inf if config.deterministic else run.checkpoint_seconds,
        frames=saved.frames if saved else 0,
        updates=saved.meta["metrics"]["updates"] if saved else 0,
        task_errors=config.collector.max_restarts,
        sets_aside=config.on_task_failure == "continue",
        step_frames=repeats,
        limits=Limits(
            start_seconds=run.start_timeout_seconds,
            call_seconds=run.call_timeout_seconds,
            give_up_seconds=run.give_up_seconds,
            shares_cluster=config.address is not None,
        ),
    )


def seeds_of(config: Config, part: Part, begin_frames: int, tasks: int) -> list[int]:
    """Return a collector's seeds: one per task of the run, then one for the actions.

    Every task of every collector, of every life of it and of every resumed run draws from a stream of its own.
    """
    sequence = np.random.SeedSequence([config.seed, part.place, part.life, begin_frames])
    return [int(seed) for seed in sequence.generate_state(tasks + 1)]


def pacing_state(pacing: Pacing) -> Mapping[str, float]:
    """Return a pacing as plain values."""
    return dataclasses.asdict(pacing)
