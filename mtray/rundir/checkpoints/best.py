"""The best policy of a run so far, by its evaluations, kept beside the newest checkpoints.

`BEST` names its folder, which holds the policy and its evaluation, but nothing that a run continues from. `RANGES`
holds the lowest and the highest return of each task over all evaluations of the run, so that a resume knows them.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtray.errors import UsageError
from mtray.rundir.checkpoints.checkpoint import FORMAT, POLICY, read_meta
from mtray.rundir.files import META, replace_file, sync_folder, write_synced

BEST, RANGES = "best", "ranges.json"
# Least range of a task's returns, as a share of the largest: differences of a task that was solved before its first
# evaluation are noise.
_LEAST_RANGE = 0.05


class BestPolicy:
    """Keeps the policy whose returns are higher than those of the one before, over all tasks.

    A policy is better if the sum over tasks of (its return - the best's return) / range is positive. A task's range is
    the difference of the highest and the lowest return of all evaluations so far, but at least `_LEAST_RANGE` of the
    largest absolute return.
    """

    def __init__(self, run_dir: Path) -> None:
        """Go on from the best of this run directory, if there is one."""
        self._run_dir = run_dir
        self._returns: dict[str, float] = {}
        self._ranges: dict[str, tuple[float, float]] = {}
        with contextlib.suppress(UsageError, KeyError, TypeError, ValueError):
            evaluation = read_meta(best_of(run_dir))["evaluation"]
            self._returns = {task: float(value) for task, value in evaluation["returns"].items()}
        with contextlib.suppress(OSError, AttributeError, TypeError, ValueError):
            ranges = json.loads((run_dir / "checkpoints" / RANGES).read_bytes())
            self._ranges = {task: (float(low), float(high)) for task, (low, high) in ranges.items()}
        self._include(self._returns)

    def widen(self, returns: Mapping[str, float]) -> None:
        """Count returns for the ranges only: those of a policy that must not be kept, as before the first update.

        Raises:
            OSError: the ranges can't be written; they count until the run ends.
        """
        before = dict(self._ranges)
        self._include(returns)
        if self._ranges != before:
            replace_file(self._folder() / RANGES, json.dumps(self._ranges))

    def offer(self, policy: bytes, returns: Mapping[str, float], meta: Mapping[str, Any]) -> bool:
        """Keep a policy if it is the best; return whether it is.

        Args:
            policy: what `torch.save` made of its state.
            returns: task to mean return, of every task but those that are set aside. A policy with a return that is
                not finite is never kept.
            meta: plain values to keep with it: ``updates``, ``frames``, ``config`` and ``specs``.

        Raises:
            OSError: it can't be written; the one before stays.
        """
        self.widen(returns)
        if not all(map(math.isfinite, returns.values())) or (self._returns and self._gain(returns) <= 0):
            return False
        self._write(policy, returns, meta)
        self._returns = dict(returns)
        return True

    def _include(self, returns: Mapping[str, float]) -> None:
        for task, value in returns.items():
            if math.isfinite(value):
                low, high = self._ranges.get(task, (value, value))
                self._ranges[task] = min(low, value), max(high, value)

    def _gain(self, returns: Mapping[str, float]) -> float:
        gain = 0.0
        for task, value in returns.items():
            low, high = self._ranges[task]
            # The best was not evaluated in a task that was set aside then.
            more = value - self._returns.get(task, low)
            gain += more / max(high - low, _LEAST_RANGE * max(-low, high)) if more else 0.0
        return gain

    def _folder(self) -> Path:
        folder = self._run_dir / "checkpoints"
        # Not its parents: a run directory that was deleted is not made again.
        folder.mkdir(exist_ok=True)
        return folder

    def _write(self, policy: bytes, returns: Mapping[str, float], meta: Mapping[str, Any]) -> None:
        folder = self._folder()
        name = f"{BEST}-{meta['updates']:012d}"
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        evaluation = {"returns": dict(returns)}
        whole = {**meta, "evaluation": evaluation, "format": FORMAT, "rows": {}, "crc32": {POLICY: zlib.crc32(policy)}}
        try:
            partial.mkdir()
            write_synced(partial / POLICY, policy)
            # With infinities, which standard JSON lacks: bounds of actions may be infinite.
            write_synced(partial / META, json.dumps(whole, indent=1).encode())
            sync_folder(partial)
            # One of as many updates: of a run that was resumed from before it.
            shutil.rmtree(folder / name, ignore_errors=True)
            partial.rename(folder / name)
            sync_folder(folder)
            replace_file(folder / BEST, name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for other in folder.glob(f"{BEST}-*"):
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)


def best_of(run_dir: Path) -> Path:
    """Return the folder of a run's best policy.

    Raises:
        UsageError: there is none.
    """
    named = run_dir / "checkpoints" / BEST
    with contextlib.suppress(OSError, UnicodeDecodeError):
        name = named.read_bytes()[:100].decode("ascii").strip()
        if name.startswith(f"{BEST}-") and "/" not in name and (named.parent / name / META).is_file():
            return named.parent / name
    raise UsageError(
        f"{run_dir} has no best policy: one is kept once a trained policy was evaluated during the run "
        "(--run.evaluate-every, two minutes by default); take the newest one"
    )
