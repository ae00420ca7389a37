"""Which collector steps how many copies of which task, and on which host.

Up to some number of tasks every collector steps every task. Beyond that a step would be mostly the handling of many
small groups of copies, so the tasks are spread: laid end to end, each as long as all its copies cost to step, and cut
into as many pieces of equal cost as there are collectors. A task that lies across a cut is stepped by both. Collectors
that are asked for equally many rollouts then bring equally many frames of every task, and none waits long for another.
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


# The first steps of an episode, in the air, are cheaper than those with contacts: by a factor of four in
# quadruped-escape. But a dear task is not waited for any longer.
_FIRST_STEPS = 100


_FIRST_SECONDS = 0.25


_FEWEST_STEPS = 20


def choose_host(tasks: Sequence[Task], collectors: int, cores: int, tasks_each: int) -> Literal["parallel", "inline"]:
    """Return the host that puts more of the cores to work.

    A process per task and collector reaches cores that collectors alone would leave idle, and costs about a fifth of
    each for handing over (measured: benchmarks/collect.py). Simulators with threads of their own need no processes.
    Many tasks are spread over collectors that step them inline, and there are never more than two processes a core.

    Args:
        tasks: the run's.
        collectors: their number.
        cores: that they can keep busy.
        tasks_each: tasks above which several collectors share the tasks out.
    """
    simulators = collectors * len(tasks)
    is_spread = collectors > 1 and len(tasks) > tasks_each
    if is_spread or simulators > 2 * cores or any(task.has_threads for task in tasks):
        return "inline"
    return "parallel" if 0.8 * min(cores, simulators) > min(cores, collectors) else "inline"


def everywhere(tasks: Sequence[str], copies: int, collectors: int) -> list[Share]:
    """Return shares in which every collector steps ``copies`` of every task."""
    return [dict.fromkeys(tasks, copies) for _ in range(collectors)]


def spread(costs: Mapping[str, float], copies: int, collectors: int) -> list[Share]:
    """Return shares of equal cost, which hold ``copies`` of each task in all and at least one copy for each collector.

    Args:
        costs: task to seconds per step of one copy.
        copies: of each task, over all collectors.
        collectors: number of shares, at most that of all copies.
    """
    line = [task for task in costs for _ in range(copies)]
    total = copies * sum(costs.values())
    shares: list[dict[str, int]] = [{} for _ in range(collectors)]
    cost, index = 0.0, 0
    for place, task in enumerate(line):
        # A copy goes where its middle lies; the last copies are kept for collectors that have none yet.
        middle = (cost + costs[task] / 2) * collectors / total
        behind = len(line) - place <= collectors - index - 1
        if shares[index] and index < collectors - 1 and (middle >= index + 1 or behind):
            index += 1
        shares[index][task] = shares[index].get(task, 0) + 1
        cost += costs[task]
    return list(shares)


def step_seconds(task: Task, seconds: float = 0.01) -> float:
    """Measure the CPU seconds of this process for one agent step of one copy, for about ``seconds``."""
    sim = task.make_sim(_MEASURED_COPIES)
    try:
        out = StepArrays.empty(sim.num_envs, sim.spec)
        random, size = np.random.default_rng(0), (sim.num_envs, sim.spec.action_size)
        sim.reset(np.ones(sim.num_envs, np.bool_), out.observation)

        def step() -> None:
            sim.step(random.uniform(-1, 1, size).astype(np.float32), out)
            ended = out.terminated | out.truncated
            if ended.any():
                sim.reset(ended, out.observation)

        begin = time.process_time()
        for _ in range(_FIRST_STEPS):
            step()
            if time.process_time() > begin + _FIRST_SECONDS:
                break
        begin, steps = time.process_time(), 0
        while (now := time.process_time()) < begin + seconds or steps < _FEWEST_STEPS:
            step()
            steps += 1
        return (now - begin) / steps / sim.num_envs
    finally:
        sim.close()
