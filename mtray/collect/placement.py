"""Placement: which collector steps how many copies of which task, and on which host.

Up to ``tasks_each`` tasks, every collector steps every task. Above that, most of a step would be overhead per task, so
the tasks are partitioned: laid end to end, each as long as the cost of its copies, and cut into one piece of equal cost
per collector. A task that a cut divides is stepped by both collectors. Equal numbers of rollouts then take equal time
and give equal frames of every task.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mtray.engines.base import StepArrays
from mtray.tasks.plan import Task

# Task to copies.
Share = Mapping[str, int]

_MEASURED_COPIES = 4
_FAST_COPIES = 8
# Warm-up: an episode's first steps, in the air, cost up to four times less than later ones with contacts
# (quadruped-escape). The limits in seconds are for expensive tasks.
_WARMUP_STEPS, _WARMUP_SECONDS = 100, 0.25
_MIN_MEASURED_STEPS, _MOST_SECONDS = 20, 0.5


def choose_host(tasks: Sequence[Task], collectors: int, cores: int, tasks_each: int) -> Literal["parallel", "inline"]:
    """Return the host that keeps more cores busy.

    A process per task and collector uses cores that collectors alone would leave idle, but costs about a fifth of each
    for synchronisation (benchmarks/collect.py). Inline are partitioned tasks, simulators with threads of their own, and
    runs that would have more than two processes per core.

    Args:
        tasks: tasks of the run.
        collectors: number of collectors.
        cores: number of cores that they may use.
        tasks_each: number of tasks above which several collectors partition them.
    """
    simulators = collectors * len(tasks)
    is_partitioned = collectors > 1 and len(tasks) > tasks_each
    if is_partitioned or simulators > 2 * cores or any(task.has_threads for task in tasks):
        return "inline"
    return "parallel" if 0.8 * min(cores, simulators) > min(cores, collectors) else "inline"


def choose_copies(copies: int, tasks: int, tasks_each: int) -> int:
    """Return the copies of each task in a collector: more than the default where few would be slow.

    With one copy of each of two humanoids a collector brings 0.42 of the frames that it brings with sixteen, with four
    0.85 (two collectors on two cores). Eight collectors on two cores take a third less of them per frame with eight
    copies than with two, and the learner beside them makes 1.2 times the updates.

    Args:
        copies: the default.
        tasks: number of tasks.
        tasks_each: number of tasks above which several collectors partition them: each then steps few of many.
    """
    return max(copies, _FAST_COPIES) if tasks <= tasks_each else copies


def replicate(tasks: Sequence[str], copies: int, collectors: int) -> list[Share]:
    """Return shares in which every collector steps ``copies`` of every task."""
    return [dict.fromkeys(tasks, copies) for _ in range(collectors)]


def partition(costs: Mapping[str, float], copies: int, collectors: int) -> list[Share]:
    """Return shares of about equal cost, each of at least one copy.

    Args:
        costs: task to seconds per step of one copy.
        copies: copies of each task over all collectors.
        collectors: number of shares, at most the number of all copies.
    """
    line = [task for task in costs for _ in range(copies)]
    total = copies * sum(costs.values())
    shares: list[dict[str, int]] = [{} for _ in range(collectors)]
    cost, index = 0.0, 0
    for position, task in enumerate(line):
        # The midpoint of a copy's cost decides its share; the last copies are left for shares that have none yet.
        midpoint = (cost + costs[task] / 2) * collectors / total
        must_advance = len(line) - position <= collectors - index - 1
        if shares[index] and index < collectors - 1 and (midpoint >= index + 1 or must_advance):
            index += 1
        shares[index][task] = shares[index].get(task, 0) + 1
        cost += costs[task]
    return list(shares)


def step_seconds(task: Task, seconds: float = 0.01) -> float:
    """Measure for about ``seconds`` and return the seconds of one agent step of one copy.

    They are those of this process's CPU, which other programs don't lengthen; or those that pass in most steps, if
    these are more: an environment may wait for another process.
    """
    sim = task.make_sim(_MEASURED_COPIES)
    try:
        out = StepArrays.empty(sim.num_envs, sim.spec)
        random, size = np.random.default_rng(0), (sim.num_envs, sim.spec.action_size)
        low, high = sim.spec.action_range
        sim.reset(np.ones(sim.num_envs, np.bool_), out.observation)

        def step() -> None:
            sim.step(random.uniform(low, high, size).astype(np.float32), out)
            ended = out.terminated | out.truncated
            if ended.any():
                sim.reset(ended, out.observation)

        begin = time.monotonic()
        for _ in range(_WARMUP_STEPS):
            step()
            if time.monotonic() > begin + _WARMUP_SECONDS:
                break
        begin, begin_cpu, passed = time.monotonic(), time.process_time(), [0.0]
        while passed[-1] < seconds or (len(passed) <= _MIN_MEASURED_STEPS and passed[-1] < _MOST_SECONDS):
            step()
            passed.append(time.monotonic() - begin)
        cpu = (time.process_time() - begin_cpu) / (len(passed) - 1)
        return max(cpu, float(np.median(np.diff(passed)))) / sim.num_envs
    finally:
        sim.close()
