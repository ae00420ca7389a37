"""A run whose processes are killed all the time, compared with a calm one: what it lost, and how soon it was back.

    python benchmarks/chaos.py --minutes 10 --json chaos.json --plot chaos.png

Every 40 seconds (10 with --quick) one process is killed with SIGKILL: a collector, a simulator's, the replay's, the
learner's, the evaluator's, or the driver's, which ``--resume auto`` brings back. Then the run's last checkpoint is
compared, row by row, with what the collectors printed of every push that the replay acknowledged: each must be there
once. One may be missing if the driver was killed after it and the run went back to an earlier checkpoint. A calm run of
the same settings, half before and half after, gives the frames per second to compare with.
"""

from __future__ import annotations

import collections
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil

# Numbers in a row of each task: observation, action, reward, flags.
ROW_SIZES = {"cartpole-balance": 8, "cartpole-swingup": 8, "reacher-easy": 10}
SETTINGS = (
    *("--tasks", *ROW_SIZES, "--workers", "4", "--host", "parallel", "--envs-per-task", "4"),
    *("--learner.updates-per-step", "0.25", "--learner.warmup-steps", "500"),
    *("--run.log-seconds", "1", "--run.log-pushes", "--run.checkpoint-seconds", "30", "--total-frames", "1000000000"),
    *("--run.evaluate-every", "0.2", "--run.evaluate-episodes", "2"),
)
# As they appear in a list of processes; a simulator is a child of its collector's fork server.
ROLES = {
    "collector": "ray::Collector",
    "replay": "ray::Replay",
    "learner": "ray::Learner",
    "evaluator": "ray::Evaluator",
}
KINDS = (*ROLES, "simulator", "driver")
# A recovery that takes longer counts as none.
RECOVERY_SECONDS = 60.0
# After the first frames, before rates count.
SETTLING_SECONDS = 5.0
MIB = 2**20


@dataclass
class Kill:
    """One process that was killed.

    Attributes:
        kind: of the process.
        seconds: since the run's first start.
        recovery_seconds: until its successor worked; None if it did not within a minute.
    """

    kind: str
    seconds: float
    recovery_seconds: float | None = None


@dataclass
class Watched:
    """What was seen of a run.

    Attributes:
        lines: seconds since the first start, and a line of metrics.jsonl.
        memory: seconds, and MiB of all processes without the rows of the rings.
        kills: in order.
        exit_code: of the last driver.
    """

    lines: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    exit_code: int | None = None


