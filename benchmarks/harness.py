"""Shared parts of the benchmark scripts: arguments, child processes, interleaved repeats, table and JSON.

Enters: contenders, callables that return one rate each. Leaves: rows with the median, minimum and maximum of a
contender's rates and the ratio of its median to a baseline's. The speed of a shared machine drifts over minutes, so
contenders take turns (A B C A B C ...), and only ratios within one run are meaningful. A contender that fails is left
out with its reason, and the exit code is 1; earlier measurements are kept, also after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

_PACKAGES = ("mtray", "torch", "torchrl", "tensordict", "ray", "dm_control", "mujoco", "numpy", "envpool")
# One thread per process, because there is a process per core. Nothing is rendered.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "disabled", "RL_LOGGING_LEVEL": "ERROR"}
_CLOSE_SECONDS = 20.0
_LOG_CHARACTERS = 4000
_INTERRUPTED = "not measured before Ctrl-C"
# The one reason to be missing that is no failure.
NO_PEERS = "needs --peers DIR"
# Limit of --quick (about two minutes) without imports and report.
QUICK_SECONDS = 110.0

Rates = Mapping[str, Sequence[float]]
T = TypeVar("T")


@dataclass
class Measured:
    """Result of `interleave`.

    Attributes:
        rates: contender to one rate per round; contenders without a rate are missing.
        left_out: contender to the reason why it is missing, or missing from later rounds.
        is_interrupted: whether Ctrl-C ended the rounds.
    """

    rates: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    is_interrupted: bool = False

    def attempt(self, name: str, measure: Callable[[], T]) -> T | None:
        """Return the result of a measurement beside the rounds; None if it failed or after Ctrl-C, which is noted."""
        try:
            if not self.is_interrupted:
                return measure()
        except KeyboardInterrupt:
            self.is_interrupted = True
        except Exception as error:
            traceback.print_exc()
            self.left_out[name] = reason_of(error)
        if self.is_interrupted:
            self.left_out[name] = _INTERRUPTED
        return None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: the contender.
        value: median of its repeats.
        unit: unit of value, min and max.
        baseline: name of the contender to compare with.
        ratio: value divided by the baseline's median; None if the baseline was left out or its median is 0.
        min: minimum of the repeats.
        max: maximum of the repeats.
        repeats: number of repeats.
    """

    name: str
    value: float
    unit: str
    baseline: str
    ratio: float | None
    min: float
    max: float
    repeats: int


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every script; from now on SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Without abbreviations, so that `_command` recognises the file arguments.
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="short windows and few repeats: about two minutes in all")
    return _add_files(parser)


def _add_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios there (needs matplotlib)")
    return parser


