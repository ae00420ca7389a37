"""What a run needs of this machine, checked before Ray starts."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from mtray.config.checks import require
from mtray.config.learner import BESIDE
from mtray.config.settings import Config
from mtray.data.specs import TaskSpec
from mtray.errors import UsageError
from mtray.rundir.screen import counted
from mtray.tasks.processes import available_bytes, usable_bytes, usable_cores

# Rings leave this share of the memory to processes: the learner takes 0.4 GiB, a collector 0.2.
_RING_SHARE = 0.8
# Ray's node process was seen to hold 58 files with 3 actors and 85 with 12.
_FILES, _FILES_OF_ACTOR = 128, 8
# What drivers of GPUs put under /dev: NVIDIA's, AMD's, and that of Linux within Windows.
_GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")


def check_machine(config: Config, specs: Sequence[TaskSpec]) -> None:
    """Raise if this machine can't hold the run.

    Raises:
        UsageError: names the limit and the remedy.
    """
    check_device(config)
    for spec in specs:
        require(
            spec.horizon is None or spec.action_repeat <= spec.horizon,
            f"--collector.action-repeat {spec.action_repeat}: an episode of {spec.name} has {spec.horizon} control "
            "steps, give no more than that",
        )
    if config.address is None:
        cores, threads = usable_cores(), config.learner.threads
        require(
            threads is None or threads <= cores,
            f"--learner.threads {threads}: this machine has {cores} cores, give no more than that",
        )
        each = config.run.cpus_per_actor or 0.0
        require(
            each <= 1 or is_joined(),
            f"--run.cpus-per-actor {each:g}: a Ray of the run's own has one logical CPU for each process, give 1 or "
            "less, or a cluster's --address",
        )
        _check_memory(config, specs)
        _check_learner(config, specs)
        _check_open_files(config)


def is_joined() -> bool:
    """Return whether this process has joined a Ray; without importing Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def choose_device(config: Config, has_gpu: Callable[[], bool]) -> str:
    """Return the learner's device: the given one, or with ``auto`` a GPU if there is one."""
    if config.device != "auto":
        return config.device
    # Not with --deterministic: the same run on another machine must give the same bits.
    return "cuda" if not config.deterministic and has_gpu() else "cpu"


def has_gpu() -> bool:
    """Return whether this machine has a GPU that torch can use; torch is imported only where there may be one."""
    if not any(found for pattern in _GPU_FILES for found in Path("/dev").glob(pattern)):
        return False
    import torch

    return torch.cuda.is_available()


def has_compiler(device: str) -> bool:
    """Return whether this machine has what inductor needs.

    For the CPU a C++ compiler; for a GPU triton, a C compiler and Python's headers.
    """
    if not device.startswith("cuda"):
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return (
        importlib.util.find_spec("triton") is not None
        and any(shutil.which(name) for name in compilers if name)
        and (Path(sysconfig.get_path("include")) / "Python.h").exists()
    )


def has_bfloat16(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this machine's CPU multiplies numbers of bfloat16, by AMX or AVX-512; else torch emulates it."""
    with contextlib.suppress(OSError), cpu.open() as lines:
        # All cores have the same.
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
        return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)
    return False


def check_device(config: Config) -> None:
    """Raise if the learner can't compute where and how it is told to.

    Raises:
        UsageError: no such device or compiler, as far as this machine can tell.
    """
    # torch has inductor always, and importing it for the list of others takes as long as all else before Ray starts.
    compiler = None if config.learner.compiler == BESIDE else config.learner.compiler
    if config.device in ("cpu", "auto") and compiler is None:
        return
    import torch

    if compiler is not None and compiler not in torch.compiler.list_backends(exclude_tags=()):
        usual = ", ".join(torch.compiler.list_backends())
        raise UsageError(f"--learner.compile {compiler}: torch.compile has no such backend; give off, {usual}")
    try:
        device = torch.device("cpu" if config.device == "auto" else config.device)
    except RuntimeError as error:
        raise UsageError(f"--device {config.device}: no such device; give auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {config.device}: the learner computes on cpu or cuda")
    # Ray shows an actor the one GPU that it has given it, under the number 0.
    if device.index:
        raise UsageError(
            f"--device {config.device}: the learner sees one GPU only, as cuda; give --device cuda, and choose the GPU "
            f"by CUDA_VISIBLE_DEVICES={device.index} where Ray is started"
        )
    # On a cluster the learner may run on another machine, which has one.
    if device.type == "cuda" and config.address is None and not torch.cuda.is_available():
        raise UsageError(f"--device {config.device}: this machine has no CUDA device that torch can use; give cpu")


