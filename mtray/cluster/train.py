"""A run from its config to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtray.cluster.session.checks import check_machine, choose_device, cost_line, has_bfloat16, has_compiler, has_gpu
from mtray.cluster.session.nodes import Placement, look
from mtray.cluster.session.own import outlive_the_raylet
from mtray.cluster.session.session import Session, check_address, ray_session
from mtray.cluster.session.signals import stop_signals
from mtray.cluster.session.travel import runtime_env
from mtray.collect.placement import choose_copies, choose_host
from mtray.config.learner import NetworkConfig
from mtray.config.plain import from_dict
from mtray.config.presets import fill
from mtray.config.settings import Config
from mtray.data.specs import TaskSpec, check_specs, check_together
from mtray.errors import MtrayError, RunError, UsageError
from mtray.rundir.checkpoints import checkpoint
from mtray.rundir.checkpoints.newest import no_checkpoint, read_chosen, read_newest
from mtray.rundir.claim import Claim
from mtray.rundir.directory import begin, default_run_dir, describe, own_run_dir, run_dir_of
from mtray.rundir.files import damaged, replace_file, to_json, whole_lines
from mtray.rundir.metrics import Metrics, with_last_evaluation
from mtray.rundir.resume import AUTO, changes, check_network, check_resume, resolve_saved
from mtray.rundir.screen import Picture, Screen, counted, say_line
from mtray.rundir.sinks import Guarded, JsonLines, Sink, TensorBoard, last_seconds
from mtray.tasks.checks import check_travels
from mtray.tasks.guarded import process_restored
from mtray.tasks.plan import Task
from mtray.tasks.processes import usable_cores
from mtray.tasks.registry import resolve

_LOGGER = logging.getLogger("mtray")
# Of a line of figures those that the summary repeats.
_OF_SUMMARY = (
    "frames", "updates", "weights_version", "restarts", "frames_lost", "updates_lost", "evaluated_updates", "tasks",
)  # fmt: skip
# What begins the reason of a run that failed.
_FAILED = "failed: "


def train(config: Config) -> dict[str, Any]:
    """Run a config to its end and return what summary.json holds.

    A Ray that is up in this process is used and left up; otherwise one is started for the run. Signal handlers, working
    directory, environment and logging are as before when it returns.

    Raises:
        UsageError: input that can't work; nothing was started, and a run directory that was there is as it was.
        RunError: the run could not go on; what was saved stays.
    """
    if not isinstance(config, Config):
        raise UsageError(f"mtray.train takes a mtray.Config, not a {type(config).__name__}")
    with process_restored():
        outlive_the_raylet()
        given = _with_paths(config)
        # A maker may change the folder.
        with process_restored():
            repeat = given.collector.action_repeat
            is_new = given.resume in (None, AUTO)
            tasks = resolve(given.tasks, given.engine, repeat) if is_new else resolve_saved(given)
            for task in tasks:
                check_travels(task)
            specs = [task.spec for task in tasks]
        # On a cluster it is chosen once its nodes are known.
        device = given.device if given.address is not None else choose_device(given, has_gpu)
        config = _filled(given, device, len(tasks))
        is_auto = config.workers == "auto" and config.address is None
        _check(dataclasses.replace(config, workers=_cores_left()) if is_auto else config, specs)
        environment = {} if config.address is None else runtime_env(tasks)
        with own_run_dir(config) as claim:
            saved, skipped = _read_saved(config, given.network, specs)
            for note in skipped:
                _LOGGER.warning("skipped: %s", note)
            if saved is not None:
                # Before its lines after this checkpoint are cut off.
                lines = whole_lines(run_dir_of(_resumed(given)) / "metrics.jsonl")
                saved.meta["metrics"] = with_last_evaluation(saved.meta["metrics"], lines)
            if saved is not None and config.resume == AUTO and _is_over(config, specs, saved):
                return _finished_before(saved, claim.run_dir)
            if saved is not None:
                # Whatever the device is now.
                config = dataclasses.replace(config, network=_network(saved))
                changed = changes(given, checkpoint.read_config(run_dir_of(_resumed(given))))
                if changed:
                    say_line(config.run.progress, f"changed since: {', '.join(changed)}")
            with _traceback_kept(claim.run_dir):
                return _run(config, given, tasks, claim, saved, skipped, environment)


def _filled(given: Config, device: str, tasks: int) -> Config:
    """The config of a run of so many tasks on this device, with its preset's values."""
    is_here = given.address is None
    return fill(
        dataclasses.replace(given, device=device),
        tasks,
        can_compile=is_here and has_compiler(device),
        has_bfloat16=is_here and has_bfloat16(),
    )


