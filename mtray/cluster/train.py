"""A run from its config to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mtray.cluster.session import check_address, ray_session
from mtray.collect.placement import choose_host
from mtray.config.settings import Config
from mtray.data.specs import TaskSpec, check_together
from mtray.errors import UsageError
from mtray.rundir import checkpoint
from mtray.rundir.directory import describe, prepare_run_dir
from mtray.tasks.checks import check_travels
from mtray.tasks.plan import Task
from mtray.tasks.processes import usable_cores
from mtray.tasks.registry import resolve


def check_device(config: Config) -> None:
    """Raise if the learner can't compute where and how it is told to.

    Raises:
        UsageError: no such device or compiler, as far as this machine can tell.
    """
    compiler = config.learner.compile
    if config.device == "cpu" and not compiler:
        return
    import torch

    if compiler and compiler not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise UsageError(f"--learner.compile {compiler}: no such backend; torch.compile has {', '.join(known)}")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise UsageError(f"--device {config.device}: no such device; give cpu, cuda or cuda:0") from error
    # On a cluster the learner may run on another machine, which has one.
    if device.type == "cuda" and config.address is None and not torch.cuda.is_available():
        raise UsageError(f"--device {config.device}: this machine has no CUDA device that torch can use; give cpu")


def with_host(config: Config, tasks: Sequence[Task]) -> Config:
    """The config with a host that is not ``auto``, chosen for the cores that there are now."""
    if config.host != "auto":
        return config
    import ray

    # Ray's CPUs are those of the machines only on a cluster; here they are as many as actors.
    cores = usable_cores() if config.address is None else int(ray.cluster_resources().get("CPU", 1))
    return dataclasses.replace(config, host=choose_host(tasks, config.workers, cores))


def cost_line(config: Config, specs: Sequence[TaskSpec]) -> str:
    """What the run puts on the machine, in one line."""
    cores = usable_cores()
    simulators = config.workers * len(specs) if config.host == "parallel" else 0
    processes = config.workers + simulators + 2
    replay = sum(spec.row_size for spec in specs) * 4 * config.replay.capacity_rows
    text = (
        f"{len(specs)} tasks x {config.copies(len(specs))} copies x {config.workers} collectors: {processes} processes "
        f"({simulators} simulate), replay of up to {replay / 2**30:.1f} GiB"
    )
    if config.address is None:
        text += f", on {cores} core{'s' if cores > 1 else ''}"
        if processes > 2 * cores:
            enough = max(1, cores // (len(specs) if simulators else 1))
            text += f"; more processes than cores cost memory and time: --workers {enough} would keep them busy"
    return text


@contextlib.contextmanager
def _signals(stop: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a stop that saves, the second ends at once."""
    asked = False

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        sys.stderr.write("\nstopping: saving a checkpoint (once more to end at once)\n")
        stop("interrupted")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def train(config: Config) -> dict[str, Any]:
    """Run a config to its end; gives what summary.json holds.

    Raises:
        UsageError: input that can't work; nothing was started.
        RunError: the run could not go on; what was saved stays.
    """
    tasks = resolve(config.tasks, config.engine, config.collector.action_repeat)
    for task in tasks:
        check_travels(task)
    specs = [task.spec for task in tasks]
    check_together(specs)
    saved = None
    if config.resume is not None:
        saved = checkpoint.read(checkpoint.latest(config.resume))
        if saved.frames >= config.total_frames:
            raise UsageError(
                f"--total-frames {config.total_frames}: {config.resume} has {saved.frames} already, give more"
            )
    check_device(config)
    if config.address is not None:
        check_address(config.address)

    from mtray.cluster.supervisor import make_pacing

    make_pacing(config, specs)
    names = [spec.name for spec in specs]
    config.learner.weight_of_losses(names)
    config.learner.rows_of(names)
    run_dir = prepare_run_dir(config)
    return _run(config, tasks, run_dir, saved)


def _run(config: Config, tasks: Sequence[Task], run_dir: Path, saved: checkpoint.Checkpoint | None) -> dict[str, Any]:
    from mtray.cluster.supervisor import Supervisor
    from mtray.rundir.sinks import JsonLines, Progress, Sink, TensorBoard

    started = time.monotonic()
    reason = "failed"
    asked_to_stop: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals(asked_to_stop.append))
        cpus = stack.enter_context(ray_session(config))
        config = with_host(config, tasks)
        sys.stderr.write(f"{run_dir}: {cost_line(config, [task.spec for task in tasks])}\n")
        # Only now: a folder that stays empty can be given again.
        (run_dir / "summary.json").unlink(missing_ok=True)
        checkpoint.replace_file(run_dir / "config.json", json.dumps(describe(config), indent=1))
        sinks: list[Sink] = [JsonLines(run_dir / "metrics.jsonl"), TensorBoard(run_dir / "tensorboard")]
        supervisor = Supervisor(
            config,
            tasks,
            run_dir,
            [*sinks, Progress(config.total_frames)],
            resume=saved,
            cpus_per_actor=cpus,
            asked_to_stop=asked_to_stop,
        )
        try:
            reason = supervisor.run()
        except BaseException as error:
            reason = f"failed: {type(error).__name__}: {error}"
            raise
        finally:
            line = supervisor.metrics.line()
            summary = {key: line[key] for key in ("frames", "updates", "weights_version", "restarts", "tasks")} | {
                "wall_seconds": time.monotonic() - started,
                "exit_reason": reason,
            }
            checkpoint.replace_file(run_dir / "summary.json", json.dumps(summary, indent=1))
    return summary
