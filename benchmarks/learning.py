"""Returns of one agent that learns many tasks, compared with published agents that learn one task each.

    python benchmarks/learning.py --json learning.json --plot learning.png

Runs `python -m mtray.launch --preset frugal` once per seed, one after another on all cores (with
``--at-once 2``: two at a time, each on half of the cores), evaluates every checkpoint with the deterministic policy,
and compares with the curves in benchmarks/reference/dmc_returns.csv at equal frames per task. Arguments after ``--``
are passed to mtray.launch.

Runs are kept in ``--run-dir``; when the script is started again, finished runs are read and others are resumed.
``--single 1`` also trains one agent per task, for one seed with the same settings, and compares both.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import sys
import tempfile
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness

SIX = ("cartpole-balance", "cartpole-swingup", "reacher-easy", "walker-stand", "walker-walk", "cheetah-run")
REFERENCE = Path(__file__).parent / "reference" / "dmc_returns.csv"
AGENTS = ("SAC", "SimBa", "XQC")
_TRAINING_SECONDS = 12 * 3600.0
_EVALUATION_SECONDS = 1800.0
# A run counts at some number of frames if its last checkpoint has at least this share of them.
_REACHED = 0.9


@dataclass(frozen=True)
class Point:
    """One checkpoint of one run.

    Attributes:
        frames: frames per task.
        minutes: wall clock of the run up to it, without evaluations.
        returns: task to the mean undiscounted return of the evaluation.
    """

    frames: float
    minutes: float
    returns: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean return over the tasks."""
        return statistics.fmean(self.returns.values())


def train(folder: Path, tasks: Sequence[str], frames: int, every: int, seed: int, settings: Sequence[str]) -> None:
    """Start or resume a run until it has the frames; a finished run with fewer frames is resumed."""
    total = frames * len(tasks)
    # Names are frames, followed by a number if there are several.
    saved = [int(checkpoint.name.partition(".")[0]) for checkpoint in (folder / "checkpoints").glob("0*")]
    if max(saved, default=0) >= total:
        return
    command = [sys.executable, "-m", "mtray.launch", "--preset", "frugal", "--total-frames", str(total)]
    if (folder / "checkpoints" / "latest").is_file():
        command += ["--resume", str(folder)]
    else:
        # Without a checkpoint there is nothing to resume.
        shutil.rmtree(folder, ignore_errors=True)
        command += ["--tasks", *tasks, "--seed", str(seed)]
        # By frames only: each checkpoint is evaluated.
        command += ["--run.checkpoint-frames", str(every * len(tasks)), "--run.checkpoint-seconds", "1e9"]
        command += ["--run.keep-checkpoints", "1000", "--run.evaluate-every", "0"]
        command += ["--run-dir", str(folder), *settings]
    harness.run_program(command, _TRAINING_SECONDS)


def run_all(
    runs: Sequence[tuple[Path, Sequence[str], int, int, int, Sequence[str]]], episodes: int, cores: Collection[int]
) -> list[tuple[list[Point], str]]:
    """Train and evaluate one run after another, on these cores only; Ctrl-C ends all of them.

    Returns:
        For each run, its checkpoints and the error that ended it, or an empty text.
    """
    os.sched_setaffinity(0, cores)
    found: list[tuple[list[Point], str]] = []
    for run in runs:
        folder, tasks, frames, *_ = run
        points: list[Point] = []
        reason = "interrupted" if found and found[-1][1] == "interrupted" else ""
        try:
            if not reason:
                train(*run)
                evaluate(folder, tasks, frames, episodes, points)
        except KeyboardInterrupt:
            reason = "interrupted"
        except Exception as error:
            traceback.print_exc()
            reason = harness.reason_of(error)
        found.append((points, reason))
    return found


def evaluate(folder: Path, tasks: Sequence[str], frames: int, episodes: int, points: list[Point]) -> None:
    """Append a run's checkpoints up to the first with ``frames`` per task; earlier evaluations are read again."""
    for checkpoint in sorted(path for path in (folder / "checkpoints").iterdir() if path.is_dir()):
        file = checkpoint / f"returns_{episodes}.json"
        if not file.is_file():
            program = [sys.executable, "-m", "mtray.evaluate", str(checkpoint)]
            harness.run_program(
                [*program, "--episodes", str(episodes), "--json", str(file.absolute())], _EVALUATION_SECONDS
            )
        meta, found = (json.loads(path.read_text()) for path in (checkpoint / "meta.json", file))
        returns = {task: found[task]["return_mean"] for task in tasks}
        points.append(Point(meta["frames"] / len(tasks), meta["metrics"]["seconds"] / 60, returns))
        if points[-1].frames >= frames:
            break


def joined(parts: Sequence[Point]) -> Point:
    """Join checkpoints of agents of one task each, one of every agent: all returns, and the sum of the minutes."""
    returns = {task: value for part in parts for task, value in part.returns.items()}
    return Point(statistics.fmean(part.frames for part in parts), sum(part.minutes for part in parts), returns)