class Session:
    """One run directory, its drivers one after the other, and what is read of them."""

    def __init__(self, folder: Path) -> None:
        """Start the first driver."""
        self.folder = folder
        self.seen = Watched()
        self._begin = time.monotonic()
        self._metrics = self._events = 0
        self.events: list[tuple[float, dict[str, Any]]] = []
        self._is_over = threading.Event()
        self.start()
        self._reader = threading.Thread(target=self._read_for_ever, daemon=True)
        self._reader.start()

    def start(self) -> None:
        """Start a driver."""
        command = [sys.executable, "-m", "mtray.launch", *SETTINGS, "--run-dir", str(self.folder), "--resume", "auto"]
        with self.folder.with_suffix(".log").open("a") as log:
            self.driver = psutil.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def now(self) -> float:
        """Seconds since the first start."""
        return time.monotonic() - self._begin

    def processes(self) -> list[psutil.Process]:
        """Return the driver and all below it."""
        with contextlib.suppress(psutil.Error):
            return [self.driver, *self.driver.children(recursive=True)]
        return []

    def _read_for_ever(self) -> None:
        while not self._is_over.wait(0.5):
            self._read()
            if int(2 * self.now) % 8 == 0:
                self._weigh()

    def _read(self) -> None:
        self._metrics = self._follow("metrics.jsonl", self._metrics, self.seen.lines)
        self._events = self._follow("events.jsonl", self._events, self.events)

    def _follow(self, name: str, offset: int, entries: list[tuple[float, dict[str, Any]]]) -> int:
        path = self.folder / name
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            # A resumed run cuts off what lies after its checkpoint.
            data = path.read_bytes()[min(offset, size) :]
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.splitlines():
                with contextlib.suppress(ValueError):
                    entries.append((self.now, json.loads(line)))
            return min(offset, size) + len(whole)
        return offset

    def _weigh(self) -> None:
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        if total and self.seen.lines:
            self.seen.memory.append((self.now, (total - self._row_bytes()) / MIB))

    def _row_bytes(self) -> float:
        # Two frames a step; a row more for each rollout's end.
        tasks = self.seen.lines[-1][1]["tasks"]
        return sum(figures["frames"] / 2 * (17 / 16) * 4 * ROW_SIZES[task] for task, figures in tasks.items())

    def kill(self, kind: str) -> None:
        """Kill a process of this kind and wait until its successor works."""
        victim = self._find(kind)
        if victim is None and kind == "evaluator":
            # It comes with the first evaluation.
            return
        if victim is None:
            raise RuntimeError(f"there is no process of the {kind}: {[each.name() for each in self.processes()]}")
        kill = Kill(kind, self.now)
        self.seen.kills.append(kill)
        victim.send_signal(signal.SIGKILL)
        if kind == "driver":
            below = self._left
            self.driver.wait()
            psutil.wait_procs(below, timeout=RECOVERY_SECONDS)
            left = [process for process in below if process.is_running()]
            for process in left:
                # The new driver does not know them.
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if left:
                raise RuntimeError(f"the killed driver left {left}")
            self.start()
        with contextlib.suppress(TimeoutError):
            self._wait_until_back(kill)
            kill.recovery_seconds = self.now - kill.seconds

    def _find(self, kind: str) -> psutil.Process | None:
        self._left = self.processes()[1:]
        if kind == "driver":
            return self.driver
        found = []
        for process in self._left:
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                is_simulator = "forkserver" in line and not process.children() and process.parent() != self.driver
                if is_simulator if kind == "simulator" else line.startswith(ROLES[kind]):
                    found.append(process)
        return random.choice(found) if found else None

    def _wait_until_back(self, kill: Kill) -> None:
        name = {"replay": "the replay", "learner": "the learner"}.get(kill.kind, "collector")
        until = kill.seconds + RECOVERY_SECONDS
        while self.now < until:
            if kill.kind == "driver":
                rates = [line["frames_per_second"] for at, line in self.seen.lines if at > kill.seconds + 1]
                if any(rates):
                    return
            elif kill.kind == "evaluator":
                if any(event["event"] == "evaluated" for at, event in list(self.events) if at > kill.seconds):
                    return
            else:
                after = [event for at, event in list(self.events) if at > kill.seconds]
                told = {event["event"] for event in after if event.get("part", "").startswith(name)}
                if told >= ({"rebuilt"} if kill.kind == "simulator" else {"death", "up"}):
                    return
            if self.driver.poll() is not None:
                raise RuntimeError(f"the driver ended with {self.driver.returncode}; see {self.folder}.log")
            time.sleep(0.1)
        raise TimeoutError

    def stop(self) -> None:
        """Ask the run to save and end, and wait for it."""
        self.driver.send_signal(signal.SIGTERM)
        try:
            self.seen.exit_code = self.driver.wait(timeout=120)
        except psutil.TimeoutExpired:
            self.end()
        self._is_over.set()
        self._reader.join()
        self._read()

    def end(self) -> None:
        """Kill whatever is left."""
        self._is_over.set()
        for process in reversed(self.processes()):
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def session(folder: Path) -> Iterator[Session]:
    """Run until the block ends; no process is left."""
    running = Session(folder)
    try:
        deadline = time.monotonic() + 120
        while not any(line["frames_per_second"] for _, line in running.seen.lines):
            if running.driver.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run did not start: {folder.with_suffix('.log').read_text()[-500:]}")
            time.sleep(0.2)
        yield running
    finally:
        running.end()


def calm(folder: Path, seconds: float) -> Watched:
    """Run without faults."""
    with session(folder) as running:
        time.sleep(seconds)
        running.stop()
        return running.seen


def chaos(folder: Path, seconds: float, every: float, seed: int) -> Watched:
    """Kill a process now and then; each kind about equally often."""
    random.seed(seed)
    kinds: list[str] = []
    with session(folder) as running:
        until = running.now + seconds
        while running.now + every < until:
            time.sleep(every)
            if not kinds:
                kinds = random.sample(KINDS, len(KINDS))
            running.kill(kinds.pop())
            for kill in running.seen.kills[-1:]:
                print(f"{running.now:5.0f} s: {kill}", file=sys.stderr)
        time.sleep(max(0.0, until - running.now))
        running.stop()
        return running.seen


