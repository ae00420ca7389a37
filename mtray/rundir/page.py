"""Runs drawn: one HTML page that needs no other file, and the same figures as PNG files.

Enters: run directories. Runs whose settings, given and chosen, differ in their seed only are one curve, the mean of
them, in a band from the lowest to the highest.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtray.rundir.files import damaged, whole_lines
from mtray.rundir.screen import published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points of a curve, at most.
_POINTS = 400
_COLUMNS = 3
_MINUTES = "minutes"
# Waits that are drawn: of this share of the time once.
_LEAST_SHARE = 0.02
# Colours that differ in print too, and by more than their hue (Okabe and Ito 2008, "Color universal design").
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", "-.", ":")
# Events of faults, which are listed on the page. A run without them has "nothing failed".
_FAULTS = {
    "death", "draining", "evaluation_failed", "failure", "rebuilt", "replacement", "restored", "save_failed",
    "set_aside", "skipped", "unreached", "unsaved", "without",
}  # fmt: skip
_MOST_EVENTS = 40
# Settings in which runs of one curve may differ.
_OWN = {"seed", "run_dir", "resume"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15em 1em .15em 0; vertical-align: top; }
tr + tr { border-top: 1px solid #ddd; } img { max-width: 100%; } h2 { margin-top: 2em; }
"""


@dataclass(frozen=True)
class Run:
    """A run's files: settings as given and as chosen, lines of figures, events."""

    name: str
    config: Mapping[str, Any]
    chosen: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]


Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def read_run(run_dir: Path) -> Run:
    """Read a run's files, as far as they are written.

    Raises:
        UsageError: its config.json is missing or damaged.
    """
    with damaged(run_dir / "config.json"):
        described = json.loads((run_dir / "config.json").read_bytes())
        # Earlier versions wrote down less of what they chose.
        config, chosen = {**described["config"]}, {**described.get("chosen", {})}
    lines, events = whole_lines(run_dir / "metrics.jsonl"), whole_lines(run_dir / "events.jsonl")
    return Run(str(run_dir), config, chosen, lines, events)


def write_page(run_dirs: Sequence[Path], totals: Sequence[Sequence[str]], page: Path) -> list[Path]:
    """Write the page and its figures beside it; return their paths.

    Args:
        run_dirs: of the runs.
        totals: rows of text, as `mtray.rundir.report.table` returns them.
        page: the HTML file; ``<name>-returns-minutes.png`` and others are written beside it.

    Raises:
        UsageError: a run's config.json is missing or damaged.
        OSError: a file can't be written.
    """
    groups = _grouped([read_run(path) for path in run_dirs])
    figures = {
        "returns-minutes": ("Returns over time", _draw_returns(groups, _MINUTES, lambda line, _: line["time"] / 60)),
        "returns-frames": (
            "Returns over frames",
            _draw_returns(groups, "frames of the task", lambda line, task: line["tasks"][task]["frames"]),
        ),
        "speed": ("Speed", _draw_speed(groups)),
        "waiting": ("Who waited for whom", _draw_waiting(groups)),
    }
    written, parts = [page], []
    for name, (title, figure) in figures.items():
        file, picture = page.with_name(f"{page.stem}-{name}.png"), io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        file.write_bytes(picture.getvalue())
        written.append(file)
        text = base64.b64encode(picture.getvalue()).decode()
        parts.append(f'<h2>{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{text}">')
    names = ", ".join(map(str, run_dirs))
    page.write_text(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(names)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{html.escape(names)}</h1>\n{_rows(totals)}\n"
        + "\n".join(parts)
        + f"\n<h2>What happened</h2>\n{_rows(_told(groups))}\n</html>\n"
    )
    return written


