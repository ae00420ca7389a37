"""What the simulators give alone: their own loops, with random actions, a process or a thread per core.

These are the baselines: no policy, no replay, no Ray.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import harness


def step_dm_control(barrier: Any, tasks: Sequence[str], seed: int, warmup_seconds: float, seconds: float) -> float:
    """dm_control's own loop over one copy of each task, uniformly random actions; gives frames per second."""
    import numpy as np
    from dm_control import suite

    generator = np.random.default_rng(seed)
    envs = [suite.load(*task.split("-"), task_kwargs={"random": seed}) for task in tasks]
    bounds = [(env.action_spec().minimum, env.action_spec().maximum) for env in envs]

    def step_for(seconds: float) -> float:
        frames, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            for env, (low, high) in zip(envs, bounds, strict=True):
                if env.step(generator.uniform(low, high)).last():
                    env.reset()
            frames += len(envs)
        return frames / (now - begin)

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
    """EnvPool's own loop over a pool per task, a thread each, uniformly random actions; gives frames per second."""
    import envpool
    import numpy as np

    names = ["".join(part.title() for part in task.split("-")) + "-v1" for task in tasks]
    pools = [envpool.make_dm(name, num_envs=copies, num_threads=1, seed=seed) for name in names]
    generator = np.random.default_rng(seed)
    ids = np.arange(copies, dtype=np.int32)
    sizes = [pool.spec.action_array_spec["action"].shape[-1] for pool in pools]
    # Drawn beforehand: what a generator costs is no part of stepping.
    actions = [generator.uniform(-1, 1, (64, copies, size)) for size in sizes]

    def step_for(seconds: float) -> float:
        steps, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            for pool, drawn in zip(pools, actions, strict=True):
                pool.send(drawn[steps % 64], ids)
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