def aligned(runs: Sequence[Sequence[Point]], every: int, frames: int) -> list[tuple[Point, ...]]:
    """Return, for each multiple of ``every`` and for ``frames``, every run's first checkpoint with as many frames.

    Checkpoints at the same place may differ in frames: a run that was interrupted has one more, and later ones count
    from it. Those that some run has not reached are left out.
    """
    moments = []
    for wanted in (*range(every, frames, every), frames):
        if runs and all(points and points[-1].frames >= wanted for points in runs):
            moments.append(tuple(next(point for point in points if point.frames >= wanted) for points in runs))
    return moments


def published(tasks: Sequence[str]) -> dict[str, dict[int, dict[str, float]]]:
    """Return agent to frames to task to return, of published agents that were measured on all of the tasks."""
    found: dict[str, dict[int, dict[str, float]]] = {agent: {} for agent in AGENTS}
    with REFERENCE.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["agent"] in found and row["task"] in tasks:
                found[row["agent"]].setdefault(int(row["frames"]), {})[row["task"]] = float(row["return_mean"])
    whole = {
        agent: {frames: returns for frames, returns in sorted(curve.items()) if set(returns) == set(tasks)}
        for agent, curve in found.items()
    }
    return {agent: curve for agent, curve in whole.items() if curve}


def at(points: Sequence[Point], frames: float) -> Point | None:
    """Return the checkpoint closest to ``frames`` per task; None if the run ended well before."""
    if not points or points[-1].frames < _REACHED * frames:
        return None
    return min(points, key=lambda point: abs(point.frames - frames))


def table(
    runs: Mapping[str, Sequence[Sequence[Point]]], tasks: Sequence[str], moments: Sequence[int]
) -> list[dict[str, Any]]:
    """Print the returns of all agents, mtray's first, by task at several numbers of frames; return them as rows."""
    rows = []
    width = max(map(len, tasks)) + 2
    references = published(tasks)
    for frames in moments:
        columns: dict[str, dict[str, list[float]]] = {}
        for name, seeds in runs.items():
            found = [point for points in seeds if (point := at(points, frames)) is not None]
            if not found:
                continue
            columns[name] = {task: [point.returns[task] for point in found] for task in tasks}
            columns[name]["mean"] = [point.mean for point in found]
        for agent, curve in references.items():
            if frames in curve:
                columns[agent] = {task: [curve[frames][task]] for task in tasks}
                columns[agent]["mean"] = [statistics.fmean(curve[frames].values())]
        print(f"\nreturns at {frames:,} frames per task" + "".join(f"{name:>26}" for name in columns))
        for task in (*tasks, "mean"):
            cells = []
            for name, values in columns.items():
                value, low, high = statistics.fmean(values[task]), min(values[task]), max(values[task])
                cells.append(f"{value:.0f}" + (f" ({low:.0f} to {high:.0f})" if name in runs else ""))
                row = {"agent": name, "frames": frames, "task": task, "return": value, "min": low, "max": high}
                rows.append({**row, "seeds": len(values[task]) if name in runs else None})
            print(f"{task:{width}}" + " " * max(0, 23 - width) + "".join(f"{cell:>26}" for cell in cells))
    return rows


def compare(together: Sequence[Sequence[Point]], apart: Sequence[Sequence[Point]], moments: Sequence[int]) -> None:
    """Print the mean return and wall clock of one agent, divided by those of the agents of one task each.

    Both have a curve for each seed, in the same order, empty where it failed.
    """
    print("\none agent of all tasks relative to agents of one task each, by seed")
    for frames in moments:
        every = [(at(ours, frames), at(theirs, frames)) for ours, theirs in zip(together, apart, strict=False)]
        pairs = [(ours, theirs) for ours, theirs in every if ours is not None and theirs is not None]
        returns = ", ".join(f"{ours.mean / theirs.mean:.2f}" for ours, theirs in pairs)
        minutes = ", ".join(f"{ours.minutes / theirs.minutes:.2f}" for ours, theirs in pairs)
        print(f"at {frames:,} frames per task: mean return {returns}; wall clock {minutes}")