def is_recovering(seen: Watched, at: float) -> bool:
    """Return whether this second lies between a kill and two (of a driver, ten) seconds after its recovery."""
    return any(
        kill.seconds
        <= at
        <= kill.seconds + (kill.recovery_seconds or RECOVERY_SECONDS) + (10 if kill.kind == "driver" else 2)
        for kill in seen.kills
    )


def rates(seen: Watched) -> list[float]:
    """Return frames per second of each line outside the time between a kill and its recovery."""
    first = next(at for at, line in seen.lines if line["frames_per_second"]) + SETTLING_SECONDS
    return [line["frames_per_second"] for at, line in seen.lines if at > first and not is_recovering(seen, at)]


def slope(seen: Watched) -> float:
    """Return the slope of memory in MiB per minute, without the first half minute, recoveries and the end."""
    first, last = seen.lines[0][0] + 30, seen.lines[-1][0] - 5
    late = [(at / 60, value) for at, value in seen.memory if first < at < last and not is_recovering(seen, at)]
    return float(np.polyfit(*zip(*late, strict=True), 1)[0]) if len(late) > 2 else float("nan")


def audit(folder: Path) -> dict[str, int]:
    """Compare the newest checkpoint with what the collectors printed.

    Returns:
        ``acknowledged`` pushes of a task; those of them that are ``present``, ``doubled``, ``rolled_back`` (missing at
        the end of a collector's pushes, in a run whose driver was killed) and ``lost`` (missing otherwise).
    """
    from mtray.rundir.checkpoints import checkpoint

    saved = checkpoint.read(checkpoint.latest(folder))
    rows = {task: np.concatenate([chunk.load() for chunk in chunks]) for task, chunks in saved.rows.items()}
    count_blocks = {task: _block_counter(held) for task, held in rows.items()}
    pushes: dict[str, dict[int, Mapping[str, Sequence[int]]]] = collections.defaultdict(dict)
    for path in (folder / "logs").glob("collector-*.log"):
        for line in path.read_text().splitlines():
            if line.startswith('{"acknowledged"'):
                entry = json.loads(line)
                pushes[entry["source"]][entry["acknowledged"]] = entry["rows"]
    counts = collections.Counter(acknowledged=0, present=0, doubled=0, rolled_back=0, lost=0)
    last_run = _last_run(folder)
    for source, numbered in pushes.items():
        missing = []
        for number in sorted(numbered):
            for task, (length, checksum) in numbered[number].items():
                found = count_blocks[task](length, checksum)
                counts["acknowledged"] += 1
                counts["present"] += found >= 1
                counts["doubled"] += found > 1
                if not found:
                    missing.append(number)
        # A driver that was killed goes back to a checkpoint: what came after it is missing, from some push on.
        is_tail = not missing or sorted(set(missing)) == [n for n in sorted(numbered) if n >= min(missing)]
        is_last = source.partition("/")[0] == last_run
        counts["rolled_back" if is_tail and not is_last else "lost"] += len(missing)
    return dict(counts)


def _block_counter(rows: Any) -> Callable[[int, int], int]:
    """Return a function of a length and a checksum that counts the blocks of rows that have them."""
    # A push begins behind the row without a transition that ended the one before.
    ends = np.flatnonzero((rows[:, -1].view(np.int32) & 1) == 0) + 1
    begins = [0, *ends.tolist()]
    found: dict[int, collections.Counter[int]] = {}

    def count(length: int, checksum: int) -> int:
        if length not in found:
            found[length] = collections.Counter(
                zlib.crc32(rows[begin : begin + length]) for begin in begins if begin + length <= len(rows)
            )
        return found[length][checksum]

    return count


def _last_run(folder: Path) -> str:
    """Return the prefix of the sources of the last driver's collectors: that of the newest log with a push."""
    logs = (folder / "logs").glob("collector-*.log")
    for path in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True):
        for line in path.read_text().splitlines():
            if line.startswith('{"acknowledged"'):
                return str(json.loads(line)["source"]).partition("/")[0]
    return ""


def known(value: float) -> float | None:
    """Return a figure as JSON has it: null if it could not be measured."""
    return value if np.isfinite(value) else None