def add_peers(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the argument of scripts that compare with peers in separate virtual environments."""
    parser.add_argument("--peers", type=Path, metavar="DIR", help="install and keep the peers' environments there")
    return parser


def in_own_processes(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    timeout_seconds: float = 300.0,
    *,
    keeps_partial: bool = False,
) -> list[Any]:
    """Call a function once per tuple of arguments, each in a new process, all in parallel; return the results.

    The processes have ended when this returns or raises; they must end their own children in a ``finally``.

    Args:
        function: the function to call.
        arguments: arguments of each call.
        timeout_seconds: limit of all calls together.
        keeps_partial: whether the function handles KeyboardInterrupt by returning a partial result. Ctrl-C is then
            forwarded to it, and its results are returned.

    Raises:
        RuntimeError: a call failed; the message is its traceback.
        TimeoutError: a call took too long.
        KeyboardInterrupt: Ctrl-C, and not every process returned a partial result.
    """
    os.environ.update(_ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    processes, pending = [], {}
    results: list[Any] = [None] * len(arguments)
    before = signal.getsignal(signal.SIGINT)
    deadline = time.monotonic() + timeout_seconds
    try:
        for index, args in enumerate(arguments):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_call, args=(sender, function, args, keeps_partial))
            process.start()
            sender.close()
            processes.append(process)
            pending[receiver] = index
        while pending:
            try:
                ready = connection.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            except KeyboardInterrupt:
                if not keeps_partial:
                    raise
                keeps_partial = False
                # A second signal, as timeout(1) sends, must not lose the results; the deadline bounds the wait.
                before = signal.signal(signal.SIGINT, signal.SIG_IGN)
                # The function may have to wait for a program to end.
                deadline = time.monotonic() + 3 * _CLOSE_SECONDS
                for process in processes:
                    if process.pid is not None:
                        os.kill(process.pid, signal.SIGINT)
                continue
            if not ready:
                raise TimeoutError(f"{function.__name__} took more than {timeout_seconds:g} seconds")
            for receiver in ready:
                index = pending.pop(receiver)
                results[index] = _receive(receiver, function.__name__)
        for process in processes:
            process.join(_CLOSE_SECONDS)
    finally:
        signal.signal(signal.SIGINT, before)
        with _undisturbed():
            # SIGINT first, so that context managers end the process's own children.
            for process in processes:
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, signal.SIGINT)
            for process in processes:
                process.join(_CLOSE_SECONDS)
                process.kill()
                process.join()
    return results


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM while processes are ended: a second one, as timeout(1) sends, would leave them."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_program(
    command: Sequence[str], timeout_seconds: float = 300.0, environment: Mapping[str, str] = _ENVIRONMENT
) -> str:
    """Run a program in a new session, with this folder on its module path; return its stdout.

    All processes of the session have ended when this returns or raises.

    Args:
        command: the program and its arguments.
        timeout_seconds: limit of its time.
        environment: what it has beside this process's; by default one thread, as where there is a process per core.

    Raises:
        RuntimeError: it failed; the message has the end of its stderr.
        TimeoutError: it took too long.
    """
    variables = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).absolute().parent)}
    # Files, because orphaned processes could keep a pipe open.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as logged:
        process = subprocess.Popen(command, stdout=printed, stderr=logged, env=variables, start_new_session=True)
        try:
            code = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{' '.join(command)} took more than {timeout_seconds:g} seconds") from None
        finally:
            with _undisturbed():
                # SIGINT first, so that context managers end its children.
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_CLOSE_SECONDS)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed.seek(0)
        logged.seek(0)
        if code:
            raise RuntimeError(f"{' '.join(command)} failed:\n{logged.read()[-_LOG_CHARACTERS:]}")
        return printed.read()


def _exit(*_: Any) -> None:
    sys.exit(1)


def _call(
    sender: connection.Connection, function: Callable[..., Any], args: tuple[Any, ...], keeps_partial: bool
) -> None:
    # In a new session, because Ctrl-C of the terminal followed by the parent's signal would interrupt the cleanup.
    # SIGINT, because Ray handles SIGTERM itself.
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler if keeps_partial else _exit)
    try:
        answer = (True, function(*args))
    except Exception:
        answer = (False, traceback.format_exc())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sender.send(answer)


def _receive(receiver: connection.Connection, name: str) -> Any:
    try:
        done, value = receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process of {name} died") from None
    if not done:
        raise RuntimeError(f"{name} failed:\n{value}")
    return value


def interleave(
    contenders: Mapping[str, Callable[[], float]], repeats: int, budget_seconds: float = float("inf")
) -> Measured:
    """Measure every contender in turns; progress goes to stderr.

    A contender that raises is left out of later rounds; Ctrl-C ends the rounds.

    Args:
        contenders: name to a callable that returns its rate.
        repeats: largest number of rounds.
        budget_seconds: limit of all rounds; a round does not begin if it would probably exceed the limit.
    """
    measured = Measured()
    begin = time.monotonic()
    try:
        for done in range(repeats):
            if done and (time.monotonic() - begin) * (done + 1) / done > budget_seconds:
                break
            for name, measure in contenders.items():
                if name not in measured.left_out:
                    _measure(name, measure, measured, f"{done + 1}/{repeats}")
    except KeyboardInterrupt:
        measured.is_interrupted = True
        for name in contenders:
            if name not in measured.rates:
                measured.left_out.setdefault(name, _INTERRUPTED)
    return measured


def _measure(name: str, measure: Callable[[], float], measured: Measured, round_text: str) -> None:
    try:
        rate = measure()
    except Exception as error:
        traceback.print_exc()
        measured.left_out[name] = f"round {round_text}: {reason_of(error)}"
        return
    measured.rates.setdefault(name, []).append(rate)
    sys.stderr.write(f"{round_text} {name}: {rate:,.0f}\n")


def reason_of(error: BaseException) -> str:
    """Return an error as one line: the last line of its text, which may be a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def compare(rates: Rates, baseline: str, names: Sequence[str], unit: str) -> list[Row]:
    """Return the rows of the contenders that have rates, compared with one baseline."""
    reference = statistics.median(rates[baseline]) if rates.get(baseline) else None
    rows = []
    for name in names:
        if values := rates.get(name):
            value = statistics.median(values)
            ratio = value / reference if reference else None
            rows.append(Row(name, value, unit, baseline, ratio, min(values), max(values), len(values)))
    return rows


def report(
    rows: Sequence[Row],
    file: Path | None,
    left_out: Mapping[str, str],
    versions: Mapping[str, str] | None = None,
) -> None:
    """Print machine, versions, rows and missing contenders; write them to a JSON file if one is given.

    Args:
        rows: the table.
        file: JSON file.
        left_out: contender to the reason why it is missing, or missing from later rounds.
        versions: versions of packages in other environments.
    """
    origin = introduce(versions)
    if rows:
        print(f"medians of up to {max(row.repeats for row in rows)} interleaved repeats")
    width = max([24, *(len(row.name) + 2 for row in rows)])
    unit = ""
    for row in rows:
        if row.unit != unit:
            unit = row.unit
            print(f"\n{unit}\n{'':{width}}{'median':>10}{'min':>10}{'max':>10}{'ratio':>8}  of")
        figures = "".join(f"{_short(value):>10}" for value in (row.value, row.min, row.max))
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        print(f"{row.name:{width}}{figures}{ratio:>8}  {row.baseline}")
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})")
    if file is not None:
        write(file, {**origin, "rows": [asdict(row) for row in rows], "left_out": dict(left_out)})


