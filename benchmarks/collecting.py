"""mtray's pipeline as benchmarks measure it: collectors and replay on a Ray of their own, a network that acts.

Runs in a process of its own (`harness.in_own_processes`).
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# The default is shorter, for the learner's sake.
ROLLOUT_STEPS = 32
# Of the actions before the tanh.
DEVIATION = 0.83


@dataclass(frozen=True)
class Measured:
    """What a window gave.

    Attributes:
        frames_per_second: as the replay acknowledged them.
        seconds: what the collectors' time went into, per frame, by part (see `mtray.data.messages.Report`).
    """

    frames_per_second: float
    seconds: dict[str, float]


def rate(*args: Any, **options: Any) -> float:
    """Frames per second of `measure`."""
    return measure(*args, **options).frames_per_second


def measure(
    tasks: Sequence[str],
    engine: str,
    host: str,
    workers: int,
    copies: int,
    warmup_seconds: float,
    seconds: float,
    learner: bool = False,
    action_repeat: int = 1,
) -> Measured:
    """Collect in a window of time, with a learner that makes updates beside it if told to.

    Raises:
        RuntimeError: the replay has not stored what was collected.
    """
    import ray

    from mtray.cluster.actors.collector import Collector
    from mtray.cluster.actors.learner import Learner
    from mtray.cluster.actors.replay import Replay
    from mtray.cluster.plan import make_shares
    from mtray.cluster.session import ray_session
    from mtray.config.settings import CollectorConfig, Config
    from mtray.policy import weights
    from mtray.policy.policy import LOG_STD_HIGH, LOG_STD_LOW, MultiTaskPolicy
    from mtray.tasks.registry import resolve

    config = Config(
        tasks=tuple(tasks),
        engine=engine,
        host=host,
        workers=workers,
        envs_per_task=copies,
        collector=CollectorConfig(action_repeat=action_repeat, rollout_steps=ROLLOUT_STEPS),
    )
    built = resolve(config.tasks, config.engine, action_repeat)
    specs = tuple(task.spec for task in built)
    policy = MultiTaskPolicy(specs, config.network)
    # A fresh policy's actions are near zero, and humanoids that lie limp cost MuJoCo some 8 percent more than those of
    # the baseline. With this bias of the log standard deviations its actions are spread as uniform ones are.
    bias = math.atanh((math.log(DEVIATION) - (LOG_STD_HIGH + LOG_STD_LOW) / 2) / ((LOG_STD_HIGH - LOG_STD_LOW) / 2))
    policy.heads.output.bias.data.chunk(2, -1)[1].fill_(bias)
    # From version 1 on the network acts; before that, random actions cost less to choose.
    snapshot = weights.snapshot(policy, version=1)
    shares = make_shares(config, built)
    with ray_session(config) as session:
        cpus = session.cpus_per_actor
        replay = ray.remote(Replay).options(num_cpus=cpus).remote(specs, config)
        kind = ray.remote(Collector).options(num_cpus=cpus)
        seeds = [range(worker * 100, worker * 100 + len(built) + 1) for worker in range(workers)]
        collectors = [
            kind.remote(str(worker), built, shares[worker], config, seeds[worker], replay) for worker in range(workers)
        ]
        trained = []
        try:
            box = [ray.put(snapshot)]
            ray.get([collector.build.remote() for collector in collectors])
            ray.get([collector.act.remote(snapshot.version, box, True) for collector in collectors])
            if learner:
                trainer = ray.remote(Learner).options(num_cpus=cpus).remote(specs, config, replay)
                ray.get([trainer.build.remote(), *(collector.push.remote() for collector in collectors)])
                ray.get(trainer.train.remote(1, 1.0))
                trained = [trainer.train.remote(10**9, 1.5 * warmup_seconds + seconds)]
            begin = time.perf_counter() + warmup_seconds
            asks = [functools.partial(collector.collect.remote, snapshot.version, box) for collector in collectors]
            ends = drive(asks, begin + seconds, together=any(share != shares[0] for share in shares))
            ray.get([collector.flush.remote() for collector in collectors])
            stored = sum(ray.get(replay.count.remote())["frames"].values())
            ray.get(trained)
        finally:
            # A collector that is killed leaves its simulators' processes to find out for themselves.
            ray.wait([collector.close.remote() for collector in collectors], num_returns=workers, timeout=10)
    sizes = [sum(share.values()) * config.collector.rollout_steps * action_repeat for share in shares]
    first = sum(sizes) if learner else 0
    collected = first + sum(size * len(times) for size, times in zip(sizes, ends, strict=True))
    if stored != collected:
        raise RuntimeError(f"the replay has stored {stored} frames of {collected}")
    inside = [
        (size, report)
        for size, rollouts in zip(sizes, ends, strict=True)
        for end, report in rollouts
        if begin <= end <= begin + seconds
    ]
    frames = sum(size for size, _ in inside)
    spent: dict[str, float] = {}
    for _, report in inside:
        for part, value in report.seconds.items():
            spent[part] = spent.get(part, 0.0) + value / frames
    rates = [
        size * rate_between([end for end, _ in rollouts], begin, begin + seconds)
        for size, rollouts in zip(sizes, ends, strict=True)
    ]
    return Measured(sum(rates), spent)


def drive(asks: Sequence[Callable[[], Any]], until: float, together: bool) -> list[list[tuple[float, Any]]]:
    """Keep every collector busy until a time; give when each one's rollouts ended, and its reports.

    As a run's control does: where collectors step different tasks, one that is ahead of the slowest waits for it.
    """
    import ray

    from mtray.cluster.control.plan import CALLS

    calls: list[deque[Any]] = [deque() for _ in asks]
    ends: list[list[tuple[float, Any]]] = [[] for _ in asks]
    while (now := time.perf_counter()) < until or any(calls):
        fewest = min(map(len, ends))
        for ask, queue, ended in zip(asks, calls, ends, strict=True):
            while now < until and len(queue) < CALLS and not (together and len(ended) > fewest + CALLS):
                queue.append(ask())
        heads = {queue[0]: index for index, queue in enumerate(calls) if queue}
        ready, _ = ray.wait(list(heads))
        now = time.perf_counter()
        for call in ready:
            index = heads[call]
            ends[index].append((now, ray.get(calls[index].popleft())))
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