def mean_return(seen: Watched, at: float) -> float:
    """Return the mean over tasks of the training returns in the last line before a share of the run."""
    lines = [line for _, line in seen.lines]
    means = [figures["return_mean"] for figures in lines[int(at * (len(lines) - 1))]["tasks"].values()]
    made = [value for value in means if value is not None]
    return statistics.fmean(made) if made else float("nan")


def plot(seen: Watched, quiet: float, file: Path) -> None:
    """Plot frames per second and memory over time, with the kills."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    times = [at / 60 for at, _ in seen.lines]
    top.plot(times, [line["frames_per_second"] for _, line in seen.lines], lw=1)
    top.axhline(quiet, color="black", ls="--", lw=1, label="median of the calm run")
    bottom.plot([at / 60 for at, _ in seen.memory], [value for _, value in seen.memory], lw=1)
    colors = {kind: f"C{index}" for index, kind in enumerate(KINDS, 1)}
    named = set()
    for kill in seen.kills:
        for axis in (top, bottom):
            label = kill.kind if axis is top and kill.kind not in named else None
            end = (kill.seconds + (kill.recovery_seconds or RECOVERY_SECONDS)) / 60
            axis.axvspan(kill.seconds / 60, end, color=colors[kill.kind], alpha=0.3, lw=0, label=label)
        named.add(kill.kind)
    top.set_ylabel("frames per second")
    bottom.set_ylabel("MiB of memory without the rows")
    bottom.set_xlabel("minutes")
    bottom.set_ylim(0)
    top.set_ylim(0)
    figure.legend(loc="outside lower center", ncols=6)
    figure.suptitle("A run whose processes are killed: from each kill to its recovery in colour")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--minutes", type=float, help="of the run with faults (10, or 0.5 with --quick)")
    parser.add_argument("--every", type=float, help="seconds between two kills (40, or 10 with --quick)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    options = parser.parse_args()
    seconds = 60 * (options.minutes or (0.5 if options.quick else 10))
    every = options.every or (10 if options.quick else 40)
    calm_seconds = max(2 * SETTLING_SECONDS, min(seconds / 5, 120))
    with tempfile.TemporaryDirectory() as folder:
        before = calm(Path(folder) / "before", calm_seconds)
        seen = chaos(Path(folder) / "chaos", seconds, every, options.seed)
        after = calm(Path(folder) / "after", calm_seconds)
        counts = audit(Path(folder) / "chaos")
    origin = harness.introduce()
    rows = harness.compare(
        {"calm": rates(before) + rates(after), "between kills": rates(seen)},
        "calm",
        ("calm", "between kills"),
        "frames/s",
    )
    quiet = statistics.median(rates(before) + rates(after))
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        print(f"{row.name:16}{row.value:10,.0f} {row.unit}  ratio {ratio}")
    for kind in KINDS:
        times = [kill.recovery_seconds for kill in seen.kills if kill.kind == kind]
        ended = [value for value in times if value is not None]
        if times:
            longest = f"{max(ended):.1f} s at most" if ended else "never"
            always = ", NOT ALWAYS" if None in times else ""
            print(f"{kind:16}killed {len(times)} times, back after {longest}{always}")
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()) + " (pushes of one task each)")
    print(f"memory without rows: {slope(seen):+.1f} MiB a minute; calm {slope(after):+.1f}")
    returns = [mean_return(seen, share) for share in (0.4, 1.0)]
    print(f"mean training return: {returns[0]:.0f} after two fifths, {returns[1]:.0f} at the end")
    print(f"exit code {seen.exit_code}")
    if options.json:
        figures = {
            "kills": [asdict(kill) for kill in seen.kills],
            "pushes": counts,
            "memory_mib_per_minute": known(slope(seen)),
            "calm_memory_mib_per_minute": known(slope(after)),
            "returns": [known(value) for value in returns],
            "exit_code": seen.exit_code,
        }
        harness.write(options.json, {**origin, "rows": [asdict(row) for row in rows], **figures})
    if options.plot:
        plot(seen, quiet, options.plot)
    # A benchmark that killed nothing, or compared nothing, shows nothing.
    is_idle = not seen.kills or not counts["acknowledged"]
    never_back = any(kill.recovery_seconds is None for kill in seen.kills)
    if is_idle or never_back or counts["lost"] or counts["doubled"] or seen.exit_code != 0:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
