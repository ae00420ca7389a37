"""Speed of an update on one core, compared with its matrix products alone, for several numbers of tasks.

    python benchmarks/learner.py --json learner.json

The batch has the same rows for every number of tasks. The bound is the time of the update's matrix products, captured
and run again alone. The loop is the same learner with its heads computed one after another. Updates are recorded, as by
default. All contenders use one thread and are measured in CPU time.

    python benchmarks/learner.py --device cuda

compares the ways to execute an update on a GPU, with larger networks: updates per second of wall clock, and on stderr
the share of that time in which the GPU computes.

    python benchmarks/learner.py --threads 2 --json threads.json

compares threads that share out the rows of an update with torch's own, which share each kernel, and with one thread, in
updates per second of wall clock.

    python benchmarks/learner.py --products --json products.json

compares what computes the gradients on a CPU, in updates per second of CPU time: MKL's matrix products, torch's
default, oneDNN's, and products of bfloat16, each as they are recorded and as inductor compiles them.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import harness

# Observation and action widths of cheetah-run, walker-walk, reacher-easy and cartpole-swingup, used in turn.
WIDTHS = ((17, 6), (24, 6), (6, 2), (5, 1))
ROWS = 512
TASKS = (2, 6, 50)
BOUND, LOOP = "matrix products of {} tasks", "loop over heads, {} tasks"
# Networks with --device.
LARGE = {"critic_width": 1024, "critic_blocks": 2, "actor_width": 256}
WAYS: dict[str, dict[str, Any]] = {
    "kernel by kernel": {"graphs": False, "precision": "float32"},
    "recorded": {"precision": "float32"},
    "recorded, bfloat16": {"precision": "bfloat16"},
}
WAYS_ON_GPU: dict[str, dict[str, Any]] = {
    **WAYS,
    "inductor": {"precision": "float32", "compile": "inductor"},
    "bfloat16, inductor": {"precision": "bfloat16", "compile": "inductor"},
    "recorded, tfloat32": {"precision": "tfloat32"},
    "tfloat32, inductor": {"precision": "tfloat32", "compile": "inductor"},
}


# Rows of an update with --threads, and with --products: those of the two presets.
SHARED_ROWS = (128, 256, 384)
PRODUCT_ROWS = (128, 384)


def build(
    tasks: int,
    network: dict[str, int] | None = None,
    config: dict[str, Any] | None = None,
    device: str = "cpu",
    batch_rows: int = ROWS,
) -> tuple[Any, Any]:
    """Return a learner of this number of tasks, and a batch."""
    import torch

    from mtray.config.learner import LearnerConfig, NetworkConfig
    from mtray.data.batch import Batch
    from mtray.data.specs import TaskSpec, action_width, observation_width
    from mtray.learn.trainer import Trainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    specs = []
    for index in range(tasks):
        obs, act = WIDTHS[index % len(WIDTHS)]
        specs.append(
            TaskSpec(
                name=f"task{index}",
                engine="benchmark",
                observation=(("x", obs),),
                action_low=(-1.0,) * act,
                action_high=(1.0,) * act,
                horizon=500,
                time_step_seconds=0.02,
            )
        )
    rows, obs, act = batch_rows // tasks, observation_width(specs), action_width(specs)
    batch = Batch(
        tuple(spec.name for spec in specs),
        torch.randn(tasks, rows, obs),
        torch.rand(tasks, rows, act) * 2 - 1,
        torch.rand(tasks, rows),
        torch.randn(tasks, rows, obs),
        torch.ones(tasks, rows, dtype=torch.int32),
    )
    config = {"batch_rows": batch_rows, **(config or {})}
    learner = Trainer(specs, NetworkConfig(**(network or {})), LearnerConfig(**config), device=device)
    learner.reward_scale.fill_(10.0)
    return learner, batch


def loop_over_heads() -> None:
    """Replace every grouped product by one product per task."""
    import torch

    from mtray.policy.layers import GroupedLinear

    def forward(self: Any, inputs: Any, ids: Any) -> Any:
        assert ids is None
        parts = zip(self.bias.unbind(0), inputs.unbind(0), self.weight.unbind(0), strict=True)
        return torch.stack([torch.addmm(bias, rows, weight) for bias, rows, weight in parts])

    GroupedLinear.forward = forward  # type: ignore[method-assign]


def products(learner: Any, batch: Any) -> tuple[list[Callable[[], Any]], int]:
    """Return the matrix products of one period of updates as callables, and their number of multiply-adds."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    kinds = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1}
    calls: list[Callable[[], Any]] = []
    count = 0

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal count
            if func in kinds:
                left, right = args[kinds[func] : kinds[func] + 2]
                count += left.numel() * right.shape[-1]
                same = [torch.empty_strided(part.shape, part.stride()).normal_() for part in args]
                calls.append(functools.partial(func, *same))
            return func(*args, **(kwargs or {}))

    with Record():
        for _ in range(learner.config.actor_period):
            learner.update(batch)
    assert calls, "no matrix product was seen"
    return calls, count


