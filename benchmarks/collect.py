"""How many frames per second humanoid-stand and humanoid-walk give on all cores of a machine.

    python benchmarks/collect.py --json collect.json

The baseline is dm_control's own loop, a process per core, with random actions. mtray's rows are the real pipeline
through Ray, with a network that acts and a replay that acknowledges every frame. TorchRL's rows have random actions.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import harness
import peers

TASKS = ("humanoid-stand", "humanoid-walk")
BARE = "dm_control bare"
LEFT_OUT = {"RLlib": "not written yet", "Sample Factory": "not written yet"}


def step_bare(barrier: Any, seed: int, warmup_seconds: float, seconds: float) -> float:
    """dm_control's own loop over one copy of each task, uniformly random actions; gives frames per second."""
    import numpy as np
    from dm_control import suite

    generator = np.random.default_rng(seed)
    envs = [suite.load(*task.split("-"), task_kwargs={"random": seed}) for task in TASKS]
    action = envs[0].action_spec()

    def step_for(seconds: float) -> float:
        frames, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            for env in envs:
                if env.step(generator.uniform(action.minimum, action.maximum)).last():
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


def bare(processes: int, warmup_seconds: float, seconds: float) -> float:
    """The baseline: `step_bare` in so many processes."""
    barrier = multiprocessing.get_context("spawn").Barrier(processes)
    arguments = [(barrier, seed, warmup_seconds, seconds) for seed in range(processes)]
    return sum(harness.in_own_processes(step_bare, arguments))


def pipeline(host: str, workers: int, copies: int, warmup_seconds: float, seconds: float) -> float:
    """The collectors and the replay of mtray on a Ray of their own; gives frames per second as the replay has them.

    Raises:
        RuntimeError: the replay has not stored what was collected.
    """
    import ray

    from mtray import actors, weights
    from mtray.config import Config
    from mtray.launch import ray_session
    from mtray.networks import MultiTaskPolicy
    from mtray.tasks import resolve

    config = Config(tasks=TASKS, engine="dm_control", host=host, workers=workers, envs_per_task=copies)
    tasks = resolve(config.tasks, config.engine)
    specs = tuple(task.spec for task in tasks)
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
        collectors = [kind.remote(str(worker), tasks, config, seeds[worker], replay) for worker in range(workers)]
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


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--envs-per-task", type=int, default=32, help="copies of each task in each mtray collector")
    parser.add_argument("--seconds", type=float, help="of one measurement (10, or 4 with --quick)")
    parser.add_argument("--repeats", type=int, help="of every contender (5, or 2 if time allows with --quick)")
    options = parser.parse_args()
    seconds = options.seconds or (4.0 if options.quick else 10.0)
    repeats = options.repeats or (2 if options.quick else 5)
    budget = harness.QUICK_SECONDS if options.quick else float("inf")
    # Long enough that the first, cheap steps of an episode, before a humanoid lies on the floor, are over.
    window = (2.0 if options.quick else 4.0, seconds)
    cores, copies = harness.cores(), options.envs_per_task
    pairs = max(1, cores // len(TASKS))

    def alone(function: Callable[..., float], *args: Any) -> Callable[[], float]:
        return lambda: harness.in_own_processes(function, [(*args, *window)])[0]

    ours = {
        "mtray inline": alone(pipeline, "inline", cores, copies),
        "mtray parallel": alone(pipeline, "parallel", pairs, copies),
    }
    theirs = {
        "torchrl ParallelEnv": alone(peers.parallel_env, max(len(TASKS), cores)),
        "torchrl RayCollector": alone(peers.ray_collector, max(len(TASKS), cores)),
    }
    rates = harness.interleave({BARE: lambda: bare(cores, *window), **ours, **theirs}, repeats, budget)
    rows = harness.compare(rates, BARE, list(rates), "frames/s")
    for peer in theirs:
        rows += harness.compare(rates, peer, list(ours), "frames/s")
    harness.report(rows, len(rates[BARE]), options.json)
    if options.plot:
        harness.plot(rows, options.plot, "Frames per second of two humanoid tasks", grey=theirs)
    print("\nleft out: " + "; ".join(f"{name} ({reason})" for name, reason in LEFT_OUT.items()))


if __name__ == "__main__":
    main()
