"""Frames per second of 1, 2 and 4 nodes, what weights cost on their way, and where the first bottleneck would be.

    python benchmarks/scaling.py --json scaling.json --plot scaling.png

Each node has a network, processes and shared memory of its own (namespaces of this machine, which takes root), and a
head beside them has learner and replay. All nodes share this machine's cores, so simulators sleep instead of computing
(`paced.py`): what is measured is everything else, at a tenth of the rate of humanoids. What a rollout costs driver and
replay is measured beside, with collectors that bring hundreds a second; the model on paper is made of that.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import harness
import psutil

ROOT = Path(__file__).absolute().parents[1]
sys.path.insert(0, str(ROOT))

from mtray.rundir.screen import whole_lines  # noqa: E402
from tests.nodes import USER, Machine, Network, network  # noqa: E402

HEAD = "10.77.0.11"
NODES = (1, 2, 4)
COLLECTORS = 4
ROLLOUT_STEPS, COPIES = 32, 8
# Frames a second of a collector that steps eight humanoids on a core of its own (benchmarks/collect.py).
HUMANOID_FRAMES = 4500
# Beside another benchmark, on a slow machine: all that is waited for ends with an error after so long.
START_SECONDS = 240.0
LINK_BYTES = 1.25e9
# Updates per agent step: few, so that the learner, which has these cores too, holds nobody back.
RATIO = 0.005
ENVIRONMENT = f"export PATH={sys.prefix}/bin:$PATH PYTHONPATH={ROOT}:{ROOT}/benchmarks OMP_NUM_THREADS=1;"
# Puts weights as large as the default policy's with ten tasks, and has stub actors take them.
WEIGHTS = """
import json, sys, time, numpy, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
size, per_node = int(sys.argv[1]), int(sys.argv[2])
@ray.remote(num_cpus=0.1)
class Stub:
    def take(self, box):
        return int(ray.get(box[0]).nbytes)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
here = ray.get_runtime_context().get_node_id()
others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
stubs = [Stub.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
         for node in others for _ in range(per_node)]
ray.get([stub.take.remote([ray.put(numpy.zeros(1))]) for stub in stubs])
print("ready", flush=True)
sys.stdin.readline()
seconds = []
for _ in range(10):
    begin = time.perf_counter()
    box = [ray.put(numpy.random.bytes(size) and numpy.frombuffer(numpy.random.bytes(size), numpy.uint8))]
    begin = time.perf_counter()
    assert set(ray.get([stub.take.remote(box) for stub in stubs])) == {size}
    seconds.append(time.perf_counter() - begin)