def measure(tasks: int, contender: str, seconds: float) -> float:
    """Return updates per second of CPU time: ``learner``, ``bound`` (matrix products) or ``loop`` (over heads)."""
    import torch

    from mtray.learn.execution.threads import prepare_updates

    prepare_updates()
    if contender == "loop":
        loop_over_heads()
    # Calls of a recorded update are not visible to a dispatch mode.
    learner, batch = build(tasks, config={"graphs": False} if contender == "bound" else None)
    period = learner.config.actor_period
    for _ in range(5 * period):
        learner.update(batch)
    if contender == "bound":
        calls, count = products(learner, batch)

        def run() -> None:
            for call in calls:
                call()
    else:

        def run() -> None:
            for _ in range(period):
                learner.update(batch)

    with torch.inference_mode(contender == "bound"):
        run()
        begin, made = time.process_time(), 0
        while (now := time.process_time()) < begin + seconds:
            run()
            made += period
    rate = made / (now - begin)
    if contender == "bound":
        sys.stderr.write(f"{tasks} tasks: {2 * count / period * rate / 1e9:.0f} GFLOP/s in matrix products\n")
    return rate


def measure_way(tasks: int, way: str, device: str, seconds: float) -> float:
    """Return updates per second of wall clock of large networks on a device, executed in one of `WAYS_ON_GPU`."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    learner, batch = build(tasks, LARGE, WAYS_ON_GPU[way], device)
    gpu = device.startswith("cuda")

    def run(updates: int) -> None:
        for _ in range(updates):
            learner.update(batch)
        learner.check()
        if gpu:
            torch.cuda.synchronize()

    # The first updates compile or record.
    run(8 * learner.config.actor_period)
    begin, made = time.perf_counter(), 0
    while (now := time.perf_counter()) < begin + seconds:
        run(10)
        made += 10
    rate = made / (now - begin)
    if gpu:
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as found:
            begin = time.perf_counter()
            run(100)
            wall = time.perf_counter() - begin
        busy = sum(event.self_device_time_total for event in found.key_averages()) / 1e6
        sys.stderr.write(f"{tasks} tasks, {way}: the GPU computes {busy / wall:.0%} of the time\n")
    return rate


def rate_of(learner: Any, batch: Any, seconds: float, clock: Callable[[], float]) -> float:
    """Return updates per second of a clock, after some that record and warm up."""
    for _ in range(20):
        learner.update(batch)
    begin, made = clock(), 0
    while (now := clock()) < begin + seconds:
        learner.update(batch)
        made += 1
    return made / (now - begin)


def alone(function: Callable[..., float], *arguments: Any) -> Callable[[], float]:
    """Return a contender that calls a function in a process of its own."""
    return lambda: float(harness.in_own_processes(function, [arguments])[0])


def ways(device: str, seconds: float, repeats: int) -> tuple[list[harness.Row], dict[str, str]]:
    """Compare all ways to execute an update on a device with kernel by kernel."""
    tasks = TASKS[0]
    plain, *others = WAYS_ON_GPU if device.startswith("cuda") else WAYS
    measured = harness.interleave(
        {way: alone(measure_way, tasks, way, device, seconds) for way in (plain, *others)}, repeats
    )
    unit = f"updates/s of {ROWS} rows of {tasks} tasks on {device}"
    return harness.compare(measured.rates, plain, others, unit), measured.left_out


def measure_threads(rows: int, threads: int, seconds: float, shares_kernels: bool) -> float:
    """Return updates per second of wall clock of two tasks, with torch's threads or with threads that share rows."""
    import torch

    from mtray.learn.execution.threads import prepare_updates

    prepare_updates()
    learner, batch = build(2, config={"graphs": not shares_kernels}, batch_rows=rows)
    if shares_kernels:
        torch.set_num_threads(threads)
    else:
        learner.set_threads(threads)
    return rate_of(learner, batch, seconds, time.perf_counter)


def threads(count: int, seconds: float, repeats: int, budget: float) -> tuple[list[harness.Row], dict[str, str]]:
    """Compare threads that share rows with torch's own and with one thread."""
    rows: list[harness.Row] = []
    left_out: dict[str, str] = {}
    for size in SHARED_ROWS:
        names = (
            f"{size} rows, {count} threads within each kernel",
            f"{size} rows, one thread",
            f"{size} rows, {count} threads with a part of the rows each",
        )
        ways = ((count, seconds, True), (1, seconds, False), (count, seconds, False))
        contenders = {name: alone(measure_threads, size, *way) for name, way in zip(names, ways, strict=True)}
        measured = harness.interleave(contenders, repeats, budget / len(SHARED_ROWS))
        rows += harness.compare(measured.rates, names[0], list(names[1:]), "updates/s of two tasks")
        rows += harness.compare(measured.rates, names[1], [names[2]], "updates/s of two tasks")
        left_out |= measured.left_out
    return rows, left_out