def _resumed(config: Config) -> Path:
    """The run directory, or the checkpoint's, that a run is to be resumed from."""
    path = config.run_dir if config.resume == AUTO else config.resume
    assert path is not None
    return path


def _network(saved: checkpoint.Checkpoint) -> NetworkConfig:
    network: NetworkConfig = from_dict(saved.meta["config"]["network"], NetworkConfig)
    return network


def _cores_left() -> int:
    """Return this machine's cores but one, for the learner."""
    return max(1, usable_cores() - 1)


def _with_paths(config: Config) -> Config:
    """The config with absolute paths, which hold whatever the current folder is."""
    resume, run_dir = config.resume, config.run_dir
    if resume == AUTO:
        if run_dir is None:
            raise UsageError("--resume auto resumes the run in --run-dir, or starts it there: give --run-dir")
    elif resume is not None:
        resume = _absolute("--resume", resume)
        run_dir = run_dir or run_dir_of(resume)
    return dataclasses.replace(config, resume=resume, run_dir=_absolute("--run-dir", run_dir or default_run_dir()))


def _absolute(option: str, path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"{option} {path}: there is no home folder of that user") from error


def _check(config: Config, specs: Sequence[TaskSpec]) -> None:
    """Check what can be checked without the run directory."""
    from mtray.cluster.plan import make_pacing
    from mtray.config.task_weights import loss_weights, rows_per_task

    check_together(specs)
    check_machine(config, specs)
    if config.address is not None:
        check_address(config.address)
    make_pacing(config, specs)
    warmup = config.learner.warmup_steps * sum(spec.action_repeat for spec in specs)
    if config.frames is not None and config.frames <= warmup:
        _LOGGER.warning(
            "--total-frames %d ends the run within the %d frames of --learner.warmup-steps: nothing will be learned",
            config.frames,
            warmup,
        )
    names = [spec.name for spec in specs]
    loss_weights(config.learner, names)
    rows_per_task(config.learner, names)


