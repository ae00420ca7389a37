"""What one agent learns of many tasks, beside published agents that learn one task each.

    python benchmarks/learning.py --json learning.json --plot learning.png

Runs `python -m mtray.launch` with its default settings once per seed, one after another on all cores (or with
``--at-once 2`` side by side, each on half of them), evaluates every checkpoint with the deterministic policy, and
compares with the curves in benchmarks/reference/dmc_returns.csv at equal frames per task. What follows ``--`` goes to
mtray.launch.

Runs stay in ``--run-dir``. When the script is started again, those that have the frames asked for are read, others are
resumed. ``--single 1`` trains an agent per task as well, for one seed, with the same settings, and compares the many
with the one.
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
# Share of a moment's frames that a run's last checkpoint must have to be read as of that moment.
_REACHED = 0.9


@dataclass(frozen=True)
class Point:
    """One checkpoint of one run.

    Attributes:
        frames: per task.
        minutes: of wall clock that the run had taken, without those of evaluation.
        returns: task to the mean undiscounted return of the evaluation's episodes.
    """

    frames: float
    minutes: float
    returns: dict[str, float]

    @property
    def mean(self) -> float:
        """Over the tasks."""
        return statistics.fmean(self.returns.values())


def train(folder: Path, tasks: Sequence[str], frames: int, every: int, seed: int, settings: Sequence[str]) -> None:
    """One run, from where it stands; one that was finished with fewer frames goes on."""
    total = frames * len(tasks)
    # Names are frames, with a number behind where there are several.
    made = [int(checkpoint.name.partition(".")[0]) for checkpoint in (folder / "checkpoints").glob("0*")]
    if max(made, default=0) >= total:
        return
    command = [sys.executable, "-m", "mtray.launch", "--total-frames", str(total)]
    if (folder / "checkpoints" / "latest").is_file():
        command += ["--resume", str(folder)]
    else:
        # A run that ended before its first checkpoint has nothing to go on from.
        shutil.rmtree(folder, ignore_errors=True)
        command += ["--tasks", *tasks, "--seed", str(seed)]
        command += ["--run.checkpoint-frames", str(every * len(tasks)), "--run.keep-checkpoints", "1000"]
        command += ["--run-dir", str(folder), *settings]
    harness.run_program(command, _TRAINING_SECONDS)


def run_all(
    runs: Sequence[tuple[Path, Sequence[str], int, int, int, Sequence[str]]], episodes: int, cores: Collection[int]
) -> list[tuple[list[Point], str]]:
    """Train and evaluate one after another, on these cores only.

    Returns:
        Per run its checkpoints and the reason why there are no more of them, empty if there is none. Ctrl-C ends all.
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
    """Append a run's checkpoints until one has so many frames per task; read those evaluated before."""
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
    """Agents of one task each as if they were one."""
    returns = {task: value for part in parts for task, value in part.returns.items()}
    return Point(parts[0].frames, sum(part.minutes for part in parts), returns)


def published(tasks: Sequence[str]) -> dict[str, dict[int, dict[str, float]]]:
    """Agent to frames to task to return, where an agent was measured on all of the tasks."""
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
    """Return the checkpoint nearest to so many frames per task; None if a run ended well before them."""
    if not points or points[-1].frames < _REACHED * frames:
        return None
    return min(points, key=lambda point: abs(point.frames - frames))


def table(
    runs: Mapping[str, Sequence[Sequence[Point]]], tasks: Sequence[str], moments: Sequence[int]
) -> list[dict[str, Any]]:
    """Print agents, ours first, at some moments, task by task; give the same as rows."""
    rows = []
    width = max(map(len, tasks)) + 2
    known = published(tasks)
    for frames in moments:
        columns: dict[str, dict[str, list[float]]] = {}
        for name, seeds in runs.items():
            found = [point for points in seeds if (point := at(points, frames)) is not None]
            if not found:
                continue
            columns[name] = {task: [point.returns[task] for point in found] for task in tasks}
            columns[name]["mean"] = [point.mean for point in found]
        for agent, curve in known.items():
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
    """Print one agent's mean return and wall clock as shares of those of the agents of one task each."""
    print("\none agent of all tasks, as a share of agents of one each, seed by seed")
    for frames in moments:
        every = [(at(ours, frames), at(theirs, frames)) for ours, theirs in zip(together, apart, strict=False)]
        pairs = [(ours, theirs) for ours, theirs in every if ours is not None and theirs is not None]
        returns = ", ".join(f"{ours.mean / theirs.mean:.2f}" for ours, theirs in pairs)
        minutes = ", ".join(f"{ours.minutes / theirs.minutes:.2f}" for ours, theirs in pairs)
        print(f"at {frames:,} frames per task: mean return {returns}; wall clock {minutes}")


def plot(runs: Mapping[str, Sequence[Sequence[Point]]], tasks: Sequence[str], frames: int, file: Path) -> None:
    """A panel per task and one of their mean: each seed thin, their mean thick, published agents dashed."""
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
            shared = list(zip(*seeds, strict=False))
            middle = [statistics.fmean(of(point, panel) for point in moment) for moment in shared]
            axis.plot([moment[0].frames for moment in shared], middle, color=color, lw=2, label=name)
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
    parser.add_argument("--tasks", nargs="+", default=SIX, help="of the one agent")
    parser.add_argument("--frames", type=int, help="per task (100,000, or 3,000 with --quick)")
    parser.add_argument(
        "--every", type=int, help="frames per task between checkpoints (an eighth of all, or half with --quick)"
    )
    parser.add_argument("--seeds", type=int, help="how many: 0, 1, ... (3, or 1 with --quick)")
    parser.add_argument("--episodes", type=int, help="of each evaluation (10, or 1 with --quick)")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--run-dir", type=Path, help="where the runs stay (runs/learning, or nowhere with --quick)")
    parser.add_argument(
        "--single", type=int, metavar="SEEDS", help="an agent per task as well, for so many (0, or 1 with --quick)"
    )
    parser.add_argument("settings", nargs="*", metavar="-- SETTINGS", help="for mtray.launch")
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
        cores, side_by_side = sorted(os.sched_getaffinity(0)), min(options.at_once, len(jobs))
        shares = [cores[place::side_by_side] or cores for place in range(side_by_side)]
        groups = [(jobs[place::side_by_side], episodes, share) for place, share in enumerate(shares)]
        # Twice as long leaves time for the evaluations.
        limit = 2 * _TRAINING_SECONDS * len(groups[0][0])
        found = harness.in_own_processes(run_all, groups, limit, keeps_partial=True)
        points, reasons = zip(
            *(found[job % side_by_side][job // side_by_side] for job in range(len(jobs))), strict=True
        )
        left_out = {job[0].name: reason for job, reason in zip(jobs, reasons, strict=True) if reason}
        runs = {together: [curve for curve in points[: len(seeds)] if curve]}
        for first in range(len(seeds), len(jobs), len(tasks)):
            moments = zip(*points[first : first + len(tasks)], strict=False)
            if curve := [joined(moment) for moment in moments]:
                runs.setdefault(apart, []).append(curve)
        return runs, left_out

    if options.quick and options.run_dir is None:
        with tempfile.TemporaryDirectory() as folder:
            runs, left_out = all_runs(Path(folder))
    else:
        runs, left_out = all_runs(options.run_dir or Path("runs") / "learning")
    origin = harness.introduce()
    minutes = {name: [points[-1].minutes for points in points_of] for name, points_of in runs.items()}
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
        plot(runs, tasks, frames, options.plot)


if __name__ == "__main__":
    main()
