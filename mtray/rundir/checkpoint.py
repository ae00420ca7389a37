"""Checkpoints and the run directory: what is written, whole or not at all.

A checkpoint is a folder that is filled under a temporary name, flushed to disk and renamed; ``latest`` is then
replaced in one step to name it. Whoever reads finds the newest whole one, whenever the writer was killed.

torch is imported by what needs it: the driver writes bytes that actors made, and starts without it.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mtray.config import plain as config_module
from mtray.config.settings import Config
from mtray.data.specs import FloatArray, TaskSpec
from mtray.errors import UsageError
from mtray.rundir.files import (
    DAMAGED,
    LATEST,
    META,
    damaged,
    file_name,
    other_checkpoints,
    read_checked,
    replace_file,
    sync,
    sync_folder,
    verify,
)

POLICY, LEARNER, REPLAY = "policy.pt", "learner.pt", "replay.json"


# Raised with every change of what is saved or of what it means. Before it was written down, it was 1.
FORMAT = 3


@dataclass
class Checkpoint:
    """Everything a run continues from.

    Attributes:
        frames: control steps of all tasks.
        meta: plain values: config, specs, counters.
        policy: what `torch.save` made of the policy's state.
        learner: what `torch.save` made of the learner's state.
        replay: the replay's plain state: counts and statistics, which a run needs even where it saves no rows.
        rows: task to rows held; empty if they were not saved.
    """

    frames: int
    meta: dict[str, Any]
    policy: bytes
    learner: bytes
    replay: dict[str, Any]
    rows: Mapping[str, FloatArray] = field(default_factory=dict)


def to_bytes(state: Any) -> bytes:
    """A state of tensors and plain values as bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    """What `to_bytes` was given; no code in it is run."""
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def write(run_dir: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, make it the latest, drop all but the newest ``keep``.

    Raises:
        OSError: it can't be written; what was saved before it is whole, and nothing partial is left.
    """
    folder = run_dir / "checkpoints"
    # Not its parents: a run directory that was deleted is not made again.
    folder.mkdir(exist_ok=True)
    # A name is never used twice: the folder that `latest` names stands until another is whole and named.
    name = f"{checkpoint.frames:012d}"
    suffixes = itertools.chain([""], (f".{count}" for count in itertools.count(1)))
    final = next(path for suffix in suffixes if not (path := folder / (name + suffix)).exists())
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_files(partial, checkpoint)
        partial.rename(final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        # A full disk does not say which file.
        error.filename = error.filename or str(final)
        raise
    sync_folder(folder)
    replace_file(folder / LATEST, final.name)
    others = [path for path in folder.iterdir() if path.is_dir() and path.name[0].isdigit() and path != final]
    # By when they were written: one that was never named may have a higher number.
    for old in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[keep - 1 :]:
        shutil.rmtree(old)
    return final


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    checksums = {}
    for name, content in _files(checkpoint):
        with (folder / name).open("wb") as file:
            summed = _Summed(file)
            content(summed)
            file.flush()
            sync(file.fileno())
        checksums[name] = summed.checksum
    meta = {
        **checkpoint.meta,
        "format": FORMAT,
        "frames": checkpoint.frames,
        "has_rows": bool(checkpoint.rows),
        "crc32": checksums,
    }
    with (folder / META).open("wb") as file:
        file.write(json.dumps(meta, indent=1).encode())
        file.flush()
        sync(file.fileno())
    sync_folder(folder)


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Each file's name, and what writes it into an open one."""
    yield POLICY, lambda file: file.write(checkpoint.policy)
    yield LEARNER, lambda file: file.write(checkpoint.learner)
    yield REPLAY, lambda file: file.write(json.dumps(checkpoint.replay).encode())
    for task, rows in checkpoint.rows.items():
        yield rows_file(task), functools.partial(_save_rows, rows=rows)


def _save_rows(file: Any, rows: FloatArray) -> None:
    np.lib.format.write_array(file, rows, allow_pickle=False)


class _Summed:
    """An open file that sums up what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = 0

    def write(self, data: Any) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return self._file.write(data)


def rows_file(task: str) -> str:
    """Return the name of the file with a task's rows, whatever the task's name."""
    return f"rows_{file_name(task)}.npy"


def remove_partial(run_dir: Path) -> None:
    """Remove what killed writers left half written; only the run directory's owner may."""
    for path in (run_dir / "checkpoints").glob(".*.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for path in run_dir.glob(".*.partial"):
        path.unlink(missing_ok=True)


def latest(run_dir: Path) -> Path:
    """Return the newest whole checkpoint of a run.

    Raises:
        UsageError: there is none, or the file that names it is damaged.
    """
    folder = run_dir / "checkpoints"
    named = folder / LATEST
    try:
        name = named.read_bytes()[:100].decode("ascii").strip()
    except UnicodeDecodeError:
        name = ""
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"no checkpoint in {run_dir}: {named} can't be read ({reason}){other_checkpoints(folder)}"
        ) from error
    if not name[:1].isdigit() or "/" in name:
        raise UsageError(f"{named} is damaged: it holds no checkpoint's name{other_checkpoints(folder)}")
    if not (folder / name / META).is_file():
        raise UsageError(f"checkpoint {folder / name} is not whole: {META} is missing{other_checkpoints(folder, name)}")
    return folder / name


def read(path: Path) -> Checkpoint:
    """Read a whole checkpoint.

    Raises:
        UsageError: names a file that is missing or damaged, or the format if another version wrote it.
    """
    meta = read_meta(path)
    policy, learner = read_checked(path / POLICY, meta), read_checked(path / LEARNER, meta)
    with damaged(path / REPLAY):
        replay = {**json.loads(read_checked(path / REPLAY, meta))}
    # Ids of pushes are a run's own: no push of this run repeats one of those.
    if "receipts" in replay:
        replay["receipts"] = {}
    rows = {}
    if meta.pop("has_rows"):
        for spec in meta["specs"]:
            file = path / rows_file(spec["name"])
            verify(file, meta)
            with damaged(file):
                rows[spec["name"]] = np.load(file, allow_pickle=False)
    meta.pop("crc32", None)
    return Checkpoint(meta["frames"], meta, policy, learner, replay, rows)


def read_meta(path: Path) -> dict[str, Any]:
    """Read the plain values of a checkpoint.

    Raises:
        UsageError: the file is missing or damaged, or another version wrote it in another format.
    """
    with damaged(path / META):
        meta = {**json.loads((path / META).read_bytes())}
        check_format(path, meta)
        int(meta["frames"]), bool(meta["has_rows"])
        for spec in meta["specs"]:
            TaskSpec.from_dict(spec)
    return meta


def check_format(path: Path, meta: dict[str, Any]) -> None:
    """Raise a UsageError unless this version reads the format that ``meta`` names."""
    found = meta.pop("format", 1)
    if found != FORMAT:
        raise UsageError(
            f"checkpoint {path} has format {found}, and this version reads format {FORMAT} only: use the version of "
            "mtray that wrote it, or start a new run"
        )


def read_config(run_dir: str | Path) -> Config:
    """Read the settings that a run directory was made with; ``dataclasses.replace`` gives those of a resume.

    Raises:
        UsageError: it is no run directory, or was made by a version with other settings.
    """
    path = Path(run_dir) / "config.json"
    try:
        config: Config = config_module.from_dict(json.loads(path.read_bytes())["config"])
    except (*DAMAGED, UsageError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UsageError(f"{run_dir} is no run directory of this version: {path}: {reason}") from error
    return config