def plot(
    runs: Mapping[str, Sequence[Sequence[Point]]], tasks: Sequence[str], every: int, frames: int, file: Path
) -> None:
    """Plot a panel per task and one of the mean: seeds thin, their mean thick, published agents dashed."""
    from matplotlib.figure import Figure

    panels = ["mean", *tasks]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * lines + 0.4), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)

    def of(point: Point, panel: str) -> float:
        return point.mean if panel == "mean" else point.returns[panel]

    for axis, panel in zip(axes, panels, strict=False):
        for color, (name, seeds) in zip(("tab:blue", "tab:orange"), runs.items(), strict=False):
            for points in seeds:
                axis.plot([p.frames for p in points], [of(p, panel) for p in points], color=color, alpha=0.35, lw=1)
            shared = aligned([points for points in seeds if points], every, frames)
            middle = [statistics.fmean(of(point, panel) for point in moment) for moment in shared]
            places = [statistics.fmean(point.frames for point in moment) for moment in shared]
            axis.plot(places, middle, color=color, lw=2, label=name)
        for shade, (agent, curve) in zip(("0.6", "0.4", "0.1"), published(tasks).items(), strict=False):
            shown = {at_frames: returns for at_frames, returns in curve.items() if at_frames <= 1.01 * frames}
            heights = [statistics.fmean(r.values()) if panel == "mean" else r[panel] for r in shown.values()]
            axis.plot(list(shown), heights, color=shade, ls="--", marker="o", ms=3, lw=1, label=agent)
        axis.set_title(panel, fontsize="medium")
        axis.set_ylim(0, 1020)
        axis.set_xlim(0, 1.03 * frames)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    for axis in axes[max(0, len(panels) - columns) : len(panels)]:
        axis.set_xlabel("frames per task")
    figure.suptitle("Return of one agent on all tasks; published agents learn one task each")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=SIX, help="tasks of the one agent")
    parser.add_argument("--frames", type=int, help="per task (100,000, or 3,000 with --quick)")
    parser.add_argument(
        "--every", type=int, help="frames per task between checkpoints (an eighth of all, or half with --quick)"
    )
    parser.add_argument("--seeds", type=int, help="number of seeds: 0, 1, ... (3, or 1 with --quick)")
    parser.add_argument("--episodes", type=int, help="episodes of each evaluation (10, or 1 with --quick)")
    parser.add_argument("--at-once", type=int, default=1, help="number of runs at the same time (1)")
    parser.add_argument("--run-dir", type=Path, help="folder of the runs (runs/learning; temporary with --quick)")
    parser.add_argument(
        "--single",
        type=int,
        metavar="SEEDS",
        help="also train an agent per task, for some seeds (0, or 1 with --quick)",
    )
    parser.add_argument("settings", nargs="*", metavar="-- SETTINGS", help="arguments of mtray.launch")
    options = parser.parse_args()
    tasks = tuple(SIX[:2] if options.quick and options.tasks is SIX else options.tasks)
    frames = options.frames or (3_000 if options.quick else 100_000)
    every = options.every or frames // (2 if options.quick else 8)
    episodes = options.episodes or (1 if options.quick else 10)
    seeds = range(options.seeds or (1 if options.quick else 3))
    single = int(options.quick) if options.single is None else options.single
    quick = ["--learner.warmup-steps", "500", "--learner.updates-per-step", "1"] if options.quick else []
    settings = [*options.settings, *quick]

    def all_runs(folder: Path) -> tuple[dict[str, list[list[Point]]], dict[str, str]]:
        together, apart = f"mtray, {len(tasks)} tasks", f"mtray, {len(tasks)} agents"
        jobs = [(folder / f"seed_{seed}", tasks, frames, every, seed, settings) for seed in seeds]
        for seed in seeds[:single]:
            jobs += [(folder / f"seed_{seed}_{task}", (task,), frames, every, seed, settings) for task in tasks]
        cores, group_count = sorted(os.sched_getaffinity(0)), min(options.at_once, len(jobs))
        shares = [cores[place::group_count] or cores for place in range(group_count)]
        groups = [(jobs[place::group_count], episodes, share) for place, share in enumerate(shares)]
        # Twice as long leaves time for the evaluations.
        limit = 2 * _TRAINING_SECONDS * len(groups[0][0])
        found = harness.in_own_processes(run_all, groups, limit, keeps_partial=True)
        points, reasons = zip(*(found[job % group_count][job // group_count] for job in range(len(jobs))), strict=True)
        left_out = {job[0].name: reason for job, reason in zip(jobs, reasons, strict=True) if reason}
        runs = {together: list(points[: len(seeds)])}
        for first in range(len(seeds), len(jobs), len(tasks)):
            moments = aligned(points[first : first + len(tasks)], every, frames)
            runs.setdefault(apart, []).append([joined(moment) for moment in moments])
        return runs, left_out

    if options.quick and options.run_dir is None:
        with tempfile.TemporaryDirectory() as folder:
            runs, left_out = all_runs(Path(folder))
    else:
        runs, left_out = all_runs(options.run_dir or Path("runs") / "learning")
    origin = harness.introduce()
    # A seed that failed has none; only its place among the curves is kept.
    minutes = {name: [points[-1].minutes for points in seeds_ if points] for name, seeds_ in runs.items()}
    for name, spent in minutes.items():
        print(f"{name}: {', '.join(f'{value:.1f}' for value in spent)} minutes a seed")
    moments = frames // 2, frames
    rows = table(runs, tasks, moments)
    for name, reason in left_out.items():
        print(f"left out: {name}, or its later checkpoints ({reason})")
    if len(runs) == 2:
        together, apart = runs.values()
        compare(together, apart, moments)
    if options.json:
        curves = {name: [[asdict(point) for point in points] for points in seeds_] for name, seeds_ in runs.items()}
        data = {"minutes": minutes, "rows": rows, "curves": curves, "left_out": left_out}
        harness.write(options.json, {**origin, **data})
    if options.plot:
        plot(runs, tasks, every, frames, options.plot)
    harness.finish([points for seeds_ in runs.values() for points in seeds_ if points], left_out)


if __name__ == "__main__":
    main()