def measure_products(rows: int, library: str, precision: str, is_compiled: bool, seconds: float) -> float:
    """Return updates of two tasks per second of CPU time, with a library's float32 products or others."""
    from mtray.learn.execution import products
    from mtray.learn.execution.threads import prepare_updates

    prepare_updates()
    config = {"precision": precision, "compile": "inductor" if is_compiled else "off"}
    learner, batch = build(2, config=config, batch_rows=rows)
    with products.using(products.Library[library]):
        for _ in range(2):
            learner.update(batch)
        if is_compiled and not learner.finish_compiling():
            raise RuntimeError("inductor could not compile the gradients: is there a C++ compiler?")
        return rate_of(learner, batch, seconds, time.process_time)


def kinds_of_products(
    sizes: Sequence[int], seconds: float, repeats: int, budget: float
) -> tuple[list[harness.Row], dict[str, str]]:
    """Compare oneDNN's products, those of bfloat16 and compiled gradients with MKL's products."""
    kinds = {
        "MKL": ("MKL", "float32", False),
        "oneDNN": ("ONEDNN", "float32", False),
        "oneDNN, compiled": ("ONEDNN", "float32", True),
        "bfloat16": ("ONEDNN", "bfloat16", False),
        "bfloat16, compiled": ("ONEDNN", "bfloat16", True),
    }
    rows: list[harness.Row] = []
    left_out: dict[str, str] = {}
    for size in sizes:
        contenders = {
            f"{size} rows, {name}": alone(measure_products, size, *kind, seconds) for name, kind in kinds.items()
        }
        measured = harness.interleave(contenders, repeats, budget / len(sizes))
        first, *others = contenders
        rows += harness.compare(measured.rates, first, others, "updates/s of two tasks on one core")
        left_out |= measured.left_out
    return rows, left_out


def numbers_of_tasks(
    counts: Sequence[int], seconds: float, repeats: int, budget: float
) -> tuple[list[harness.Row], dict[str, str]]:
    """Compare updates of so many tasks with their matrix products, and with a loop over heads."""
    contenders = {f"{tasks} tasks": alone(measure, tasks, "learner", seconds) for tasks in counts}
    contenders |= {BOUND.format(tasks): alone(measure, tasks, "bound", seconds) for tasks in counts}
    contenders |= {LOOP.format(tasks): alone(measure, tasks, "loop", seconds) for tasks in (TASKS[0], TASKS[-1])}
    measured = harness.interleave(contenders, repeats, budget)
    rates = measured.rates
    unit = f"updates/s of {ROWS} rows on one core"
    first, last = TASKS[0], TASKS[-1]
    rows = []
    for tasks in counts:
        rows += harness.compare(rates, BOUND.format(tasks), [f"{tasks} tasks"], unit)
    rows += harness.compare(rates, f"{first} tasks", [f"{last} tasks", BOUND.format(last)], unit)
    rows += harness.compare(rates, LOOP.format(first), [LOOP.format(last)], unit)
    rows += harness.compare(rates, LOOP.format(last), [f"{last} tasks"], unit)
    return rows, measured.left_out


def main() -> None:
    """Run the benchmark."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--device", help="compare the ways to execute an update there, for example cuda")
    parser.add_argument("--threads", type=int, help="compare the ways to use so many threads of the CPU")
    parser.add_argument("--products", action="store_true", help="compare what computes gradients on the CPU")
    options = parser.parse_args()
    seconds, repeats = (1.0, 2) if options.quick else (3.0, 5)
    budget = harness.QUICK_SECONDS if options.quick else float("inf")
    if options.device:
        rows, left_out = ways(options.device, seconds, repeats)
    elif options.threads:
        rows, left_out = threads(options.threads, seconds, repeats, budget)
    elif options.products:
        # Compiling takes longer than measuring, in every round.
        sizes = PRODUCT_ROWS[:1] if options.quick else PRODUCT_ROWS
        rows, left_out = kinds_of_products(sizes, seconds, min(repeats, 3), budget)
    else:
        # Starting a contender takes longer than measuring it.
        counts = (TASKS[0], TASKS[-1]) if options.quick else TASKS
        rows, left_out = numbers_of_tasks(counts, seconds, repeats, budget)
    harness.report(rows, options.json, left_out)
    harness.finish(rows, left_out)


if __name__ == "__main__":
    main()
