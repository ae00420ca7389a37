"""mtray's pipeline in benchmarks: collectors with an acting network and the replay, on a local Ray.

Runs in a separate process (`harness.in_own_processes`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtray.config.settings import Config
    from mtray.data.specs import FloatArray, TaskSpec

# Longer than the default, which keeps the learner's data fresh.
ROLLOUT_STEPS = 32
# Standard deviation of the actions before the tanh.
DEVIATION = 0.83
# Length of the actions that `held_actions` draws.
HELD_STEPS = 512


@dataclass(frozen=True)
class Measured:
    """Result of a measurement.

    Attributes:
        frames_per_second: frames that the replay acknowledged, per second.
        seconds: the collectors' time per frame, by part (see `mtray.data.messages.Report`).
    """

    frames_per_second: float
    seconds: dict[str, float]


def rate(*args: Any, **options: Any) -> float:
    """Return the frames per second of `measure`."""
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
    """Collect for some seconds; ``learner``: with a learner that makes updates at the same time.

    Raises:
        RuntimeError: the replay has stored another number of frames than were collected.
    """
    import ray

    from mtray.cluster.actors.collector import Collector
    from mtray.cluster.actors.learner import Learner
    from mtray.cluster.actors.replay import Replay
    from mtray.cluster.plan import Shares
    from mtray.cluster.session.session import ray_session
    from mtray.policy import weights
    from mtray.policy.layout import LOG_STD_HIGH, LOG_STD_LOW
    from mtray.policy.policy import MultiTaskPolicy
    from mtray.tasks.registry import resolve

    config = settings(tasks, engine, host, workers, copies, action_repeat)
    built = resolve(config.tasks, config.engine, action_repeat)
    specs = tuple(task.spec for task in built)
    policy = MultiTaskPolicy(specs, config.network)
    # A new policy's actions are near zero, and limp humanoids cost MuJoCo about 8 percent more than those of the
    # baseline. This bias of the log standard deviations makes its actions about uniform, as the baseline's.
    bias = math.atanh((math.log(DEVIATION) - (LOG_STD_HIGH + LOG_STD_LOW) / 2) / ((LOG_STD_HIGH - LOG_STD_LOW) / 2))
    policy.heads.output.bias.data.chunk(2, -1)[1].fill_(bias)
    # Before version 1 actions are random, which costs less than the network.
    snapshot = weights.snapshot(policy, version=1)
    shares = Shares(config, built).of(workers)
    with ray_session(config) as session:
        cpus = session.cpus_per_actor
        replay = ray.remote(Replay).options(num_cpus=cpus).remote(specs, config)
        ray.get([replay.reserve.remote(), replay.load.remote(None)])
        kind = ray.remote(Collector).options(num_cpus=cpus)
        seeds = [range(worker * 100, worker * 100 + len(built) + 1) for worker in range(workers)]
        collectors = [kind.remote(str(worker), built, config, replay) for worker in range(workers)]
        trained = []
        try:
            weights_ref = [ray.put(snapshot)]
            builds = zip(collectors, shares, seeds, strict=True)
            ray.get([collector.build.remote(share, seed) for collector, share, seed in builds])
            ray.get([collector.act.remote(snapshot.version, weights_ref, True) for collector in collectors])
            if learner:
                trainer = ray.remote(Learner).options(num_cpus=cpus).remote(specs, config, replay)
                ray.get([trainer.build.remote(), *(collector.push.remote() for collector in collectors)])
                ray.get(trainer.train.remote(1, 1.0))
                trained = [trainer.train.remote(10**9, 1.5 * warmup_seconds + seconds)]
            begin = time.perf_counter() + warmup_seconds
            calls = [functools.partial(c.collect.remote, snapshot.version, weights_ref) for c in collectors]
            ends = drive(calls, begin + seconds, together=any(share != shares[0] for share in shares))
            ray.get([collector.flush.remote() for collector in collectors])
            stored = sum(ray.get(replay.count.remote())["frames"].values())
            ray.get(trained)
        finally:
            # Closed, because the simulators' processes of a killed collector end later.
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


def held_actions(spec: TaskSpec, copies: int, seed: int) -> FloatArray:
    """Return actions [HELD_STEPS, copies, act], distributed and held as those of `measure`.

    For loops without a policy: what a simulator's step costs depends on what its body does.
    """
    import numpy as np

    from mtray.collect.exploration import normal_noise
    from mtray.config.learner import NetworkConfig
    from mtray.config.settings import CollectorConfig
    from mtray.policy.acting import Acting
    from mtray.policy.layout import PolicyLayout

    size = (1, copies, spec.action_size)
    noise = normal_noise(size, CollectorConfig().noise_steps, np.random.default_rng(seed))
    drawn = np.stack([noise.draw()[0].copy() for _ in range(HELD_STEPS)])
    layout = PolicyLayout((spec,), NetworkConfig())
    return Acting(layout, layout.initial_arrays()).to_bounds(np.tanh(DEVIATION * drawn))


def settings(tasks: Sequence[str], engine: str, host: str, workers: int, copies: int, action_repeat: int) -> Config:
    """Return the config of a measurement, its learner's settings without gaps."""
    from mtray.config.presets import fill
    from mtray.config.settings import CollectorConfig, Config

    config = Config(
        tasks=tuple(tasks),
        engine=engine,
        host=host,
        workers=workers,
        envs_per_task=copies,
        device="cpu",
        collector=CollectorConfig(action_repeat=action_repeat, rollout_steps=ROLLOUT_STEPS),
    )
    # The learner's only: the preset's noise would change the actions, which are made about uniform.
    return dataclasses.replace(config, learner=fill(config, len(tasks)).learner)


def drive(collects: Sequence[Callable[[], Any]], until: float, together: bool) -> list[list[tuple[float, Any]]]:
    """Keep every collector busy until a time; return each collector's (end, report) of every rollout.

    ``together``: as in a run whose collectors step different tasks, fast collectors wait for the slowest.
    """
    import ray

    from mtray.cluster.control.plan import CALLS

    calls: list[deque[Any]] = [deque() for _ in collects]
    ends: list[list[tuple[float, Any]]] = [[] for _ in collects]
    while (now := time.perf_counter()) < until or any(calls):
        fewest = min(map(len, ends))
        for collect, queue, ended in zip(collects, calls, ends, strict=True):
            while now < until and len(queue) < CALLS and not (together and len(ended) > fewest + CALLS):
                queue.append(collect())
        heads = {queue[0]: index for index, queue in enumerate(calls) if queue}
        ready, _ = ray.wait(list(heads))
        now = time.perf_counter()
        for call in ready:
            index = heads[call]
            ends[index].append((now, ray.get(calls[index].popleft())))
    return ends


def rate_between(times: Sequence[float], begin: float, end: float) -> float:
    """Return the rollouts per second of one collector.

    A `collect` returns when its rollout is sent and the previous one is acknowledged, so each return stands for one
    acknowledged rollout. Time is counted from the first return to the last: a partial rollout at either end would be
    several percent of the window.

    Raises:
        RuntimeError: fewer than two rollouts ended in the window.
    """
    inside = [time for time in times if begin <= time <= end]
    if len(inside) < 2:
        raise RuntimeError(f"{len(inside)} rollouts ended in the window: raise --seconds or lower --envs-per-task")
    return (len(inside) - 1) / (inside[-1] - inside[0])