def finish(measured: Sized, left_out: Mapping[str, str]) -> None:
    """End a script: with exit code 1 if nothing was measured, or something is missing that did not need --peers.

    Args:
        measured: rows or other results.
        left_out: as in `report`.
    """
    if not measured or any(reason != NO_PEERS for reason in left_out.values()):
        raise SystemExit(1)


def introduce(versions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Print the machine and the versions; return them with the command, the head of a results file."""
    found, versions = _machine(), {**_versions(), **(versions or {})}
    print(f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    return {"machine": found, "versions": versions, "command": _command()}


def write(file: Path, data: Mapping[str, Any]) -> None:
    """Write results as JSON."""
    file.write_text(json.dumps(data, indent=1) + "\n")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(rows: Sequence[Row], file: Path, title: str, grey: Collection[str] = ()) -> None:
    """Plot each row's ratio as a bar with the range of its repeats; a panel per baseline.

    Args:
        rows: rows of `compare`; the baseline's own row is not drawn.
        file: image file; its suffix is the format.
        title: title of the figure.
        grey: names of rows that are drawn in grey: the peers.
    """
    from matplotlib.figure import Figure

    groups: dict[str, list[tuple[Row, float]]] = {}
    for row in rows:
        if row.name != row.baseline and row.ratio is not None:
            groups.setdefault(row.baseline, []).append((row, row.ratio))
    if not groups:
        sys.stderr.write(f"{file} is not drawn: there is no ratio to draw\n")
        return
    heights = [0.3 * len(group) + 0.7 for group in groups.values()]
    figure = Figure(figsize=(8, 0.6 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(groups), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (baseline, group) in zip(axes, groups.items(), strict=True):
        ratios = [ratio for _, ratio in group]
        # The range does not include the baseline's variation.
        low = [ratio * (1 - row.min / row.value) for row, ratio in group]
        high = [ratio * (row.max / row.value - 1) for row, ratio in group]
        colors = ["silver" if row.name in grey else "tab:blue" for row, _ in group]
        axis.barh([row.name for row, _ in group], ratios, xerr=(low, high), color=colors, ecolor="black", capsize=2)
        for index, ratio in enumerate(ratios):
            axis.annotate(
                f"{ratio:.2f}",
                (ratio + high[index], index),
                (4, 0),
                textcoords="offset points",
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        axis.axvline(1.0, color="black", linewidth=1, zorder=0)
        axis.set_xlim(0, 1.1 * max(1.0, *(ratio + more for ratio, more in zip(ratios, high, strict=True))))
        axis.invert_yaxis()
        axis.set_title(f"of {baseline}", loc="left", fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("ratio of medians, with the range of the repeats")
    figure.suptitle(title)
    figure.savefig(file, dpi=120)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _machine() -> dict[str, Any]:
    # Without host name and paths, because results are published.
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": cores(), "memory_gib": round(memory / 2**30)}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _command() -> str:
    # Without paths, because results are published.
    paths_only = add_peers(_add_files(argparse.ArgumentParser(add_help=False, allow_abbrev=False)))
    paths_only.add_argument("--run-dir")
    paths, rest = paths_only.parse_known_args()
    rest += ["--peers", "DIR"] if paths.peers else []
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *rest])
