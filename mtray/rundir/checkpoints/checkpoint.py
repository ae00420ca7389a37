"""Checkpoints: what they hold, and how they are found and read.

A checkpoint is a folder with the policy's and the learner's states (of a run in lockstep the collectors' too), the
replay's counts and statistics, its rows in chunks, and `meta.json`, which names every file with its checksum.
`mtray.rundir.checkpoints.writer` writes them, whole or not at all, so that a reader finds the newest whole one,
whenever the writer was killed.

torch is imported only where needed: the driver writes bytes that actors made, and starts without it.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    other_checkpoints,
    read_checked,
    verify,
)

POLICY, LEARNER, REPLAY, COLLECTOR = "policy.pt", "learner.pt", "replay.json", "collector-{}.npz"


# Raised with every change of what is saved or of what it means. Before it was written down, it was 1.
FORMAT = 5


@dataclass(frozen=True)
class Chunk:
    """Rows of one task that follow each other, in a file that is never changed.

    Attributes:
        begin: number of the first row.
        end: number after the last.
        path: of the file.
        checksum: its CRC-32.
    """

    begin: int
    end: int
    path: Path
    checksum: int

    def load(self) -> FloatArray:
        """Return the rows, [end - begin, row_size] float32.

        Raises:
            UsageError: the file is missing or damaged.
        """
        with damaged(self.path):
            rows: FloatArray = np.load(self.path, allow_pickle=False)
        return rows


@dataclass
class Checkpoint:
    """Everything a run continues from.

    Attributes:
        frames: control steps of all tasks.
        meta: plain values: config, specs, counters.
        policy: what `torch.save` made of the policy's state.
        learner: what `torch.save` made of the learner's state.
        replay: the replay's plain state: counts and statistics, which a run needs even where it saves no rows.
        rows: task to chunks, the oldest rows first; empty if rows were not saved.
        path: its folder; None before it is written.
        collectors: the state of each of a run in lockstep, in the order of ``meta["collectors"]``, what each steps;
            empty if they have none, so that a resumed run begins new episodes.
    """

    frames: int
    meta: dict[str, Any]
    policy: bytes
    learner: bytes
    replay: dict[str, Any]
    rows: Mapping[str, Sequence[Chunk]] = field(default_factory=dict)
    path: Path | None = None
    collectors: Sequence[bytes] = ()


def to_bytes(state: Any) -> bytes:
    """Return a state of tensors and plain values as bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    """Return what `to_bytes` was given; no code in it is run."""
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


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


def read_newest(run_dir: Path, *, at_cut: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """Read a run's newest whole checkpoint; return it and notes for the user: which newer ones were skipped, and why.

    The newest is the one that `latest` names, then come the others from the highest number down.

    Args:
        run_dir: the run's.
        at_cut: prefer those that a run in lockstep wrote at a multiple of the frames between two checkpoints.
    """
    folder = run_dir / "checkpoints"
    skipped: list[str] = []
    names = sorted((path.name for path in folder.glob("[0-9]*") if path.is_dir()), reverse=True)
    try:
        named = latest(run_dir).name
        names.sort(key=lambda name: name != named)
    except UsageError as error:
        if names:
            skipped.append(_reason(error))
    newest: Checkpoint | None = None
    for name in names:
        try:
            found = read(folder / name)
        except UsageError as error:
            skipped.append(_reason(error))
            continue
        if not at_cut or found.meta.get("is_at_cut"):
            if newest is not None:
                skipped.append(f"{newest.path}: a run in lockstep goes on from a multiple of --run.checkpoint-frames")
            return found, skipped
        newest = newest or found
    if newest is not None:
        skipped.append(
            f"none before {newest.path} is at a multiple of --run.checkpoint-frames, so what follows is not bit "
            "for bit what an unbroken run gives"
        )
    return newest, skipped


def _reason(error: UsageError) -> str:
    """Return an error's text without the remedy, which is what is done."""
    return str(error).partition("; to go on from another")[0]


def read(path: Path) -> Checkpoint:
    """Read a whole checkpoint.

    Raises:
        UsageError: names a file that is missing or damaged, or the format if another version wrote it.
    """
    meta = read_meta(path)
    policy, learner = read_checked(path / POLICY, meta), read_checked(path / LEARNER, meta)
    states = [path / COLLECTOR.format(place) for place, _ in enumerate(meta.get("collectors", ()))]
    collectors = [read_checked(state, meta) for state in states]
    with damaged(path / REPLAY):
        replay = {**json.loads(read_checked(path / REPLAY, meta))}
    # Ids of pushes are a run's own: no push of this run repeats one of those.
    replay |= {"receipts": {}, "sources": {}}
    rows: dict[str, list[Chunk]] = {}
    with damaged(path / META):
        for task, chunks in meta.pop("rows").items():
            rows[task] = []
            for begin, end, name in chunks:
                if Path(name).name != name:
                    raise ValueError(f"its rows are in {name}, outside of the checkpoint")
                rows[task].append(Chunk(begin, end, path / name, meta["crc32"][name]))
    for chunk in (chunk for chunks in rows.values() for chunk in chunks):
        verify(chunk.path, meta)
    meta.pop("crc32", None)
    return Checkpoint(meta["frames"], meta, policy, learner, replay, rows, path, collectors)


def read_meta(path: Path) -> dict[str, Any]:
    """Read the plain values of a checkpoint.

    Raises:
        UsageError: the file is missing or damaged, or another version wrote it in another format.
    """
    with damaged(path / META):
        meta = {**json.loads((path / META).read_bytes())}
        check_format(path, meta)
        int(meta["frames"]), dict(meta["rows"])
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
