"""mtray's pipeline as benchmarks measure it: collectors and replay on a Ray of their own, a network that acts.

Runs in a process of its own (`harness.in_own_processes`).
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any


def pipeline(
    tasks: Sequence[str], engine: str, host: str, workers: int, copies: int, warmup_seconds: float, seconds: float
) -> float:
    """The collectors and the replay of mtray on a Ray of their own; gives frames per second as the replay has them.

    Raises:
        RuntimeError: the replay has not stored what was collected.
    """
    import ray

    from mtray import actors, weights
    from mtray.config import CollectorConfig, Config
    from mtray.launch import ray_session
    from mtray.networks import MultiTaskPolicy
    from mtray.tasks import resolve

    config = Config(
        tasks=tuple(tasks),
        engine=engine,
        host=host,
        workers=workers,
        envs_per_task=copies,
        collector=CollectorConfig(action_repeat=1, tasks_each=len(tasks)),
    )
    built = resolve(config.tasks, config.engine)
    specs = tuple(task.spec for task in built)
    share = dict.fromkeys((spec.name for spec in specs), copies)
    policy = MultiTaskPolicy(specs, config.network)
    # A fresh policy's actions are near zero, and humanoids that lie limp cost MuJoCo some 8 percent more than those of
    # the baseline. With this bias of the log standard deviations its actions are spread as uniform ones are.
    policy.heads.output.bias.data.chunk(2, -1)[1].fill_(0.75)
    # From version 1 on the network acts; before that, random actions cost less to choose.
    snapshot = weights.snapshot(policy, version=1)
    with ray_session(config) as cpus:
        replay = ray.remote(actors.Replay).options(num_cpus=cpus).remote(specs, config)
        kind = ray.remote(actors.Collector).options(num_cpus=cpus)
        seeds = [range(worker * 100, worker * 100 + len(tasks) + 1) for worker in range(workers)]
        collectors = [
            kind.remote(str(worker), built, share, config, seeds[worker], replay) for worker in range(workers)
        ]
        try:
            box = [ray.put(snapshot)]
            ray.get([collector.act.remote(snapshot.version, box, True) for collector in collectors])
            asks = [functools.partial(collector.collect.remote, snapshot.version, box) for collector in collectors]
            begin = time.perf_counter() + warmup_seconds
            ends = drive(asks, begin + seconds)
            ray.get([collector.flush.remote() for collector in collectors])
            stored = sum(ray.get(replay.stats.remote())["frames"].values())
        finally:
            # A collector that is killed leaves its simulators' processes to find out for themselves.
            ray.wait([collector.close.remote() for collector in collectors], num_returns=workers, timeout=10)
    rollout_frames = len(tasks) * copies * config.collector.rollout_steps
    collected = rollout_frames * sum(map(len, ends))
    if stored != collected:
        raise RuntimeError(f"the replay has stored {stored} frames of {collected}")
    return rollout_frames * sum(rate_between(times, begin, begin + seconds) for times in ends)


def drive(asks: Sequence[Callable[[], Any]], until: float) -> list[list[float]]:
    """Keep every collector busy until a time; give the times at which each one's rollouts ended."""
    import ray

    from mtray.crew import CALLS

    calls = [deque(ask() for _ in range(CALLS)) for ask in asks]
    ends: list[list[float]] = [[] for _ in asks]
    while heads := {queue[0]: index for index, queue in enumerate(calls) if queue}:
        ready, _ = ray.wait(list(heads))
        now = time.perf_counter()
        for call in ready:
            index = heads[call]
            ray.get(calls[index].popleft())
            ends[index].append(now)
            if now < until:
                calls[index].append(asks[index]())
    return ends


def rate_between(times: Sequence[float], begin: float, end: float) -> float:
    """Rollouts per second of one collector.

    A `collect` returns when its own rollout is sent and the one before is acknowledged: as many are acknowledged
    between two returns as have returned. Counting from return to return leaves no partly stepped rollout in the
    window, which of whole seconds would be several percent.

    Raises:
        RuntimeError: fewer than two rollouts ended in the window.
    """
    inside = [time for time in times if begin <= time <= end]
    if len(inside) < 2:
        raise RuntimeError(f"{len(inside)} rollouts ended in the window: raise --seconds or lower --envs-per-task")
    return (len(inside) - 1) / (inside[-1] - inside[0])
