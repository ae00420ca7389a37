"""Which checkpoint of a run is read: the one that was named, or the newest whole one; and remedies where there is none.

`LATEST` names the newest. A run that goes on from an older one makes that the newest at once, so that whoever reads the
run directory next begins there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mtray.errors import UsageError
from mtray.rundir.checkpoints.checkpoint import Checkpoint, OtherFormatError, checkpoints_of, latest, order, read
from mtray.rundir.files import LATEST, META, replace_file

_Read = TypeVar("_Read")


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is the folder of one checkpoint, whole or not, and no run directory."""
    if (path / "config.json").is_file():
        return False
    return (path / META).is_file() or (path.parent.name == "checkpoints" and order(path) is not None)


def read_chosen(path: Path, read_one: Callable[[Path], _Read]) -> _Read:
    """Read what a path names: one checkpoint's folder, or a run directory, whose newest is taken.

    Args:
        path: the folder.
        read_one: reads what is needed of a checkpoint.

    Raises:
        UsageError: there is no checkpoint; it is damaged, with another one that can be read, or the damage of all; or
            another version wrote it.
    """
    is_one = is_checkpoint(path)
    others = checkpoints_of(path.parent.parent if is_one else path)
    if not is_one and not others:
        raise UsageError(no_checkpoint(path))
    damage = []
    try:
        return read_one(path if is_one else latest(path))
    except OtherFormatError:
        raise
    except UsageError as error:
        damage.append(str(error))
    for other in reversed(others):
        try:
            read_one(other)
        except UsageError as error:
            damage.append(str(error))
            continue
        raise UsageError(f"{damage[0]}: give a checkpoint that is whole, {other}")
    raise UsageError(_none_is_whole(damage))


def read_newest(run_dir: Path, *, at_cut: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """Read a run's newest whole checkpoint; return it and notes for the user: which newer ones were skipped, and why.

    The newest is the one that `LATEST` names, then come the others from the highest number down.

    Args:
        run_dir: the run's.
        at_cut: prefer those that a run in lockstep wrote at a multiple of the frames between two checkpoints.

    Returns:
        The checkpoint, None if the run has none; and the notes.

    Raises:
        UsageError: there are checkpoints, but none is whole, or another version wrote one.
    """
    paths = checkpoints_of(run_dir)[::-1]
    if not paths:
        return None, []
    skipped: list[str] = []
    try:
        named = latest(run_dir)
        paths.sort(key=lambda path: path != named)
    except UsageError as error:
        skipped.append(str(error))
    newest: Checkpoint | None = None
    for path in paths:
        try:
            found = read(path)
        except OtherFormatError:
            raise
        except UsageError as error:
            skipped.append(str(error))
            continue
        if not at_cut or found.meta.get("is_at_cut"):
            if newest is not None:
                skipped.append(f"{newest.path}: a run in lockstep goes on from a multiple of --run.checkpoint-frames")
            return found, skipped
        newest = newest or found
    if newest is None:
        raise UsageError(_none_is_whole(skipped))
    skipped.append(
        f"the multiple of --run.checkpoint-frames before {newest.path}: there is no checkpoint at one, so what follows "
        "is not bit for bit what an unbroken run gives"
    )
    return newest, skipped


def newer_than(path: Path, run_dir: Path) -> list[Path]:
    """Return a run's checkpoints that are newer than this one of its own; none if it is another run's."""
    place = order(path)
    if place is None or path.resolve().parent != (run_dir / "checkpoints").resolve():
        return []
    return [other for other in checkpoints_of(run_dir) if (order(other) or place) > place]


def go_on_from(path: Path, run_dir: Path) -> list[Path]:
    """Make a checkpoint its run's newest, in one step, and return those that were newer; none if it is another run's.

    The next to resume the run goes on from here, too, also if this one ends before it saves.

    Raises:
        OSError: it can't be written; the one before stays the newest.
    """
    if path.resolve().parent != (run_dir / "checkpoints").resolve():
        return []
    named = run_dir / "checkpoints" / LATEST
    if not named.is_file() or named.read_bytes() != path.name.encode():
        replace_file(named, path.name)
    return newer_than(path, run_dir)


def no_checkpoint(path: Path) -> str:
    """Return the error about a folder without a checkpoint."""
    if not (path / "config.json").is_file():
        return (
            f"{path} is no run directory: it has no config.json; give the folder of a run, as its --run-dir named it, "
            "or of one of its checkpoints"
        )
    return (
        f"no checkpoint in {path}: its run has not saved yet; wait for its first save, or, if it has ended, start it "
        f"anew with --run-dir {path} --resume auto and its settings"
    )


def _none_is_whole(damage: Sequence[str]) -> str:
    return (
        f"{'; '.join(dict.fromkeys(damage))}: no checkpoint is whole; restore the files of one from a backup, or start "
        "anew in another --run-dir"
    )
