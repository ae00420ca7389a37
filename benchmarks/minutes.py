"""Minutes to 0.8 of a published return: one agent on six tasks, against SBX's soft actor-critic on one task at a time.

    python benchmarks/minutes.py --peers DIR --json minutes.json --plot minutes.png

The published returns are SimBa's after 100,000 frames (benchmarks/reference/dmc_returns.csv). mtray learns all tasks in
one run, with its default settings: its figure is the minute at which the last task is there. SBX, the fastest on CPUs
of those that are widely used, learns them one after another, with its documented settings, for at most 15 minutes each;
a task that is not there by then counts as 15. Both have the whole machine. mtray's minutes count from the command,
SBX's from the end of its imports, in its favour. The return is the mean of the newest training episodes: of 20 for
mtray, of 3 for SBX.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import harness
from peers.venvs import SBX

TASKS = ("cartpole-balance", "cartpole-swingup", "reacher-easy", "walker-stand", "walker-walk", "cheetah-run")
QUICK = TASKS[:1]
SHARE, FRAMES, AGENT = 0.8, "100000", "SimBa"
MOST_MINUTES, QUICK_MINUTES = 15.0, 1.0
_REFERENCE = Path(__file__).parent / "reference" / "dmc_returns.csv"
# To start and to end, beside the minutes.
_END_SECONDS = 300.0

# Minute and return of each task.
Curves = dict[str, list[tuple[float, float]]]


def targets(tasks: Sequence[str]) -> dict[str, float]:
    """Return the return that each task is to reach."""
    with _REFERENCE.open() as file:
        published = {
            row["task"]: float(row["return_mean"])
            for row in csv.DictReader(file)
            if (row["agent"], row["frames"]) == (AGENT, FRAMES)
        }
    return {task: SHARE * published[task] for task in tasks}


def reached(curve: Sequence[tuple[float, float]], target: float, most: float) -> float:
    """Return the minute at which a curve reaches its target; ``most`` if it never does before."""
    return next((minute for minute, value in curve if value >= target and minute <= most), most)


def ours(goals: Mapping[str, float], most: float, seed: int) -> Curves:
    """Learn all tasks in one run, until all are there or the time is over.

    Raises:
        RuntimeError: the run failed.
        TimeoutError: it did not end.
    """
    curves: Curves = {task: [] for task in goals}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "mtray.launch", "--tasks", *goals, "--workers", "8", "--run-dir", str(run_dir)]
        command += ["--total-minutes", str(most), "--replay.no-save", "--seed", str(seed), "--run.progress", "none"]
        began, read = time.time(), 0
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                while process.poll() is None:
                    time.sleep(1)
                    read = _read(run_dir / "metrics.jsonl", read, began, curves)
                    is_there = all(reached(curves[task], goal, most) < most for task, goal in goals.items())
                    if is_there:
                        process.send_signal(signal.SIGINT)
                    if is_there or time.time() > began + 60 * most:
                        process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"mtray.launch has not ended within {_END_SECONDS:g} seconds") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise RuntimeError(f"mtray.launch ended with exit code {process.returncode}")
    return curves


def _read(path: Path, read: int, began: float, curves: Curves) -> int:
    """Add the returns of lines that were written since; return how many bytes are read."""
    if not path.exists():
        return read
    with path.open("rb") as file:
        file.seek(read)
        whole = file.read().rpartition(b"\n")[0]
    # By this process's clock: the run's begins when its programs are imported.
    minute = (time.time() - began) / 60
    for text in whole.splitlines():
        for task, figures in json.loads(text)["tasks"].items():
            if figures["return_mean"] is not None:
                curves[task].append((minute, figures["return_mean"]))
    return read + len(whole) + bool(whole)


def theirs(goals: Mapping[str, float], most: float, seed: int, folder: Path) -> Curves:
    """Learn one task after another with SBX, which is installed in that folder.

    Raises:
        RuntimeError: it can't be installed, or its program failed.
        TimeoutError: that took too long.
    """
    SBX.make(folder)
    curves: Curves = {}
    for task, goal in goals.items():
        arguments = ("--task", task, "--minutes", str(most), "--target", str(goal), "--seed", str(seed))
        # As many threads as it takes by itself.
        printed = SBX.run(folder, *arguments, timeout_seconds=60 * most + _END_SECONDS, environment={})
        lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        curves[task] = [(line["minute"], line["return"]) for line in lines if "return" in line]
        sys.stderr.write(f"SBX, {task}: {reached(curves[task], goal, most):.1f} minutes to {goal:.0f}\n")
    return curves


def main() -> None:
    """Run the benchmark."""
    parser = harness.add_peers(harness.make_parser(__doc__))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    most, tasks = (QUICK_MINUTES, QUICK) if options.quick else (MOST_MINUTES, TASKS)
    goals = targets(tasks)
    contenders: dict[str, Callable[[], Curves]] = {"mtray": functools.partial(ours, goals, most, options.seed)}
    measured = harness.Measured()
    if options.peers is None:
        measured.left_out["SBX"] = harness.NO_PEERS
    else:
        contenders["SBX"] = functools.partial(theirs, goals, most, options.seed, options.peers)
    found_by = {name: measured.attempt(name, contender) for name, contender in contenders.items()}
    curves = {name: found for name, found in found_by.items() if found is not None}
    left_out = measured.left_out
    origin = harness.introduce(SBX.version if "SBX" in curves else None)
    minutes = {
        name: {task: reached(found[task], goal, most) for task, goal in goals.items()} for name, found in curves.items()
    }
    print(f"\nminutes to {SHARE:g} of {AGENT}'s return after {int(FRAMES):,} frames, at most {most:g}\n")
    print(f"{'':20}{'return':>8}" + "".join(f"{name:>8}" for name in minutes))
    for task, goal in goals.items():
        print(f"{task:20}{goal:8.0f}" + "".join(f"{found[task]:8.1f}" for found in minutes.values()))
    # mtray learns all at once, SBX one after another.
    ways = {"mtray": max, "SBX": sum}
    totals = {name: ways[name](found.values()) for name, found in minutes.items()}
    if len(totals) == 2:
        print(f"{'all':28}{totals['mtray']:8.1f}{totals['SBX']:8.1f}   ratio {totals['SBX'] / totals['mtray']:.1f}")
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})")
    if options.json is not None:
        found = {"goals": goals, "minutes": minutes, "totals": totals, "curves": curves}
        harness.write(options.json, {**origin, **found, "left_out": left_out})
    if options.plot:
        plot(goals, curves, options.plot)
    harness.finish(curves, left_out)


def plot(goals: Mapping[str, float], curves: Mapping[str, Curves], file: Path) -> None:
    """Draw each task's returns over minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5) if len(goals) > 3 else (4 * len(goals), 3), layout="constrained")
    axes = figure.subplots(-(-len(goals) // 3), min(3, len(goals)), squeeze=False).flat
    styles = {"mtray": {"color": "tab:blue"}, "SBX": {"color": "tab:orange", "linestyle": "--"}}
    labels = {"mtray": f"mtray, one agent of {len(goals)} tasks", "SBX": "SBX, this task alone"}
    for axis, (task, goal) in zip(axes, goals.items(), strict=False):
        for name, found in curves.items():
            if found[task]:
                axis.plot(*zip(*found[task], strict=True), label=labels[name], **styles[name])
        axis.axhline(goal, color="grey", linewidth=1, linestyle=":")
        axis.set_title(task, loc="left", fontsize="medium")
        axis.set_xlabel("minutes")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supylabel("return", fontsize="medium")
    handles = {
        text: handle for axis in figure.axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