def _grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the runs of each curve, by the name of the first."""
    groups: dict[str, list[Run]] = {}
    names: dict[str, str] = {}
    for run in runs:
        config = {name: value for name, value in run.config.items() if name not in _OWN}
        key = json.dumps([config, run.chosen], sort_keys=True)
        groups.setdefault(names.setdefault(key, run.name), []).append(run)
    return {name if len(group) == 1 else f"{name} and {len(group) - 1} more": group for name, group in groups.items()}


def _style(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _STYLES[number % len(_STYLES)]}


def _thinned(curve: Sequence[tuple[float, float]]) -> Curve:
    points = np.array(curve[:: max(1, len(curve) // _POINTS)], np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _together(curves: Sequence[Curve]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return places that all curves reach, [n], and each curve's values there, [curves, n]."""
    # Frames go back where a replay was lost, and interpolation needs order.
    curves = [(np.maximum.accumulate(x), y) for x, y in curves]
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.linspace(begin, max(begin, end), _POINTS)
    return places, np.stack([np.interp(places, x, y) for x, y in curves])


def _plot(axis: Axes, group: Sequence[Sequence[tuple[float, float]]], number: int, name: str) -> None:
    """Draw a group's curves as their mean and their range."""
    curves = [_thinned(curve) for curve in group if curve]
    if not curves:
        return
    if len(curves) == 1:
        axis.plot(*curves[0], label=name, **_style(number))
        return
    places, values = _together(curves)
    axis.plot(places, values.mean(0), label=name, **_style(number))
    axis.fill_between(places, values.min(0), values.max(0), color=_style(number)["color"], alpha=0.2, linewidth=0)


def _since_start(run: Run) -> list[Mapping[str, Any]]:
    """Return a run's events, without those of an earlier start in its folder that left no checkpoint."""
    starts = [index for index, event in enumerate(run.events) if event["event"] == "start"]
    return list(run.events[starts[-1] if starts else 0 :])


def _evaluations(run: Run) -> list[Mapping[str, Any]]:
    """Return a run's evaluations, without those of policies that a resume from an older checkpoint has left."""
    found: list[Mapping[str, Any]] = []
    for event in _since_start(run):
        if event["event"] == "resume":
            found = [each for each in found if each["frames"] <= event["frames"]]
        elif event["event"] == "evaluated":
            found.append(event)
    return found


def _evaluated(group: Sequence[Run], task: str, label: str) -> list[tuple[float, float]]:
    """Return places and mean returns of evaluations; places are minutes, or the task's frames in the policy."""
    points = []
    for run in group:
        if not run.lines:
            continue
        # Events count the frames of all tasks. Counts go back where a replay was lost, and interpolation needs order.
        counts = [(line["frames"], line["tasks"].get(task, {}).get("frames", 0)) for line in run.lines]
        totals, frames = np.maximum.accumulate(counts).T
        for event in _evaluations(run):
            if task in event["returns"]:
                minutes = event["of_time"] / 60
                place = minutes if label == _MINUTES else float(np.interp(event["frames"], totals, frames))
                points.append((place, float(np.mean(event["returns"][task]))))
    return points


def _mark(axis: Axes, points: Sequence[tuple[float, float]], number: int) -> None:
    if points:
        axis.plot(*zip(*points, strict=True), "o", markersize=4, markerfacecolor="white", color=_style(number)["color"])


