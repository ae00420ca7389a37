"""Checkpoints: what they hold, and how they are found and read.

A checkpoint is a folder with the policy's and the learner's states (of a run in lockstep the collectors' too), the
replay's counts and statistics, its rows in chunks, and `meta.json`, which names every file with its checksum.
`mtray.rundir.checkpoints.writer` writes them, whole or not at all, so that a reader finds the newest whole one,
whenever the writer was killed.

torch is imported only where needed: the driver writes bytes that actors made, and starts without it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtray.config import plain as config_module
from mtray.config.settings import Config
from mtray.config.types import to_path
from mtray.data.specs import FloatArray, TaskSpec
from mtray.errors import UsageError
from mtray.rundir.files import DAMAGED, LATEST, META, damaged, verify

POLICY, LEARNER, REPLAY, COLLECTOR = "policy.pt", "learner.pt", "replay.json", "collector-{}.npz"
# Files that an error about a damaged checkpoint names.
_NAMED = 4
_NAME = re.compile(r"(\d+)(?:\.(\d+))?")


# Raised with every change of what is saved or of what it means. Before it was written down, it was 1.
FORMAT = 6
# Format 5 had no weights of the critic's losses; they are found anew within an update.
_READ = 5, FORMAT


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


def order(path: Path) -> tuple[int, int] | None:
    """Return what checkpoints are sorted by: frames, then the number behind the point; None for any other folder.

    The number tells checkpoints of equal frames apart: the second one is ``000000001000.1``.
    """
    found = _NAME.fullmatch(path.name)
    return found and (int(found[1]), int(found[2] or 0))


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, whole or not, the oldest first."""
    found = [path for path in (run_dir / "checkpoints").glob("[0-9]*") if order(path) and path.is_dir()]
    return sorted(found, key=lambda path: order(path) or (0, 0))


def latest(run_dir: Path) -> Path:
    """Return the checkpoint that a run goes on from: the one that `LATEST` names.

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
        raise UsageError(f"no checkpoint in {run_dir}: {named} can't be read ({reason})") from error
    if not name[:1].isdigit() or "/" in name:
        raise UsageError(f"{named} is damaged: it holds no checkpoint's name")
    if not (folder / name / META).is_file():
        raise UsageError(f"checkpoint {folder / name} is not whole: {META} is missing")
    return folder / name


def read(path: Path) -> Checkpoint:
    """Read a whole checkpoint.

    Raises:
        UsageError: names a file that is missing or damaged, or the format if another version wrote it.
    """
    meta = read_meta(path)
    if "evaluation" in meta:
        raise UsageError(f"{path} holds a policy only, the best of its run, and no run continues from it")
    states = [path / COLLECTOR.format(place) for place, _ in enumerate(meta.get("collectors", ()))]
    rows: dict[str, list[Chunk]] = {}
    with damaged(path / META):
        for task, chunks in meta.pop("rows").items():
            rows[task] = []
            for begin, end, name in chunks:
                if Path(name).name != name:
                    raise ValueError(f"its rows are in {name}, outside of the checkpoint")
                rows[task].append(Chunk(begin, end, path / name, meta["crc32"][name]))
    files = [path / POLICY, path / LEARNER, path / REPLAY, *states]
    _verify_all([*files, *(chunk.path for of in rows.values() for chunk in of)], meta)
    with damaged(path / REPLAY):
        replay = {**json.loads((path / REPLAY).read_bytes())}
    # Ids of pushes are a run's own: no push of this run repeats one of those.
    replay |= {"receipts": {}, "sources": {}}
    policy, learner = (path / POLICY).read_bytes(), (path / LEARNER).read_bytes()
    meta.pop("crc32", None)
    return Checkpoint(
        meta["frames"], meta, policy, learner, replay, rows, path, [state.read_bytes() for state in states]
    )


def _verify_all(paths: Sequence[Path], meta: Mapping[str, Any]) -> None:
    """Raise one UsageError that names every file that is missing or damaged, the first of many."""
    found = []
    for path in paths:
        try:
            verify(path, meta)
        except UsageError as error:
            found.append(str(error))
    if found:
        more = f", and {len(found) - _NAMED} more files of it" if len(found) > _NAMED else ""
        raise UsageError(", ".join(found[:_NAMED]) + more)


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


class OtherFormatError(UsageError):
    """Another version wrote the checkpoint; it is not damaged."""


def check_format(path: Path, meta: dict[str, Any]) -> None:
    """Raise an OtherFormatError unless this version reads the format that ``meta`` names."""
    found = meta.pop("format", 1)
    if found not in _READ:
        raise OtherFormatError(
            f"checkpoint {path} has format {found}, and this version reads formats {_READ[0]} and {_READ[1]}: use the "
            "version of mtray that wrote it, or start a new run"
        )


def read_config(run_dir: str | Path) -> Config:
    """Read the settings that a run directory was made with; ``dataclasses.replace`` gives those of a resume.

    Raises:
        UsageError: it is no run directory, or was made by a version with other settings.
    """
    path = to_path(run_dir, "run_dir") / "config.json"
    try:
        config: Config = config_module.from_dict(json.loads(path.read_bytes())["config"])
    except OSError as error:
        raise UsageError(
            f"{run_dir} is no run directory ({path}: {error.strerror or error}): give the folder of a run, as its "
            "--run-dir named it, or of one of its checkpoints"
        ) from error
    except (*DAMAGED, UsageError) as error:
        raise UsageError(
            f"{run_dir} is no run directory of this version ({path}: {error}): use the version of mtray that made it, "
            "restore the file from a backup, or start a new run"
        ) from error
    # It may have been moved, or copied from another machine.
    return dataclasses.replace(config, run_dir=Path(run_dir).absolute())
