"""Throughput of the replay through Ray: inserts and samples, compared with a memcpy of the same bytes.

    python benchmarks/replay.py --json replay.json

An actor calls the real replay actor as collectors and the learner do, with two humanoid tasks. An insert is done when
its receipt has arrived, a sample when `ray.get` has returned its arrays. The bytes of an insert are those of its rows;
the bytes of a sample are those of its rows with their next observations. A sample has the default's returns of several
steps, for which the replay reads the rows of each later step too; TorchRL's has one-step returns. The baseline copies
arrays of the same size on one core, cycling through 64 MiB so that neither source nor target is in the core's cache.
Pushes cycle through 64 MiB too, and the rings are larger.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import harness
import plain_ray

TASKS = ("humanoid-stand", "humanoid-walk")
# Copies of each task in one push of 32 steps: the default with two collectors, and larger ones.
COPIES = (8, 32, 128)
STEPS = 32
BATCH_ROWS, BATCHES = 256, 16
# Many times the size of a core's cache.
CYCLE_BYTES = 64 * 2**20
WARMUP_CALLS = 20


def calls_per_second(
    call: Callable[[], Any], seconds: float, warmup_calls: int, finish: Callable[[], Any] = lambda: None
) -> float:
    """Return the rate of calls, from the first one until all are finished."""
    for _ in range(warmup_calls):
        call()
    finish()
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        call()
        calls += 1
    finish()
    return calls / (time.perf_counter() - begin)


class Caller:
    """The calls of collectors and learner to the replay, without their other work; each method returns bytes/s."""

    def __init__(self, replay: Any, specs: Sequence[Any], capacity: int, steps: int, seconds: float) -> None:
        """Fill the replay to its capacity; ``steps``: of each sampled row's return."""
        import torch

        from mtray.cluster.actors.draws import Draws
        from mtray.cluster.actors.pushes import Pusher

        torch.set_num_threads(1)
        self._replay = replay
        self._specs = tuple(specs)
        self._steps, self._seconds = steps, seconds
        drawn = {spec.name: BATCH_ROWS // len(specs) for spec in specs}
        self._draws = {ahead: Draws(replay, specs, drawn, BATCHES, ahead, steps) for ahead in (1, 2)}
        self._pushers = {limit: Pusher(replay, f"limit {limit}", limit, 60.0) for limit in (1, 4)}
        self._pushes = {copies: make_pushes(specs, copies) for copies in COPIES}
        # Every push once, so that the replay has mapped all of them, then the largest until the rings are full.
        ready = [push for pushes in self._pushes.values() for push in pushes]
        largest = self._pushes[COPIES[-1]]
        count = -(-capacity // len(largest[0][0][TASKS[0]]))
        for rows, statistics in itertools.chain(ready, itertools.islice(itertools.cycle(largest), count)):
            self._pushers[1].push(rows, statistics, {})
        self._pushers[1].wait()

    def ready(self) -> None:
        """Do nothing; the answer shows that the actor has started."""

    def _rate(self, call: Callable[[], Any], finish: Callable[[], Any] = lambda: None) -> float:
        return calls_per_second(call, self._seconds, WARMUP_CALLS, finish)

    def copy(self, nbytes: int) -> float:
        """Measure the baseline, memcpy."""
        import numpy as np

        source, target = (np.full((CYCLE_BYTES // nbytes, nbytes), fill, np.uint8) for fill in (1, 2))
        pairs = itertools.cycle(zip(source, target, strict=True))

        def call() -> None:
            values, copied = next(pairs)
            copied[:] = values

        return nbytes * self._rate(call)

    def insert(self, copies: int, limit: int, with_statistics: bool = False) -> float:
        """Measure pushes, ``limit`` in flight at once, with or without the time of computing their statistics."""
        from mtray.data.statistics import TaskStatistics

        pushes, pusher = itertools.cycle(self._pushes[copies]), self._pushers[limit]

        def call() -> None:
            rows, statistics = next(pushes)
            if with_statistics:
                statistics = {spec.name: TaskStatistics.of(rows[spec.name], spec.observation_size) for spec in specs}
            pusher.push(rows, statistics, {})

        specs = self._specs
        return push_bytes(specs, copies) * self._rate(call, pusher.wait)

    def empty_calls(self, nbytes: int, limit: int) -> float:
        """Measure calls that do nothing, counted as ``nbytes`` each."""
        import ray

        ask = Ahead(functools.partial(self._replay.stored.remote, "nobody"), limit, ray.get)
        return nbytes * self._rate(ask.next, ask.finish)

    def sample(self, ahead: int, unpack: bool = False) -> float:
        """Measure draws, ``ahead`` of them prefetched, with or without unpacking them into batches."""
        from mtray.data.batch import unpack_batches

        draws = self._draws[ahead]

        def call() -> None:
            sampled = draws.next()
            if unpack:
                unpack_batches(sampled.rows, self._specs)

        return sample_bytes(self._specs) * self._rate(call)

    def sample_by_store(self, ahead: int) -> float:
        """Measure draws whose results go through Ray's object store, as they do between nodes."""
        import ray

        rows = BATCH_ROWS // len(self._specs)
        ask = Ahead(lambda: self._replay.sample_rows.remote(rows, BATCHES, self._steps), ahead, ray.get)
        return sample_bytes(self._specs) * self._rate(ask.next, ask.finish)


class Ahead:
    """Keeps a fixed number of calls in flight."""

    def __init__(self, call: Callable[[], Any], count: int, get: Callable[[Any], Any]) -> None:
        """Start without a call."""
        self._call, self._count, self._get = call, count, get
        self._calls: deque[Any] = deque()

    def next(self) -> None:
        """Wait for the oldest call if the limit is reached, then make another one."""
        if len(self._calls) == self._count:
            self._get(self._calls.popleft())
        self._calls.append(self._call())

    def finish(self) -> None:
        """Wait for all calls."""
        while self._calls:
            self._get(self._calls.popleft())


class Ensemble:
    """TorchRL's correct dense layout: a ReplayBufferEnsemble with a LazyTensorStorage per task, without Ray."""

    def __init__(self, specs: Sequence[Any], capacity: int, seconds: float) -> None:
        """Fill the buffers to their capacity."""
        import torch
        from torchrl.data import LazyTensorStorage, ReplayBuffer, ReplayBufferEnsemble

        torch.set_num_threads(1)
        self._specs, self._seconds, self._copies = specs, seconds, COPIES[-1]
        self._rollouts = {spec.name: make_rollout(spec, self._copies) for spec in specs}
        self._buffers = {spec.name: ReplayBuffer(storage=LazyTensorStorage(capacity)) for spec in specs}
        self._ensemble = ReplayBufferEnsemble(*self._buffers.values(), sample_from_all=True, batch_size=BATCH_ROWS)
        for _ in range(-(-capacity // (self._copies * STEPS))):
            self._extend()

    def ready(self) -> None:
        """Do nothing; the answer shows that the buffers are full."""

    def _extend(self) -> None:
        for task, rollout in self._rollouts.items():
            self._buffers[task].extend(rollout.reshape(-1))

    def insert(self) -> float:
        """Measure inserts of the largest push's transitions, in bytes of mtray's push."""
        return push_bytes(self._specs, self._copies) * calls_per_second(self._extend, self._seconds, 1)

    def sample(self) -> float:
        """Measure draws of as many batches as one draw from mtray's replay, in the bytes of that draw."""

        def call() -> None:
            for _ in range(BATCHES):
                self._ensemble.sample()

        return sample_bytes(self._specs) * calls_per_second(call, self._seconds, 1)


def push_bytes(specs: Sequence[Any], copies: int) -> int:
    return sum(4 * copies * (STEPS + 1) * spec.row_size for spec in specs)


def sample_bytes(specs: Sequence[Any]) -> int:
    return sum(4 * BATCHES * (BATCH_ROWS // len(specs)) * (spec.row_size + spec.observation_size) for spec in specs)


def make_pushes(specs: Sequence[Any], copies: int) -> list[tuple[Any, dict[str, Any]]]:
    """Return different pushes of 64 MiB in all: rows as collectors pack them, and their statistics."""
    import numpy as np

    from mtray.data.rows import TRANSITION, row_flags
    from mtray.data.statistics import TaskStatistics

    generator = np.random.default_rng(copies)
    nbytes = push_bytes(specs, copies)
    pushes = []
    for _ in range(CYCLE_BYTES // nbytes):
        rows = {}
        for spec in specs:
            lanes = generator.random((copies, STEPS + 1, spec.row_size), dtype=np.float32)
            rows[spec.name] = lanes.reshape(-1, spec.row_size)
            # As `mtray.data.rollout.pack` lays them out: each copy's last row holds the observation it reached.
            row_flags(lanes)[:] = TRANSITION
            lanes[:, -1, spec.observation_size :] = 0
        statistics = {spec.name: TaskStatistics.of(rows[spec.name], spec.observation_size) for spec in specs}
        pushes.append((rows, statistics))
    return pushes


def make_rollout(spec: Any, copies: int) -> Any:
    """Return a task's rollout [K, L] with the keys of `mtray.data.specs`."""
    import torch
    from tensordict import TensorDict

    size = (copies, STEPS)
    observed = {key: torch.rand(*size, spec.observation_size) for key in ("observation", spec.key)}
    flags = {key: torch.zeros(*size, 1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
    reached = TensorDict({**observed, **flags, "reward": torch.rand(*size, 1)}, size)
    return TensorDict({**observed, **flags, "action": torch.rand(*size, spec.action_size), "next": reached}, size)


def measure(
    capacity: int, seconds: float, repeats: int, budget: float
) -> tuple[dict[str, list[str]], harness.Measured]:
    """Measure every contender in turns on a Ray of their own; return baseline to contenders, and rates in MB/s."""
    import ray

    from mtray.cluster.actors.replay import Replay
    from mtray.config.presets import fill
    from mtray.config.settings import Config, ReplayConfig
    from mtray.tasks.registry import resolve

    begin = time.monotonic()
    config = Config(tasks=TASKS, replay=ReplayConfig(capacity_rows=capacity))
    specs = tuple(task.spec for task in resolve(config.tasks, config.engine))
    # Ray's workers may not find the script's module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with plain_ray.start(3):
        replay = ray.remote(Replay).remote(specs, config)
        ray.get([replay.reserve.remote(), replay.load.remote(None)])
        caller = ray.remote(Caller).remote(replay, specs, capacity, fill(config, len(TASKS)).learner.n_step, seconds)
        ensemble = ray.remote(Ensemble).remote(specs, capacity, seconds)
        ray.get([caller.ready.remote(), ensemble.ready.remote()])
        groups = contenders(caller, ensemble, specs)
        measured = harness.interleave(
            {name: call for group in groups.values() for name, call in group.items()},
            repeats,
            budget - (time.monotonic() - begin),
        )
    return {baseline: list(group) for baseline, group in groups.items()}, measured


def contenders(caller: Any, ensemble: Any, specs: Sequence[Any]) -> dict[str, dict[str, Callable[[], float]]]:
    """Return baseline to contender to a function that measures its MB/s; each group has its baseline first."""

    def rate(method: Any, *args: Any) -> Callable[[], float]:
        return lambda: ray.get(method.remote(*args)) / 1e6

    import ray

    groups = {}
    for copies in COPIES:
        nbytes = push_bytes(specs, copies)
        push, baseline = f"insert {copies} x {STEPS}", f"memcpy of {nbytes / 1e6:.2f} MB"
        group = groups[baseline] = {baseline: rate(caller.copy, nbytes)}
        for limit, manner in ((1, "one at a time"), (4, "4 under way")):
            group[f"{push}, {manner}"] = rate(caller.insert, copies, limit)
            group[f"empty call for {copies} x {STEPS}, {manner}"] = rate(caller.empty_calls, nbytes, limit)
    group[f"{push}, 4 under way, statistics taken too"] = rate(caller.insert, copies, 4, True)
    group[f"{push}, torchrl ensemble in-process"] = rate(ensemble.insert)
    nbytes = sample_bytes(specs)
    draw, baseline = f"sample {BATCHES} x {BATCH_ROWS}", f"memcpy of {nbytes / 1e6:.2f} MB"
    groups[baseline] = {
        baseline: rate(caller.copy, nbytes),
        f"{draw}, one at a time": rate(caller.sample, 1),
        f"{draw}, 2 ahead": rate(caller.sample, 2),
        f"{draw}, 2 ahead, unpacked": rate(caller.sample, 2, True),
        f"empty call for {BATCHES} x {BATCH_ROWS}, 2 ahead": rate(caller.empty_calls, nbytes, 2),
        f"{draw}, 2 ahead, by Ray's store": rate(caller.sample_by_store, 2),
        f"{draw}, torchrl ensemble in-process": rate(ensemble.sample),
    }
    return groups


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of each task in the replay")
    parser.add_argument("--seconds", type=float, help="of one measurement (1, or 0.5 with --quick)")
    parser.add_argument("--repeats", type=int, help="of every contender (9, or 3 if time allows with --quick)")
    options = parser.parse_args()
    seconds = options.seconds or (0.5 if options.quick else 1.0)
    repeats = options.repeats or (3 if options.quick else 9)
    budget = harness.QUICK_SECONDS if options.quick else 3600.0
    arguments = (options.rows, seconds, repeats, budget)
    [found] = harness.in_own_processes(measure, [arguments], timeout_seconds=budget + 300.0, keeps_partial=True)
    groups, measured = found
    rows = [row for base, names in groups.items() for row in harness.compare(measured.rates, base, names, "MB/s")]
    harness.report(rows, options.json, measured.left_out)
    if options.plot:
        grey = [row.name for row in rows if row.name.startswith("empty call") or "torchrl" in row.name]
        harness.plot(rows, options.plot, "Bytes per second into and out of the replay", grey)
    harness.finish(rows, measured.left_out)


if __name__ == "__main__":
    main()
