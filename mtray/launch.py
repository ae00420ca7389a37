"""Train one policy on many tasks: ``python -m mtray.launch --workers 8``.

Reads the command line, checks everything that can be checked before a process is started, starts a Ray of the run's
own (or joins a cluster), runs the supervisor, and leaves a run directory behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import operator
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mtray import checkpoint
from mtray.config import Config, to_dict
from mtray.errors import MtrayError, UsageError
from mtray.placement import choose_host
from mtray.processes import usable_cores
from mtray.specs import TaskSpec, check_together
from mtray.tasks import Task, resolve

_PACKAGES = ("mtray", "torch", "torchrl", "tensordict", "ray", "dm_control", "mujoco", "numpy")
# Settings that a resumed run may not change: what was saved would not fit or not mean the same.
_FIXED = ("tasks", "engine", "collector.action_repeat", "network", "learner.algorithm", "seed")
_CONNECT_SECONDS = 5.0
# RFC 9113, sections 3.4 and 6.5: the client's preface and an empty SETTINGS frame; the fourth byte is a frame's type.
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS = 4


def parse(arguments: Sequence[str]) -> Config:
    """The config of a command line; with ``--resume``, what the saved run had and the line does not say.

    Raises:
        UsageError: a setting that can't work, or one that a resumed run may not change.
    """
    import tyro

    default = Config()
    folder = _resume_folder(arguments)
    if folder is not None:
        default = dataclasses.replace(checkpoint.read_config(folder), resume=folder, run_dir=folder)
    config = tyro.cli(Config, args=list(arguments), prog="python -m mtray.launch", default=default)
    if folder is not None:
        for name in _FIXED:
            given, saved = operator.attrgetter(name)(config), operator.attrgetter(name)(default)
            if given != saved:
                raise UsageError(
                    f"--{name.replace('_', '-')} {given} differs from the {saved} that {folder} was "
                    "made with: a resumed run keeps its tasks, network, algorithm and seed; start a new one to change "
                    "them"
                )
        if config.run_dir != folder:
            raise UsageError(f"--run-dir {config.run_dir}: a resumed run goes on in its own folder, {folder}")
    return config


def _resume_folder(arguments: Sequence[str]) -> Path | None:
    for index, argument in enumerate(arguments):
        if argument.startswith("--resume="):
            return Path(argument.partition("=")[2])
        if argument == "--resume" and index + 1 < len(arguments):
            return Path(arguments[index + 1])
    return None


def prepare_run_dir(config: Config) -> Path:
    """The run's folder, made and found empty (or the resumed one).

    Raises:
        UsageError: it is in use, or can't be written.
    """
    if config.resume is not None:
        return config.resume
    path = config.run_dir or Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(
                f"--run-dir {path} is in use already: choose a new folder, or continue with --resume {path}"
            )
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--run-dir {path} can't be written: {error.strerror or error}") from error
    return path


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


def check_address(address: str) -> None:
    """Raise if no Ray can be reached there.

    Raises:
        UsageError: names the address.
    """
    if address.startswith("ray://"):
        raise UsageError(f"--address {address}: run this on a node of the cluster and give its address, or 'auto'")
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host or "localhost", int(port)), timeout=_CONNECT_SECONDS) as connection:
            # Ray itself would try for minutes: a head speaks gRPC, so it answers HTTP/2's greeting with its settings.
            connection.sendall(_HTTP2_GREETING)
            answer = connection.recv(9, socket.MSG_WAITALL)
            if len(answer) < 9 or answer[3] != _HTTP2_SETTINGS:
                raise OSError("what listens there is no Ray head")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--address {address} can't be reached ({error}): give host:port of a running Ray head, 'auto', or "
            "leave it out to start one here"
        ) from error


def cpus_per_actor(nodes: Sequence[float], actors: int) -> float:
    """The most logical CPUs that each of so many actors can ask for and all still find a place on these nodes.

    Args:
        nodes: CPUs of each node.
        actors: how many.
    """
    thousandths = 1000
    # What is left over on one node can't be put together with another's, so dividing the sum is not enough.
    while thousandths > 1 and sum(int(1000 * cpus) // thousandths for cpus in nodes) < actors:
        thousandths -= 1
    return thousandths / 1000


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[float]:
    """Ray, started here or joined; gives the logical CPUs an actor may ask for, so that all can be placed.

    Raises:
        UsageError: the cluster can't be reached.
    """
    import ray

    actors = config.workers + 2
    # Ray's own 15 lets any other program of the machine outrun a run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.address is None:
        # Ray's CPUs are logical: a Ray of the run's own has as many as actors, so that none waits for ever.
        ray.init(address="local", num_cpus=actors, include_dashboard=False, **quiet)
    else:
        check_address(config.address)
        try:
            ray.init(address=config.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"--address {config.address}: no Ray answers there ({error})") from error
    try:
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        yield config.run.cpus_per_actor if config.run.cpus_per_actor is not None else cpus_per_actor(nodes, actors)
    finally:
        ray.shutdown()


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


def describe(config: Config) -> dict[str, Any]:
    """What config.json holds: the resolved config, versions, the git commit."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"config": to_dict(config), "versions": versions, "git_commit": git_commit()}


def git_commit() -> str | None:
    """The commit that mtray is run from, with ``-dirty`` if files differ from it; None if it is no checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # An environment's folder may lie in a checkout of something else.
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root:
            return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    return None


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

    from mtray.supervisor import make_pacing

    make_pacing(config, specs)
    names = [spec.name for spec in specs]
    config.learner.weight_of_losses(names)
    config.learner.rows_of(names)
    run_dir = prepare_run_dir(config)
    return _run(config, tasks, run_dir, saved)


def _run(config: Config, tasks: Sequence[Task], run_dir: Path, saved: checkpoint.Checkpoint | None) -> dict[str, Any]:
    from mtray.metrics import JsonLines, Progress, Sink, TensorBoard
    from mtray.supervisor import Supervisor

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


def run_program(program: Callable[[], None]) -> int:
    """Run a command-line program: 0 done, 2 wrong input with one line on stderr, 1 anything else."""
    try:
        program()
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except MtrayError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Nothing is drawn; without this, importing dm_control looks for a display.
    os.environ.setdefault("MUJOCO_GL", "disabled")
    # dm_control's own models use attributes that MuJoCo calls deprecated, and says so at every load.
    logging.getLogger("absl").setLevel(logging.ERROR)

    def program() -> None:
        summary = train(parse(sys.argv[1:] if arguments is None else arguments))
        sys.stderr.write(
            f"{summary['exit_reason']}: {summary['frames']:,} frames, {summary['updates']:,} updates "
            f"in {summary['wall_seconds']:.0f} s\n"
        )

    return run_program(program)


if __name__ == "__main__":
    sys.exit(main())