print(json.dumps(seconds), flush=True)
"""


class Cluster:
    """A head and nodes on a network of this machine."""

    def __init__(self, made: Network) -> None:
        """Start the head: learner, replay and the driver are there."""
        self._network = made
        self.nodes: list[Machine] = []
        self.head = Machine(made, "head", HEAD, (str(ROOT),))
        self.head.run(f"{ENVIRONMENT} ray start --head --port=6379 --num-cpus=2 --node-ip-address={HEAD}")

    def resize(self, nodes: int) -> None:
        """Have so many nodes."""
        while len(self.nodes) > nodes:
            self.nodes.pop().kill()
        while len(self.nodes) < nodes:
            index = len(self.nodes)
            machine = Machine(self._network, f"node{index}", f"10.77.0.{21 + index}", (str(ROOT),))
            machine.run(f"{ENVIRONMENT} ray start --address={HEAD}:6379 --num-cpus={COLLECTORS}")
            self.nodes.append(machine)
        alive = "import ray; ray.init('auto', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
        deadline = time.monotonic() + 90
        while self.head.run(f'{ENVIRONMENT} python -c "{alive}"').split()[-1] != str(nodes + 1):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cluster has not had {nodes + 1} nodes within 90 s")
            time.sleep(0.5)

    def received(self) -> list[int]:
        """Return the bytes that each node has received so far."""
        return [_received(machine) for machine in self.nodes]


def _received(machine: Machine) -> int:
    return int(machine.run("cat /proc/net/dev").partition("eth0:")[2].split()[0])


PACED = (
    "--tasks", "paced:paced", "--envs-per-task", str(COPIES), "--collector.rollout-steps", str(ROLLOUT_STEPS),
    "--learner.warmup-steps", "2000", "--learner.updates-per-step", str(RATIO),
)  # fmt: skip


def awake(steps: int) -> tuple[str, ...]:
    """Return the settings of collectors that bring as many rows a rollout in an eighth of so many steps."""
    return (
        "--tasks", "paced:awake", "--envs-per-task", str(8 * COPIES), "--collector.rollout-steps", str(steps // 8),
        "--learner.warmup-steps", "2000", "--learner.updates-per-step", "0.0001",
    )  # fmt: skip


@contextmanager
def running(
    cluster: Cluster, workers: int, warmup: float, *settings: str
) -> Iterator[tuple[Path, dict[str, psutil.Process]]]:
    """Run mtray with so many collectors; give its run directory and processes, by what they are, once it is warm."""
    folder = f"/home/{USER}/run-{time.monotonic_ns()}"
    command = (
        f"python -m mtray.launch --address auto --workers {workers} --total-frames 1000000000 --run-dir {folder} "
        "--run.evaluate-every 0 "
        f"{' '.join(settings)} --learner.batch-rows 64 --replay.capacity-rows 500000 --replay.no-save "
        "--run.log-seconds 0.5"
    )
    process = cluster.head.popen(f"{ENVIRONMENT} exec {command}")
    run_dir = cluster.head.path(folder)
    try:
        deadline = time.monotonic() + START_SECONDS
        while lines(run_dir)[-1:] == [] or len(ups(run_dir)) < workers + 2 or not lines(run_dir)[-1]["updates"]:
            if process.poll() is not None or time.monotonic() > deadline:
                end(cluster.head)
                raise RuntimeError(f"the run does not begin: {process.communicate(timeout=40)[0][-2000:]}")
            time.sleep(0.2)
        time.sleep(warmup)
        yield run_dir, processes(cluster.head)
    finally:
        end(cluster.head)
        with suppress(Exception):
            process.communicate(timeout=40)
        process.kill()
        process.wait()


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics."""
    return whole_lines(run_dir / "metrics.jsonl")


def ups(run_dir: Path) -> set[str]:
    """Return the parts of a run that are ready."""
    return {event["part"] for event in whole_lines(run_dir / "events.jsonl") if event["event"] == "up"}


def end(machine: Machine) -> None:
    """Ask the driver on a machine to end: the processes before it would not hand a signal on."""
    if driver := processes(machine).get("driver"):
        driver.terminate()


def processes(machine: Machine) -> dict[str, psutil.Process]:
    """Return the driver, the replay and the learner on a machine."""
    found = {}
    for process in machine.processes():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            for name, mark in (("driver", "mtray.launch"), ("replay", "ray::Replay"), ("learner", "ray::Learner")):
                if mark in command and "runuser" not in command and "bash" not in command:
                    found[name] = process
    return found


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(cluster: Cluster, nodes: int, seconds: float, workers: int, steps: int, *settings: str) -> dict[str, float]:
    """Return the rates and costs of a run on so many nodes."""
    cluster.resize(nodes)
    with running(cluster, workers, min(4.0, seconds / 2), *settings) as (run_dir, found):
        before, cpu, begin = lines(run_dir)[-1], {name: cpu_seconds(p) for name, p in found.items()}, time.monotonic()
        time.sleep(seconds)
        cpu = {name: cpu_seconds(process) - cpu[name] for name, process in found.items()}
        wall = time.monotonic() - begin
        after = lines(run_dir)
    window = [line for line in after if line["time"] > before["time"]]
    frames = window[-1]["frames"] - before["frames"]
    rollouts = frames / (steps * COPIES)
    waits = [line["waiting"]["learner"] for line in window]
    idle = [line["waiting"]["collectors"] for line in window]
    return {
        "frames_per_second": frames / (window[-1]["time"] - before["time"]),
        "updates_per_second": (window[-1]["updates"] - before["updates"]) / (window[-1]["time"] - before["time"]),
        "replay_us_per_push": 1e6 * cpu["replay"] / rollouts,
        "driver_us_per_rollout": 1e6 * cpu["driver"] / rollouts,
        "learner_ms_per_update": 1e3 * cpu["learner"] / max(1, window[-1]["updates"] - before["updates"]),
        "learner_waits": statistics.mean(sum(wait.values()) for wait in waits),
        "learner_waits_for_replay": statistics.mean(wait.get("replay", 0.0) for wait in waits),
        "collectors_wait": statistics.mean(sum(wait.values()) for wait in idle),
        "busy_cores": sum(cpu.values()) / wall,
    }