def ring_bytes(config: Config, specs: Sequence[TaskSpec], capacity_rows: int | None = None) -> int:
    """Return the memory of the replay's rings when all are full, or as full as the run makes them."""
    capacity = config.replay.capacity_rows if capacity_rows is None else capacity_rows
    step_frames = sum(spec.action_repeat for spec in specs)
    # A step takes two rows where every observation differs from the one reached before.
    rows = capacity if config.frames is None else min(capacity, 2 * config.frames // step_frames)
    return sum(spec.row_size for spec in specs) * 4 * rows


def _check_memory(config: Config, specs: Sequence[TaskSpec]) -> None:
    # A byte of each row says whether it is a transition, also of rows that are never written.
    needed = ring_bytes(config, specs) + len(specs) * config.replay.capacity_rows
    row_bytes = sum(4 * spec.row_size + 1 for spec in specs)
    for memory, whose in ((usable_bytes(), "this machine's"), (available_bytes(), "what others leave of it now,")):
        if memory is None or needed <= _RING_SHARE * memory:
            continue
        raise UsageError(
            f"--replay.capacity-rows {config.replay.capacity_rows}: the rings of {len(specs)} tasks grow to "
            f"{needed / 2**30:.1f} GiB, and of {whose} {memory / 2**30:.1f} GiB at most "
            f"{_RING_SHARE * memory / 2**30:.1f} are for them; --replay.capacity-rows "
            f"{int(_RING_SHARE * memory / row_bytes)} would fit"
        )


def _check_learner(config: Config, specs: Sequence[TaskSpec]) -> None:
    """Raise if the networks and an update of them do not fit the memory, by far."""
    network, sizes = config.network, config.network.sizes
    rows, memory = config.learner.batch_rows or 0, usable_bytes()
    parameters = activations = 0
    for width, blocks, copies in (
        (sizes.actor_width, sizes.actor_blocks, 1),
        (sizes.critic_width, sizes.critic_blocks, network.critics),
    ):
        parameters += copies * width**2 * (2 * blocks + len(specs) * network.head_layers)
        activations += copies * rows * width * (2 * blocks + 1)
    # Parameters, their moving average, their gradients and the optimiser's two moments; batches that wait beside.
    ahead = config.learner.batches_per_call * (config.learner.calls_ahead + 1)
    needed = 4 * (5 * parameters + 2 * activations + rows * max(spec.row_size for spec in specs) * ahead)
    require(
        memory is None or needed <= _RING_SHARE * memory or config.device.startswith("cuda"),
        f"--network.critic-width {sizes.critic_width}, --network.actor-width {sizes.actor_width} and "
        f"--learner.batch-rows {rows}: the learner would take {needed / 2**30:.1f} GiB at least, and this machine has "
        f"{(memory or 0) / 2**30:.1f}: give a smaller one",
    )


def _check_open_files(config: Config) -> None:
    """Raise the process's soft limit of open files where it is too low, as far as the hard limit allows."""
    needed = _FILES + _FILES_OF_ACTOR * (config.collectors + 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(
            f"this shell allows {hard} open files (ulimit -n), and {config.collectors} collectors need {needed}: raise "
            "the limit, or give fewer --workers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _size(count: int) -> str:
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.0f} MiB"


def cost_line(config: Config, specs: Sequence[TaskSpec]) -> str:
    """Return what the run puts on the machine, in one line."""
    cores = usable_cores()
    simulators = config.collectors * len(specs) if config.host == "parallel" else 0
    processes = config.collectors + simulators + 2
    replay = sum(spec.row_size for spec in specs) * 4 * config.replay.capacity_rows
    text = (
        f"{counted(len(specs), 'task')} x {counted(config.copies(len(specs)), 'copy', 'copies')} x "
        f"{counted(config.collectors, 'collector')}: {processes} "
        f"processes ({simulators or config.collectors} simulate), replay of up to {_size(replay)}"
    )
    if config.address is None:
        text += f", on {counted(cores, 'core')}"
        enough = max(1, cores // (len(specs) if simulators else 1))
        if processes > 2 * cores and enough < config.collectors:
            text += f"; more processes than cores cost memory and time: --workers {enough} would keep them busy"
    return text
