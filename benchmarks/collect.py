"""Collection speed: frames per second of several tasks on all cores of a machine.

    python benchmarks/collect.py --json collect.json

Compares mtray on humanoid-stand and humanoid-walk with dm_control's own loop (a process per core, random actions) and
with EnvPool's own loop, and on cartpole-swingup and cheetah-run, whose simulators are cheap, with EnvPool's. In mtray's
rows frames go through the whole pipeline: Ray, an acting network, and a replay that acknowledges them. Action repeat
is 1, except in rows that name another (mtray's default is 2). A network acts in RayCollector's rows too, not in
ParallelEnv's.

    python benchmarks/collect.py --peers DIR --json collect.json

adds RLlib and Sample Factory, whose own networks act. They need other versions than mtray: the first such run creates a
virtual environment for each in DIR (2 GB each), and later runs use it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import collecting
import harness
import launches
from peers import bare, torchrl
from peers.venvs import PEERS, Peer

HUMANOID = ("humanoid-stand", "humanoid-walk")
LIGHT = ("cartpole-swingup", "cheetah-run")
# Pairs of equal widths, as RayCollector's single network needs, and cheaper than humanoids.
CHEAPER = {"walkers": ("walker-stand", "walker-walk"), "cartpoles": ("cartpole-balance", "cartpole-swingup")}
PARTS = ("simulate", "policy", "copy", "push", "receipt", "idle")
BARE = "dm_control bare"
POOL = "EnvPool bare"
POOL_LIGHT = "EnvPool bare, light tasks"
# Those of the README's command are the second.
START_WORKERS = (2, 8)
RAY_CHEAPER = {name: f"RayCollector, {name}, a task each" for name in CHEAPER}


def ready(folder: Path | None) -> tuple[list[Peer], dict[str, str]]:
    """Return the peers that can be measured, and peer to the reason for the others."""
    if folder is None:
        return [], {peer.name: harness.NO_PEERS for peer in PEERS}
    found, left_out = [], {}
    for peer in PEERS:
        try:
            peer.make(folder)
            found.append(peer)
        except (OSError, RuntimeError, TimeoutError) as error:
            sys.stderr.write(f"{peer.name}: {error}\n")
            left_out[peer.name] = f"can't be installed: {harness.reason_of(error)}"
    return found, left_out


def start_rows(repeats: int) -> tuple[list[harness.Row], harness.Measured]:
    """Measure the time from the real command to the first frame, against what no start can do without."""
    bare, parts = "ray.init and imports alone", dict[str, list[float]]()

    def first_frame(workers: int) -> float:
        up, after = launches.start_seconds(workers=workers)
        for part, seconds in (("  until Ray is up", up), ("  from there on", after)):
            parts.setdefault(f"{part}, {workers} workers", []).append(seconds)
        return up + after

    contenders: dict[str, Callable[[], float]] = {bare: launches.bare_seconds}
    contenders |= {
        f"first frame, {workers} workers": functools.partial(first_frame, workers) for workers in START_WORKERS
    }
    measured = harness.interleave(contenders, repeats)
    rates = {**measured.rates, **parts}
    # Each start with its parts.
    names = sorted(rates, key=lambda name: (name != bare, name.rpartition(", ")[2]))
    return harness.compare(rates, bare, names, "s"), measured


def whole_runs(cores: int, measured: harness.Measured) -> list[harness.Row]:
    """Measure starts, and the memory of a run over the whole suite."""
    rows, starts = start_rows(3)
    measured.left_out |= starts.left_out
    measured.is_interrupted = starts.is_interrupted
    name, limit = "memory, whole suite", "8 GiB"
    if (used := measured.attempt(name, functools.partial(launches.suite_gib, workers=cores))) is not None:
        rows += harness.compare({name: [used], limit: [8.0]}, limit, [name], "GiB")
    return rows


def sweep(window: tuple[float, float], repeats: int, file: Path | None, picture: Path | None) -> None:
    """Measure mtray's rate under several settings, and the parts of a frame's time."""
    cores = harness.cores()
    start = {"tasks": HUMANOID, "engine": "mujoco", "host": "inline", "workers": cores, "copies": 32}
    changes: dict[str, dict[str, Any]] = {f"{cores} collectors x 32 copies, inline": {}}
    changes |= {f"{workers} collectors": {"workers": workers} for workers in (1, 2, 4, 8)}
    changes |= {f"{copies} copies": {"copies": copies} for copies in (1, 4, 8, 16, 64, 128)}
    changes |= {"parallel, 1 collector": {"host": "parallel", "workers": 1}, "1 collector, inline": {"workers": 1}}
    changes |= {"with the learner": {"learner": True}, "light tasks": {"tasks": LIGHT}}
    split: dict[str, list[dict[str, float]]] = {name: [] for name in changes}

    def one(name: str) -> float:
        settings = {**start, **changes[name]}
        learner = bool(settings.pop("learner", False))
        [measured] = harness.in_own_processes(collecting.measure, [(*settings.values(), *window, learner)])
        split[name].append(measured.seconds)
        return float(measured.frames_per_second)

    measured = harness.interleave({name: functools.partial(one, name) for name in changes}, repeats)
    rows = harness.compare(measured.rates, next(iter(changes)), list(changes), "frames/s")
    for name in (next(iter(changes)), "parallel, 1 collector", "with the learner", "light tasks"):
        parts = {f"{name}: {part}": [1e6 * run.get(part, 0.0) for run in split[name]] for part in PARTS}
        whole = {"sum": [sum(values) for values in zip(*parts.values(), strict=True)]}
        rows += harness.compare({**parts, **whole}, "sum", list(parts), "us/frame")
    harness.report(rows, file, measured.left_out)
    if picture:
        harness.plot(rows, picture, "mtray's settings, and the parts of a frame's time")
    harness.finish(rows, measured.left_out)


def main() -> None:
    parser = harness.add_peers(harness.make_parser(__doc__))
    parser.add_argument("--envs-per-task", type=int, default=32, help="copies of each task per collector")
    parser.add_argument("--seconds", type=float, help="of one measurement (10, or 5 with --quick)")
    parser.add_argument("--repeats", type=int, help="of every contender (5, or 2 if time allows with --quick)")
    parser.add_argument("--sweep", action="store_true", help="mtray alone: collectors, copies, host, learner")
    parser.add_argument("--starts", action="store_true", help="only the time from the command to the first frame")
    options = parser.parse_args()
    seconds = options.seconds or (5.0 if options.quick else 10.0)
    repeats = options.repeats or (2 if options.quick else 5)
    budget = harness.QUICK_SECONDS if options.quick else float("inf")
    # The first steps of an episode, before a humanoid lies on the floor, are cheap and not measured.
    window = (1.0 if options.quick else 4.0, seconds)
    cores, copies = harness.cores(), options.envs_per_task
    pairs = max(1, cores // len(HUMANOID))

    def alone(function: Callable[..., float], *args: Any) -> Callable[[], float]:
        return lambda: harness.in_own_processes(function, [(*args, *window)])[0]

    if options.sweep:
        sweep(window, repeats, options.json, options.plot)
        return

    if options.starts:
        rows, measured = start_rows(repeats)
        harness.report(rows, options.json, measured.left_out)
        harness.finish(rows, measured.left_out)
        return

    # Copies share the overhead of a step: cheap simulators need more copies.
    many = 4 * copies
    # dm_control's environments miss the caches more often with more copies.
    few = max(1, copies // 2)

    def ours(tasks: Sequence[str], engine: str, host: str, copies: int, repeat: int = 1) -> Callable[[], float]:
        workers = pairs if host == "parallel" else cores
        return lambda: harness.in_own_processes(
            collecting.rate, [(tasks, engine, host, workers, copies, *window, False, repeat)]
        )[0]

    humanoid = {
        "mtray mujoco inline": ours(HUMANOID, "mujoco", "inline", copies),
        "mtray dm_control inline": ours(HUMANOID, "dm_control", "inline", few),
        "mtray dm_control parallel": ours(HUMANOID, "dm_control", "parallel", copies),
    }
    repeated = {
        f"{name}, actions held for 2": ours(HUMANOID, engine, "inline", count, 2)
        for name, engine, count in (
            ("mtray mujoco inline", "mujoco", copies),
            ("mtray dm_control inline", "dm_control", few),
        )
    }
    cheaper = {
        name: {f"mtray mujoco, {name}": ours(tasks, "mujoco", "inline", many)} for name, tasks in CHEAPER.items()
    }
    pooled = {"mtray envpool inline": ours(HUMANOID, "envpool", "inline", many)}
    light = {
        "mtray envpool, light tasks": ours(LIGHT, "envpool", "inline", many),
        "mtray mujoco, light tasks": ours(LIGHT, "mujoco", "inline", many),
    }
    others, left_out = ready(options.peers)
    theirs = {
        "torchrl ParallelEnv": alone(torchrl.parallel_env, HUMANOID, max(len(HUMANOID), cores)),
        "RayCollector, tasks together": alone(torchrl.ray_collector_together, HUMANOID, cores),
        "RayCollector, a task each": alone(torchrl.ray_collector_apart, HUMANOID, cores),
        **{RAY_CHEAPER[name]: alone(torchrl.ray_collector_apart, tasks, cores) for name, tasks in CHEAPER.items()},
        **{peer.name: functools.partial(peer.measure, options.peers, *window) for peer in others},
    }
    baselines = {
        BARE: lambda: bare.dm_control(HUMANOID, cores, *window),
        POOL: lambda: bare.envpool(HUMANOID, pairs, many, *window),
        POOL_LIGHT: lambda: bare.envpool(LIGHT, pairs, many, *window),
    }
    if options.quick:
        # Starting a contender takes longer than measuring it.
        for group, left in ((humanoid, "mtray dm_control inline"), (light, "mtray mujoco, light tasks")):
            del group[left]
        for group in (pooled, repeated, cheaper):
            group.clear()
        # Of theirs one, which shows that it still works.
        theirs = {name: theirs[name] for name in ("RayCollector, a task each",)}
        del baselines[POOL]
    mine = {**humanoid, **repeated, **pooled, **light}
    for group in cheaper.values():
        mine |= group
    measured = harness.interleave({**baselines, **mine, **theirs}, repeats, budget)
    rates = measured.rates
    same = [name for name in theirs if name not in RAY_CHEAPER.values()]
    rows = harness.compare(rates, BARE, [BARE, *humanoid, *repeated, *same], "frames/s")
    rows += harness.compare(rates, POOL_LIGHT, [POOL_LIGHT, *light], "frames/s")
    if not options.quick:
        rows += harness.compare(rates, POOL, [POOL, *pooled], "frames/s")
        rows += harness.compare(rates, "mtray dm_control inline", ["mtray dm_control parallel"], "frames/s")
    for peer in same:
        rows += harness.compare(rates, peer, list(humanoid), "frames/s")
    if not options.quick:
        for name, group in cheaper.items():
            rows += harness.compare(rates, RAY_CHEAPER[name], [RAY_CHEAPER[name], *group], "frames/s")
        if not measured.is_interrupted:
            rows += whole_runs(cores, measured)
    left_out |= measured.left_out
    versions = {name: version for peer in others for name, version in peer.version.items()}
    harness.report(rows, options.json, left_out, versions)
    if options.plot:
        kept = [row for row in rows if row.baseline in baselines]
        harness.plot(kept, options.plot, f"Frames per second on {cores} cores", grey=theirs)
    harness.finish(rows, left_out)


if __name__ == "__main__":
    main()
