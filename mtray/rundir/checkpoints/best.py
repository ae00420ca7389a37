"""The best policy of a run so far, by its evaluations, kept beside the newest checkpoints.

`BEST` names its folder, which holds the policy and what it was evaluated with, but nothing that a run continues from.
"""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtray.errors import UsageError
from mtray.rundir.checkpoints.checkpoint import FORMAT, POLICY, read_meta
from mtray.rundir.files import META, replace_file, sync_folder, to_json, write_synced

BEST = "best"


class BestPolicy:
    """Keeps the policy whose returns are higher than those of the one before, over all tasks.

    Returns of different tasks are compared by their range: a policy is better if its returns exceed those of the best,
    each divided by the difference of the highest and the lowest return of that task, on average over tasks.
    """

    def __init__(self, run_dir: Path) -> None:
        """Go on from the best of this run directory, if there is one."""
        self._run_dir = run_dir
        self._returns: dict[str, float] = {}
        self._ranges: dict[str, tuple[float, float]] = {}
        with contextlib.suppress(UsageError, KeyError, TypeError, ValueError):
            evaluation = read_meta(best_of(run_dir))["evaluation"]
            self._returns = {task: float(value) for task, value in evaluation["returns"].items()}
            self._ranges = {task: (float(low), float(high)) for task, (low, high) in evaluation["ranges"].items()}

    def offer(self, policy: bytes, returns: Mapping[str, float], meta: Mapping[str, Any]) -> bool:
        """Keep a policy if it is the best; return whether it is.

        Args:
            policy: what `torch.save` made of its state.
            returns: task to mean return.
            meta: plain values to keep with it: ``updates``, ``frames``, ``config`` and ``specs``.

        Raises:
            OSError: it can't be written; the one before stays.
        """
        for task, value in returns.items():
            low, high = self._ranges.get(task, (value, value))
            self._ranges[task] = min(low, value), max(high, value)
        if self._returns and self._gain(returns) <= 0:
            return False
        self._write(policy, returns, meta)
        self._returns = dict(returns)
        return True

    def _gain(self, returns: Mapping[str, float]) -> float:
        gain = 0.0
        for task in returns.keys() & self._returns.keys():
            low, high = self._ranges[task]
            gain += (returns[task] - self._returns[task]) / (high - low) if high > low else 0.0
        return gain

    def _write(self, policy: bytes, returns: Mapping[str, float], meta: Mapping[str, Any]) -> None:
        folder = self._run_dir / "checkpoints"
        # Not its parents: a run directory that was deleted is not made again.
        folder.mkdir(exist_ok=True)
        name = f"{BEST}-{meta['updates']:012d}"
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        evaluation = {"returns": dict(returns), "ranges": self._ranges}
        whole = {**meta, "evaluation": evaluation, "format": FORMAT, "rows": {}, "crc32": {POLICY: zlib.crc32(policy)}}
        try:
            partial.mkdir()
            write_synced(partial / POLICY, policy)
            write_synced(partial / META, to_json(whole, indent=1).encode())
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
        f"{run_dir} has no best policy yet: one is kept once a trained policy was evaluated during the run "
        "(--run.evaluate-every); take the newest one until then"
    )
