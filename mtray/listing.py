"""List the tasks there are, or try some: ``mtray tasks``, ``mtray tasks humanoid my_tasks:pendulum``."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tyro

from mtray.config.checks import require
from mtray.config.command_line import parse
from mtray.engines.base import TASK_FAILURES, task_error
from mtray.errors import TaskError, UsageError
from mtray.program import run_program
from mtray.rundir.screen import counted, published
from mtray.tasks.makers import make_makers
from mtray.tasks.plan import DEFAULT_ENGINE, ENGINES, Task
from mtray.tasks.registry import resolve, task_sets

_COLUMNS = ("task", "observation", "action", "episode", "discount", "published", "steps/s of a core")

# For which a task is stepped, and for which the end of its first episode is waited for.
_TRIAL_SECONDS, _EPISODE_SECONDS = 0.3, 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the tasks that --tasks takes, or try some."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Tasks, sets and makers to try: each is built and stepped, as a run does first. Without any, an engine's tasks are
    listed by set."""
    engine: str = DEFAULT_ENGINE
    """What simulates them."""
    action_repeat: int = 2
    """Control steps per agent step in dm_control's suite; an episode's steps are agent steps."""


def run(options: Options) -> None:
    """Print the sets, or a row for each task that was tried."""
    require(options.action_repeat >= 1, f"--action-repeat {options.action_repeat}: at least 1 is needed")
    if options.names:
        _try_all(resolve(options.names, options.engine, options.action_repeat))
        return
    sets, others = task_sets(options.engine), [name for name in ENGINES if name != options.engine]
    print(f"engine {options.engine} (others: {', '.join(others)}): --tasks takes sets, on the left, and tasks")
    width = max(map(len, sets))
    for name, tasks in sets.items():
        known = {task for other, members in sets.items() if len(members) < len(tasks) for task in members}
        text = f"{len(tasks)} tasks of these" if known.issuperset(tasks) else " ".join(tasks)
        print(
            textwrap.fill(
                text,
                shutil.get_terminal_size().columns,
                initial_indent=f"  {name:{width}}  ",
                subsequent_indent=" " * (width + 4),
                break_on_hyphens=False,
            )
        )


def _try_all(tasks: Sequence[Task]) -> None:
    """Print a row for each task that works.

    Raises:
        UsageError: what is wrong with the others.
    """
    rows: list[tuple[str, ...]] = [_COLUMNS]
    failures = []
    for task in tasks:
        try:
            rows.append(_row(task))
        except UsageError as error:
            failures.append(str(error))
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *figures in rows:
            cells = [cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True)]
            print("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    if failures:
        raise UsageError("; ".join(failures))


def _row(task: Task) -> tuple[str, ...]:
    from mtray.collect.placement import step_seconds

    spec, best = task.spec, published().get(task.name)
    # Before the speed is measured: the first error that a task makes is told.
    episode = _try(task)
    try:
        seconds = step_seconds(task, 0.1)
    except TASK_FAILURES as error:
        raise UsageError(str(task_error(task.name, "step", error))) from error
    return (
        task.name,
        str(spec.observation_size),
        str(spec.action_size),
        episode,
        f"{spec.discount:.3f}",
        "" if best is None else f"{best['return']:,.0f}",
        f"{1 / seconds:,.0f}",
    )


def _try(task: Task) -> str:
    """Step a task for a while; return its episode's length, as far as it is known.

    Raises:
        UsageError: the task's own code failed, or gave a number that is not finite.
    """
    from mtray.collect.hosts.inline import InlineHost

    spec, random = task.spec, np.random.default_rng(0)
    try:
        host = InlineHost(make_makers([task], 1, [0]))
        try:
            low, high = spec.action_range
            (slot,), steps, length, begin = host.slots, 0, 0, time.monotonic()
            while time.monotonic() < begin + (_TRIAL_SECONDS if length else _EPISODE_SECONDS):
                slot.action[:] = random.uniform(low, high)
                host.step()
                steps += 1
                if not length and (slot.terminated[0] or slot.truncated[0]):
                    length = steps
        finally:
            host.close()
    except TaskError as error:
        raise UsageError(str(error)) from error
    if spec.horizon is not None:
        # The last step may be a shorter one.
        return f"{-(-spec.horizon // spec.action_repeat)} steps"
    return f"ended after {counted(length, 'step')}" if length else f"no end in {counted(steps, 'step')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    # Nothing is rendered; without this, importing dm_control looks for a display.
    os.environ.setdefault("MUJOCO_GL", "disabled")
    return run_program(lambda: run(parse(Options, arguments, "mtray tasks")))


if __name__ == "__main__":
    sys.exit(main())