def weights(cluster: Cluster, size: int, actors: int) -> dict[str, float]:
    """Return how long weights take to all nodes, and how often they cross to each."""
    script = cluster.head.path(f"/home/{USER}/weights.py")
    script.write_text(WEIGHTS)
    process = cluster.head.popen(f"{ENVIRONMENT} timeout {START_SECONDS} python weights.py {size} {actors}", stdin=-1)
    assert process.stdin is not None
    assert process.stdout is not None
    said = [process.stdout.readline()]
    while said[-1] and said[-1].strip() != "ready":
        said.append(process.stdout.readline())
    before = cluster.received()
    process.stdin.write("\n")
    process.stdin.flush()
    if not (answer := process.stdout.readline()):
        raise RuntimeError(f"weights did not arrive: {''.join(said)[-2000:]}")
    seconds = json.loads(answer)
    after = cluster.received()
    process.stdin.close()
    process.wait()
    crossed = [(last - first) / (size * len(seconds)) for first, last in zip(before, after, strict=True)]
    return {
        "nodes": len(crossed),
        "actors_per_node": actors,
        "bytes": size,
        "seconds": statistics.median(seconds),
        "copies_received_per_node": max(crossed),
    }


def model(cost: dict[str, float], steps: int) -> list[dict[str, Any]]:
    """Return the share of its time that each part would be busy with more collectors of humanoids, on paper."""
    row_bytes = 4 * (67 + 21 + 6)
    rows: list[dict[str, Any]] = []
    for collectors in (16, 100, 1000):
        frames = collectors * HUMANOID_FRAMES
        rollouts = frames / (steps * COPIES)
        busy = {
            "driver": rollouts * cost["driver_us_per_rollout"] * 1e-6,
            "replay, taking pushes": rollouts * cost["replay_us_per_push"] * 1e-6,
            "link of the replay's node (10 Gbit/s)": frames * row_bytes / LINK_BYTES,
        }
        rows.append({"collectors": collectors, "rollout_steps": steps, "frames_per_second": frames, "busy": busy})
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="window of each measurement")
    options = parser.parse_args()
    counts = NODES[:2] if options.quick else NODES
    seconds, repeats = (5.0, 1) if options.quick else (options.seconds, 3)
    details: dict[int, list[dict[str, float]]] = {count: [] for count in counts}

    with network() as made:
        cluster = Cluster(made)

        def rate(count: int) -> float:
            details[count].append(measure(cluster, count, seconds, count * COLLECTORS, ROLLOUT_STEPS, *PACED))
            return details[count][-1]["frames_per_second"]

        names = {f"{count} node{'s' if count > 1 else ''}": count for count in counts}
        contenders = {name: (lambda count=count: rate(count)) for name, count in names.items()}
        measured = harness.interleave(contenders, repeats)
        # A rollout as long as above, and one of four times as many steps.
        lengths = (ROLLOUT_STEPS,) if options.quick else (ROLLOUT_STEPS, 4 * ROLLOUT_STEPS)

        def unit_of(steps: int) -> dict[str, float]:
            return measure(cluster, 1, seconds, 2, steps, *awake(steps))

        def broadcast_to_all() -> dict[str, float]:
            cluster.resize(counts[-1])
            return weights(cluster, 4 * 2**20, 20 // counts[-1])

        names_of = {steps: f"rollouts of {steps} steps" for steps in lengths}
        found = {steps: measured.attempt(name, functools.partial(unit_of, steps)) for steps, name in names_of.items()}
        units = {steps: unit for steps, unit in found.items() if unit is not None}
        broadcast = measured.attempt("weights", broadcast_to_all)
    rows = harness.compare(measured.rates, next(iter(names)), list(names), "frames/s into the replay")
    harness.report(rows, None, measured.left_out)
    costs = {
        name: {key: statistics.median(each[key] for each in details[count]) for key in details[count][0]}
        for name, count in names.items()
        if details[count]
    }
    for row in rows:
        efficiency = math.nan if row.ratio is None else row.ratio / names[row.name]
        print(f"{row.name}, {names[row.name] * COLLECTORS} collectors: efficiency {efficiency:.3f}")
        print("    " + ", ".join(f"{key} {value:.3g}" for key, value in costs[row.name].items()))
    if broadcast is not None:
        print("weights:", ", ".join(f"{key} {value:.4g}" for key, value in broadcast.items()))
    paper = []
    for steps, unit in units.items():
        rollouts = unit["frames_per_second"] / (steps * COPIES)
        print(
            f"rollouts of {steps} steps, {rollouts:.0f} a second: driver {unit['driver_us_per_rollout']:.0f} us each, "
            f"replay {unit['replay_us_per_push']:.0f} us"
        )
        for each in model(unit, steps):
            paper.append(each)
            shares = ", ".join(f"{name} {share:.0%}" for name, share in each["busy"].items())
            print(f"    {each['collectors']} collectors, {each['frames_per_second']:,.0f} frames/s, on paper: {shares}")
    if options.json is not None:
        origin = harness.introduce()
        data = {
            "rows": [vars(row) for row in rows],
            "costs": costs,
            "units": units,
            "weights": broadcast,
            "model": paper,
        }
        harness.write(options.json, {**origin, **data, "left_out": measured.left_out})
    if options.plot and rows:
        plot(rows, names, paper, options.plot)
    harness.finish(rows, measured.left_out)


def plot(rows: list[harness.Row], names: dict[str, int], paper: list[dict[str, Any]], file: Path) -> None:
    """Draw frames per second over nodes, and how busy each part would be with more collectors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    nodes = [names[row.name] for row in rows]
    low = [row.value - row.min for row in rows]
    high = [row.max - row.value for row in rows]
    left.errorbar(nodes, [row.value for row in rows], yerr=(low, high), fmt="o-", capsize=3, label="measured")
    left.plot(nodes, [rows[0].value * count for count in nodes], "--", color="grey", label="1 node times nodes")
    left.set(xlabel=f"nodes of {COLLECTORS} collectors", ylabel="frames/s into the replay", ylim=0, xticks=nodes)
    left.legend()
    colors = ("tab:blue", "tab:orange", "grey")
    for color, part in zip(colors, paper[0]["busy"] if paper else (), strict=False):
        for steps, style in ((ROLLOUT_STEPS, "o-"), (4 * ROLLOUT_STEPS, "s--")):
            mine = [each for each in paper if each["rollout_steps"] == steps]
            # A link carries as many rows however they are cut.
            if mine and (steps == ROLLOUT_STEPS or "link" not in part):
                counts, shares = [each["collectors"] for each in mine], [each["busy"][part] for each in mine]
                text = part if "link" in part else f"{part}, rollouts of {steps} steps"
                right.plot(counts, shares, style, color=color, markersize=5, label=text)
    right.axhline(1.0, color="black", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="collectors", ylabel="cores or links busy, on paper")
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