def _axes(count: int, height: float, columns: int = _COLUMNS) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(columns, max(1, count))
    rows = -(-max(1, count) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.6, height * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes[:count]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    return figure, axes[:count]


def _legend(figure: Figure, axes: Sequence[Axes], groups: Mapping[str, Any]) -> None:
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found and len(groups) > 1:
        figure.legend(found.values(), found.keys(), loc="outside lower center", frameon=False)


def _draw_returns(
    groups: Mapping[str, Sequence[Run]], label: str, place: Callable[[Mapping[str, Any], str], float]
) -> Figure:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    tasks = dict.fromkeys(
        task for group in groups.values() for run in group for line in run.lines[-1:] for task in line["tasks"]
    )
    figure, axes = _axes(len(tasks), 2.6)
    for axis, task in zip(axes, tasks, strict=True):
        for number, (name, group) in enumerate(groups.items()):
            curves = [
                [
                    (place(line, task), line["tasks"][task]["return_mean"])
                    for line in run.lines
                    if task in line["tasks"] and line["tasks"][task]["return_mean"] is not None
                ]
                for run in group
            ]
            _plot(axis, curves, number, name)
            _mark(axis, _evaluated(group, task, label), number)
        best = published().get(task)
        if best is not None:
            axis.axhline(best["return"], color="grey", linewidth=1, linestyle=(0, (1, 2)))
            note = f"{best['agent']}, {best['frames']:,} frames"
            axis.annotate(note, (1, best["return"]), (0, 2), xycoords=("axes fraction", "data"), fontsize="x-small",
                          textcoords="offset points", ha="right", va="bottom", color="dimgrey")  # fmt: skip
        axis.set_title(task, loc="left", fontsize="medium")
        axis.set_xlabel(label)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes:
        axes[0].set_ylabel("return (circles: evaluated)")
    _legend(figure, axes, groups)
    return figure


def _draw_speed(groups: Mapping[str, Sequence[Run]]) -> Figure:
    figure, axes = _axes(2, 2.6)
    for axis, figure_of in zip(axes, ("frames_per_second", "updates_per_second"), strict=True):
        for number, (name, group) in enumerate(groups.items()):
            _plot(axis, [[(line["time"] / 60, line[figure_of]) for line in run.lines] for run in group], number, name)
        axis.set_title(figure_of.replace("_per_", "/").replace("second", "s"), loc="left", fontsize="medium")
        axis.set_xlabel("minutes")
        axis.set_ylim(bottom=0)
    _legend(figure, axes, groups)
    return figure


def _draw_waiting(groups: Mapping[str, Sequence[Run]]) -> Figure:
    """Stack the shares of time that each side waited, by reason, in the first run of each group."""
    firsts = [(name, group[0]) for name, group in groups.items()]
    figure, axes = _axes(2 * len(firsts), 2.2, columns=2)
    sides = [(name, run, side) for name, run in firsts for side in ("learner", "collectors")]
    for axis, (name, run, side) in zip(axes, sides, strict=True):
        lines = list(run.lines[:: max(1, len(run.lines) // _POINTS)])
        reasons = list(dict.fromkeys(reason for line in lines for reason in line.get("waiting", {}).get(side, {})))
        shares = {
            reason: [line.get("waiting", {}).get(side, {}).get(reason, 0.0) for line in lines] for reason in reasons
        }
        shares = {reason: values for reason, values in shares.items() if max(values) >= _LEAST_SHARE}
        if shares:
            minutes = [line["time"] / 60 for line in lines]
            axis.stackplot(minutes, list(shares.values()), labels=list(shares), colors=_COLOURS)
            axis.legend(fontsize="x-small", loc="upper right")
        else:
            axis.text(0.5, 0.5, "hardly at all", ha="center", color="dimgrey", transform=axis.transAxes)
        title = f"share of the {side}'{'s' if side == 'learner' else ''} time spent waiting for"
        axis.set_title(title + (f"\n{name}" if len(firsts) > 1 else ""), loc="left", fontsize="medium")
        axis.set_xlabel("minutes")
        axis.set_ylim(0, 1)
    return figure


def _told(groups: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    rows = [["minute", "run", "event", "of", "cause"]]
    for group in groups.values():
        for run in group:
            told = [event for event in _since_start(run) if event["event"] in _FAULTS]
            if len(told) > _MOST_EVENTS:
                rows.append(["", run.name, f"{len(told) - _MOST_EVENTS} earlier ones", "", ""])
            rows += [
                [
                    f"{event['time'] / 60:.1f}",
                    run.name,
                    event["event"],
                    ", ".join(str(event[name]) for name in ("part", "task") if name in event),
                    str(event.get("cause", "")),
                ]
                for event in told[-_MOST_EVENTS:]
            ]
            if not told:
                rows.append(["", run.name, "nothing failed", "", ""])
    return rows


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as a table; the first is its head."""
    lines = []
    for number, row in enumerate(rows):
        cell = "td" if number else "th"
        lines.append("<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"
