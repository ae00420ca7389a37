"""What the simulators give alone: their own loops, a process or a thread per core.

These are the baselines: no policy, no replay, no Ray; their actions are as those of mtray's policy there.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import collecting
import harness


def step_dm_control(barrier: Any, tasks: Sequence[str], seed: int, warmup_seconds: float, seconds: float) -> float:
    """dm_control's own loop over one copy of each task; gives frames per second."""
    from dm_control import suite

    from mtray.tasks.plan import Task

    envs = [suite.load(*task.split("-"), task_kwargs={"random": seed}) for task in tasks]
    # Drawn beforehand: what a generator costs is no part of stepping.
    actions = [collecting.held_actions(Task(task, "dm_control").spec, 1, seed)[:, 0] for task in tasks]

    def step_for(seconds: float) -> float:
        steps, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            for env, drawn in zip(envs, actions, strict=True):
                if env.step(drawn[steps % len(drawn)]).last():
                    env.reset()
            steps += 1
        return steps * len(envs) / (now - begin)

    for env in envs:
        env.reset()
    # Every core must be busy for as long as any is measured.
    barrier.wait()
    step_for(warmup_seconds)
    rate = step_for(seconds)
    step_for(warmup_seconds / 2)
    return rate


def dm_control(tasks: Sequence[str], processes: int, warmup_seconds: float, seconds: float) -> float:
    """The baseline: `step_dm_control` in so many processes."""
    barrier = multiprocessing.get_context("spawn").Barrier(processes)
    arguments = [(barrier, tasks, seed, warmup_seconds, seconds) for seed in range(processes)]
    return sum(harness.in_own_processes(step_dm_control, arguments))


def step_pools(
    barrier: Any, tasks: Sequence[str], copies: int, seed: int, warmup_seconds: float, seconds: float
) -> float:
    """EnvPool's own loop over a pool per task, a thread each; gives frames per second."""
    import envpool
    import numpy as np

    from mtray.tasks.plan import Task

    names = ["".join(part.title() for part in task.split("-")) + "-v1" for task in tasks]
    pools = [envpool.make_dm(name, num_envs=copies, num_threads=1, seed=seed) for name in names]
    ids = np.arange(copies, dtype=np.int32)
    # Of the type that it takes, so that it converts nothing.
    types = [pool.spec.action_array_spec["action"].dtype for pool in pools]
    actions = [
        collecting.held_actions(Task(task, "envpool").spec, copies, seed).astype(kind)
        for task, kind in zip(tasks, types, strict=True)
    ]

    def step_for(seconds: float) -> float:
        steps, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            for pool, drawn in zip(pools, actions, strict=True):
                pool.send(drawn[steps % len(drawn)], ids)
            for pool in pools:
                pool.recv()
            steps += 1
        return steps * copies * len(pools) / (now - begin)

    for pool in pools:
        pool.reset()
    barrier.wait()
    step_for(warmup_seconds)
    rate = step_for(seconds)
    step_for(warmup_seconds / 2)
    return rate


def envpool(tasks: Sequence[str], processes: int, copies: int, warmup_seconds: float, seconds: float) -> float:
    """EnvPool's baseline: `step_pools` in so many processes."""
    barrier = multiprocessing.get_context("spawn").Barrier(processes)
    arguments = [(barrier, tasks, copies, seed, warmup_seconds, seconds) for seed in range(processes)]
    return sum(harness.in_own_processes(step_pools, arguments))
