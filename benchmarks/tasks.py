"""Collection speed of runs with many tasks, relative to their simulators' speed.

    python benchmarks/tasks.py --json tasks.json

For 2 to 50 tasks of dm_control's suite: frames per second of mtray's whole pipeline through Ray, compared with the same
simulators stepped alone, in one process per core with the same copies of every task. The ratio is the share of the
simulators' speed that the pipeline keeps; the ratio at 50 tasks relative to that at 2 shows the overhead per task. Two
sets: tasks of the whole suite, and tasks with cheap simulators, where the overhead is largest.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import collecting
import harness

COPIES = 8
# Their step costs less than 20 us.
LIGHT = (
    "cartpole-swingup",
    "reacher-easy",
    "acrobot-swingup",
    "pendulum-swingup",
    "point_mass-easy",
    "cheetah-run",
    "finger-spin",
    "cartpole-balance",
    "reacher-hard",
    "acrobot-swingup_sparse",
    "cartpole-balance_sparse",
    "point_mass-hard",
    "finger-turn_easy",
    "cartpole-swingup_sparse",
    "cartpole-two_poles",
    "finger-turn_hard",
    "cartpole-three_poles",
)


def chosen(count: int) -> tuple[str, ...]:
    """Return ``count`` tasks of the suite, evenly spaced."""
    from mtray.tasks.registry import task_names

    names = task_names("mujoco")
    return tuple(names[index * len(names) // count] for index in range(count))


def shares(tasks: Sequence[str]) -> list[dict[str, int]]:
    """Return task to copies, of each of mtray's collectors: many tasks are partitioned."""
    from mtray.cluster.plan import Shares
    from mtray.tasks.registry import resolve

    config = collecting.settings(tasks, "mujoco", "inline", harness.cores(), COPIES, 1)
    return [dict(share) for share in Shares(config, resolve(tasks, "mujoco", 1)).of(harness.cores())]


def step_alone(barrier: Any, share: dict[str, int], seed: int, warmup_seconds: float, seconds: float) -> float:
    """Step what one collector steps, one task after another; return frames per second."""
    import numpy as np

    from mtray.engines.base import StepArrays
    from mtray.tasks.plan import Task

    sims = [Task(task, "mujoco").make_sim(copies, seed) for task, copies in share.items()]
    outs = [StepArrays.empty(sim.num_envs, sim.spec) for sim in sims]
    actions = [collecting.held_actions(sim.spec, sim.num_envs, seed) for sim in sims]
    for sim, out in zip(sims, outs, strict=True):
        sim.reset(np.ones(sim.num_envs, bool), out.observation)

    def step_for(seconds: float) -> float:
        steps, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            for sim, out, drawn in zip(sims, outs, actions, strict=True):
                sim.step(drawn[steps % len(drawn)], out)
                if (ended := out.terminated | out.truncated).any():
                    sim.reset(ended, out.observation)
            steps += 1
        return steps * sum(sim.num_envs for sim in sims) / (now - begin)

    barrier.wait()
    step_for(warmup_seconds)
    rate = step_for(seconds)
    step_for(warmup_seconds / 2)
    return rate


def alone(tasks: Sequence[str], window: tuple[float, float]) -> float:
    """Run `step_alone` in one process per core; return the sum of the rates."""
    barrier = multiprocessing.get_context("spawn").Barrier(harness.cores())
    found = harness.in_own_processes(shares, [(tasks,)])[0]
    arguments = [(barrier, share, seed, *window) for seed, share in enumerate(found)]
    return sum(harness.in_own_processes(step_alone, arguments))


def pipeline(tasks: Sequence[str], window: tuple[float, float]) -> float:
    """Return the frames per second of these tasks through collectors and replay."""
    arguments = (tasks, "mujoco", "inline", harness.cores(), COPIES, *window)
    return float(harness.in_own_processes(collecting.rate, [arguments])[0])


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--seconds", type=float, help="of one measurement (10, or 5 with --quick)")
    parser.add_argument("--repeats", type=int, help="of every contender (3, or 1 with --quick)")
    options = parser.parse_args()
    window = (1.0 if options.quick else 4.0, options.seconds or (5.0 if options.quick else 10.0))
    repeats = options.repeats or (1 if options.quick else 3)
    counts = (2, 16) if options.quick else (2, 5, 10, 25, 50)
    sets = {f"{count} tasks": chosen(count) for count in counts}
    sets |= {f"{count} light tasks": LIGHT[:count] for count in ((2, 17) if not options.quick else (2,))}
    contenders = {}
    for name, tasks in sets.items():
        contenders[f"{name}, simulators alone"] = functools.partial(alone, tasks, window)
        contenders[f"{name}, mtray"] = functools.partial(pipeline, tasks, window)
    measured = harness.interleave(contenders, repeats)
    rates = measured.rates
    rows = []
    for name in sets:
        baseline, ours = f"{name}, simulators alone", f"{name}, mtray"
        rows += harness.compare(rates, baseline, [baseline, ours], "frames/s")
        few = "2 light tasks" if "light" in name else "2 tasks"
        shares = {each: shares_of(rates, each) for each in (name, few)}
        rows += harness.compare(shares, few, [name], "of the simulators' speed")
    step_costs_alone = functools.partial(harness.in_own_processes, step_costs, [(chosen(counts[-1]),)])
    if (found := measured.attempt("time of one step", step_costs_alone)) is not None:
        costs = ", ".join(f"{task} {1e6 * cost:.0f}" for task, cost in found[0])
        print("time of one step of one copy, us:", costs)
    harness.report(rows, options.json, measured.left_out)
    if options.plot:
        draw(rows, options.plot)
    harness.finish(rows, measured.left_out)


def shares_of(rates: harness.Rates, name: str) -> list[float]:
    """Return mtray's rate of a set of tasks divided by that of the simulators alone, round by round."""
    pairs = zip(rates.get(f"{name}, mtray", ()), rates.get(f"{name}, simulators alone", ()), strict=False)
    return [ours / alone for ours, alone in pairs]


def draw(rows: Sequence[harness.Row], file: Path) -> None:
    """Plot every set's ratio to its simulators in one panel."""
    shares = [replace(row, baseline="the same simulators alone") for row in rows if row.name.endswith(", mtray")]
    harness.plot(shares, file, "Share of the simulators' speed that the pipeline keeps")


def step_costs(tasks: Sequence[str]) -> list[tuple[str, float]]:
    """Return (task, seconds per step of one copy), cheapest first."""
    from mtray.collect.placement import step_seconds
    from mtray.tasks.plan import Task

    return sorted(((task, step_seconds(Task(task, "mujoco"))) for task in tasks), key=lambda item: item[1])


if __name__ == "__main__":
    main()
