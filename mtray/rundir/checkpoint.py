"""Checkpoints and the run directory: what is written, whole or not at all.

A checkpoint is a folder that is filled under a temporary name, flushed to disk and renamed; ``latest`` is then
replaced in one step to name it. Whoever reads finds the newest whole one, whenever the writer was killed.

torch is imported by what needs it: the driver writes bytes that actors made, and starts without it.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtray.config import plain as config_module
from mtray.config.settings import Config
from mtray.data.specs import FloatArray
from mtray.errors import UsageError

if TYPE_CHECKING:
    pass


# What reading a damaged file of JSON, numpy or torch raises.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, pickle.UnpicklingError)


META, POLICY, LEARNER, REPLAY = "meta.json", "policy.pt", "learner.pt", "replay.json"


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
        replay: the replay's plain state, None if it was not saved.
        rows: task to rows held.
    """

    frames: int
    meta: dict[str, Any]
    policy: bytes
    learner: bytes
    replay: dict[str, Any] | None = None
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
    """Write a checkpoint, make it the latest, drop all but the newest ``keep``."""
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    # A name is never used twice: the folder that `latest` names stands until another is whole and named.
    name = f"{checkpoint.frames:012d}"
    suffixes = itertools.chain([""], (f".{count}" for count in itertools.count(1)))
    final = next(path for suffix in suffixes if not (path := folder / (name + suffix)).exists())
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _write_file(partial / POLICY, checkpoint.policy)
    _write_file(partial / LEARNER, checkpoint.learner)
    if checkpoint.replay is not None:
        _write_file(partial / REPLAY, json.dumps(checkpoint.replay).encode())
        for task, rows in checkpoint.rows.items():
            with (partial / f"rows_{task}.npy").open("wb") as file:
                np.save(file, rows)
                _flush(file.fileno())
    meta = {
        **checkpoint.meta,
        "format": FORMAT,
        "frames": checkpoint.frames,
        "has_replay": checkpoint.replay is not None,
    }
    _write_file(partial / META, json.dumps(meta, indent=1).encode())
    partial.rename(final)
    _flush_folder(folder)
    replace_file(folder / "latest", final.name)
    others = [path for path in folder.iterdir() if path.is_dir() and path.name[0].isdigit() and path != final]
    # By when they were written: one that was never named may have a higher number.
    for old in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[keep - 1 :]:
        shutil.rmtree(old)
    return final


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        _flush(file.fileno())


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Write a small file so that a reader finds the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    _write_file(partial, text.encode())
    partial.replace(path)
    _flush_folder(path.parent)


def latest(run_dir: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        UsageError: there is none.
    """
    folder = run_dir / "checkpoints"
    try:
        path = folder / (folder / "latest").read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no checkpoint in {run_dir}: expected the file {folder / 'latest'} ({error})") from error
    if not (path / META).is_file():
        raise UsageError(f"checkpoint {path} is named by 'latest' but is not whole: {META} is missing")
    return path


def read(path: Path) -> Checkpoint:
    """Read a whole checkpoint.

    Raises:
        UsageError: a file is missing or damaged, or another version wrote it in another format.
    """
    try:
        meta = json.loads((path / META).read_text())
        replay, rows = None, {}
        check_format(path, meta)
        if meta.pop("has_replay"):
            replay = json.loads((path / REPLAY).read_text())
            rows = {spec["name"]: np.load(path / f"rows_{spec['name']}.npy") for spec in meta["specs"]}
        policy, learner = (path / POLICY).read_bytes(), (path / LEARNER).read_bytes()
        return Checkpoint(meta["frames"], meta, policy, learner, replay, rows)
    except DAMAGED as error:
        raise UsageError(f"checkpoint {path} can't be read: {type(error).__name__}: {error}") from error


def check_format(path: Path, meta: dict[str, Any]) -> None:
    """Raise a UsageError unless this version reads the format that ``meta`` names."""
    found = meta.pop("format", 1)
    if found != FORMAT:
        raise UsageError(
            f"checkpoint {path} has format {found}, and this version reads format {FORMAT} only: use the version of "
            "mtray that wrote it, or start a new run"
        )


def read_config(run_dir: Path) -> Config:
    """The config that a run directory was made with.

    Raises:
        UsageError: it is no run directory, or was made by a version with other settings.
    """
    path = run_dir / "config.json"
    try:
        config: Config = config_module.from_dict(json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise UsageError(f"{run_dir} is no run directory of this version: {path}: {error}") from error
    return config