def _read_saved(
    config: Config, network: NetworkConfig, specs: Sequence[TaskSpec]
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """Read what a resumed run continues from, if this is one, and what was skipped; nothing is written.

    ``network``: as given, with gaps.
    """
    if config.resume is None:
        return None, []
    is_auto = config.resume == AUTO
    path = _resumed(config)
    run_dir = run_dir_of(path)
    if not is_auto:
        check_resume(config, checkpoint.read_config(run_dir))
    saved: checkpoint.Checkpoint | None
    skipped: list[str] = []
    if path != run_dir:
        saved = read_chosen(path, checkpoint.read)
    else:
        saved, skipped = read_newest(run_dir, at_cut=config.deterministic)
    if saved is None and is_auto:
        if (run_dir / "config.json").exists():
            _LOGGER.warning(
                "%s: the run begins anew, as this command says; earlier figures are removed",
                no_checkpoint(run_dir).partition(":")[0],
            )
        return None, []
    if saved is None:
        raise UsageError(no_checkpoint(run_dir))
    if is_auto:
        check_resume(config, checkpoint.read_config(run_dir))
    check_network(network, _network(saved), path)
    check_specs([TaskSpec.from_dict(spec) for spec in saved.meta["specs"]], specs, f"when {run_dir} was saved")
    if not is_auto and _is_done(config, specs, saved):
        raise UsageError(f"--total-frames {config.frames}: {saved.path} has {saved.frames} already, give more")
    if not is_auto and _is_over(config, specs, saved):
        minutes = saved.meta["metrics"]["seconds"] / 60
        raise UsageError(f"--total-minutes {config.minutes:g}: {saved.path} has taken {minutes:.1f} already, give more")
    capacity = config.replay.capacity_rows
    for name, chunks in saved.rows.items():
        rows = chunks[-1].end - chunks[0].begin if chunks else 0
        if rows > capacity:
            _LOGGER.warning(
                "--replay.capacity-rows %d: of the %d rows of %s in %s the newest %d are kept",
                capacity, rows, name, saved.path, capacity,
            )  # fmt: skip
    return saved, skipped


def _is_over(config: Config, specs: Sequence[TaskSpec], saved: checkpoint.Checkpoint) -> bool:
    """Return whether a run that continues from a checkpoint has nothing left to do."""
    is_late = config.minutes is not None and saved.meta["metrics"]["seconds"] >= 60 * config.minutes
    return is_late or _is_done(config, specs, saved)


def _is_done(config: Config, specs: Sequence[TaskSpec], saved: checkpoint.Checkpoint) -> bool:
    """Return whether a checkpoint has all frames, and the updates that are owed for them.

    With other frames than the run had, it was not making updates for those.
    """
    from mtray.cluster.plan import make_pacing, resume_pacing

    if config.frames is None or saved.frames < config.frames:
        return False
    if config.frames != from_dict(saved.meta["config"]).frames:
        return True
    updates: int = saved.meta["metrics"]["updates"]
    return updates >= resume_pacing(make_pacing(config, specs), saved).updates_owed(saved.frames)


def _finished_before(saved: checkpoint.Checkpoint, run_dir: Path) -> dict[str, Any]:
    """Return the summary of a run that has nothing left to do; write it where the run was killed before it did.

    Raises:
        RunError: the run had failed.
        UsageError: its summary is damaged.
    """
    place = run_dir / "summary.json"
    if place.exists():
        with damaged(place):
            summary: dict[str, Any] = {**json.loads(place.read_bytes())}
            reason = str(summary["exit_reason"])
        if reason.startswith(_FAILED):
            raise RunError(f"{run_dir} has no minutes or frames left, and it {reason}; give more to go on")
        return summary
    state = saved.meta["metrics"]
    metrics = Metrics(state["tasks"], max(state["seconds"], last_seconds(run_dir)))
    metrics.load_state(state)
    lines = whole_lines(run_dir / "metrics.jsonl")
    # No checkpoint has it.
    version = lines[-1].get("weights_version") if lines else None
    summary = _summary(metrics, "finished") | {"weights_version": version}
    _write(place, summary)
    return summary


def _summary(metrics: Metrics, reason: str) -> dict[str, Any]:
    line = metrics.line()
    return {key: line[key] for key in _OF_SUMMARY} | {"wall_seconds": metrics.seconds, "exit_reason": reason}


@contextlib.contextmanager
def _traceback_kept(run_dir: Path) -> Iterator[None]:
    """Make an error that nobody raised on purpose a RunError of one line, its traceback in the run directory."""
    try:
        yield
    except MtrayError:
        raise
    except Exception as error:
        text, place = f"{type(error).__name__}: {error}", run_dir / "traceback.txt"
        with contextlib.suppress(OSError):
            place.write_text("".join(traceback.format_exception(error)))
            text += f"; the traceback is in {place}"
        raise RunError(text) from error


def _run(
    config: Config,
    given: Config,
    tasks: Sequence[Task],
    claim: Claim,
    saved: checkpoint.Checkpoint | None,
    skipped: Sequence[str],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    from mtray.cluster.plan import Shares, make_pacing
    from mtray.cluster.supervisor import Supervisor

    started, run_dir, specs = time.monotonic(), claim.run_dir, [task.spec for task in tasks]
    asked_to_stop: list[str] = []
    supervisor: Supervisor | None = None

    def has_made() -> bool:
        return supervisor is not None and supervisor.control.has_made()

    def what_follows() -> str:
        if supervisor is not None and supervisor.is_evaluated_last:
            return "all is saved, the last evaluation is left out"
        return "saving a checkpoint" if has_made() else "nothing is collected yet, so nothing is saved"

    with contextlib.ExitStack() as stack:
        install_handlers = stack.enter_context(stop_signals(asked_to_stop.append, what_follows))
        if config.workers == "auto" and config.address is None:
            config = dataclasses.replace(config, workers=_cores_left())
        tell = functools.partial(say_line, config.run.progress)
        tell("starting Ray ..." if config.address is None else f"joining {config.address} ...")
        session = stack.enter_context(ray_session(config, environment))
        install_handlers()
        follows_room = config.workers == "auto"
        config = _choose(config, given, tasks, session, is_new=saved is None)
        # What it refuses leaves the run directory as it was.
        make_pacing(config, specs)
        shares = Shares(config, tasks)
        tell(f"{run_dir}: {cost_line(config, specs)}{_end_line(config)}")
        # Only now: a folder that stays empty can be given again.
        claim.keep()
        seconds_before = begin(run_dir, saved, tell)
        described = run_dir / "config.json"
        before = described.read_text() if saved is not None and described.exists() else None
        _write(described, describe(given, config))
        placement = None
        if config.address is not None:
            placement = Placement(session.cpus_per_actor, needs_gpu=config.device.startswith("cuda"))
        supervisor = Supervisor(
            config,
            tasks,
            run_dir,
            _sinks(run_dir, saved),
            Screen(_picture(config), config.run.progress),
            shares=shares,
            resume=saved,
            skipped=skipped,
            seconds_before=seconds_before + time.monotonic() - started,
            cpus_per_actor=session.cpus_per_actor,
            placement=placement,
            follows_room=follows_room,
            asked_to_stop=asked_to_stop,
            ray_death=session.death,
        )

        def write_summary(reason: str) -> dict[str, Any]:
            summary = _summary(supervisor.metrics, reason)
            _write(run_dir / "summary.json", summary)
            return summary

        try:
            reason = supervisor.run()
        except BaseException as error:
            # The first error is the one to tell.
            with contextlib.suppress(RunError):
                told = "" if isinstance(error, MtrayError) else f"{type(error).__name__}: "
                write_summary(f"{_FAILED}{told}{error}")
            raise
        finally:
            if before is not None and not has_made():
                # It has changed nothing, so its settings are not what a later resume goes on with.
                with contextlib.suppress(OSError):
                    replace_file(described, before)
        return write_summary(reason)


def _choose(config: Config, given: Config, tasks: Sequence[Task], session: Session, *, is_new: bool) -> Config:
    """Return the config without gaps, now that cores and nodes are known."""
    if config.address is not None:
        device = choose_device(config, lambda: any(node.gpus >= 1 for node in look()))
        filled = _filled(given, device, len(tasks))
        network = filled.network if is_new else config.network
        config = dataclasses.replace(config, device=device, learner=filled.learner, network=network)
    if config.workers == "auto":
        config = dataclasses.replace(config, workers=session.room)
    host = config.host
    if host == "auto" and config.address is not None:
        # A core for each collector, which is what it takes of the cluster.
        host = "inline"
    elif host == "auto":
        host = choose_host(tasks, config.collectors, session.cores, config.collector.tasks_each)
    copies = config.copies(len(tasks))
    if config.envs_per_task is None and config.learner.slack_steps is None and not config.deterministic:
        copies = choose_copies(copies, len(tasks), config.collector.tasks_each)
    return dataclasses.replace(config, host=host, envs_per_task=copies)


def _picture(config: Config) -> Picture:
    copies = config.collectors * (config.envs_per_task or 0)
    return Picture(config.frames, config.minutes, config.collectors + 2, copies)


def _end_line(config: Config) -> str:
    """Return when the run will end."""
    ends = [] if config.frames is None else [f"{config.frames:,} frames"]
    ends += [] if config.minutes is None else [counted(config.minutes, "minute")]
    return f"; until {' or '.join(ends)}"


def _sinks(run_dir: Path, saved: checkpoint.Checkpoint | None) -> list[Sink]:
    lines, board = run_dir / "metrics.jsonl", run_dir / "tensorboard"
    return [
        Guarded(JsonLines(lines), str(lines)),
        Guarded(TensorBoard(board, saved.frames if saved else None), str(board)),
    ]


def _write(path: Path, value: Any) -> None:
    try:
        replace_file(path, to_json(value, indent=1))
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror or error}") from error
