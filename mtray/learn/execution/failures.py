"""Non-finite numbers of an update: raised at once, or flagged on the device and raised later.

A recorded update can't stop in its middle, and reading a number back makes the CPU wait for the device. So the first
failure sets a flag on the device, every later optimiser step is skipped, and the flag is read from time to time.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtray.errors import NotFiniteError


class Check(enum.IntEnum):
    """The checked parts of an update, in their order."""

    DATA = 0
    CRITIC = 1
    ACTOR = 2


class Checked(NamedTuple):
    """A checked part of an update.

    Attributes:
        check: which.
        total: [], not finite if the part is not.
        values: [n], one per task; the tasks of non-finite values have failed.
    """

    check: Check
    total: Tensor
    values: Tensor


class NonFiniteFlag:
    """The first non-finite loss, gradient or row of data.

    Attributes:
        is_deferred: whether failures are flagged by what `after` returns, and returned by `take`, or raised at once.
        skip: [] float32, 1 once a failure is flagged. Fused optimisers take it as ``found_inf``: while it is 1, their
            steps change nothing.
        updates: [] int64, updates made before the failure.
    """

    def __init__(self, tasks: Sequence[str], device: torch.device, *, is_deferred: bool) -> None:
        """Start without a failure, for updates over these tasks."""
        self.is_deferred = is_deferred
        self.skip = torch.zeros((), device=device)
        self.updates = torch.zeros((), device=device, dtype=torch.int64)
        self._tasks = tuple(tasks)
        # Each check's values by task and their total; they stay as they are once the flag is set.
        self._values = torch.zeros(len(Check), len(tasks) + 1, device=device)

    def after(self, checks: Sequence[Checked], ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `state` after these checks, in their order; nothing is changed.

        Args:
            checks: what was checked.
            ids: [n] task of each value; None for all tasks in order.
        """
        skip, stored = self.skip, list(self._values)
        for check, total, values in checks:
            by_task, _ = mean_by_task(values, ids, len(self._tasks))
            stored[check] = torch.where(skip == 0, torch.cat([by_task, total.view(1)]), stored[check])
            # x - x is NaN for a non-finite x, and NaN != 0.
            skip = torch.maximum(skip, (total - total) != 0)
        return skip, torch.stack(stored)

    def verify(self, checks: Sequence[Checked], ids: Tensor | None) -> None:
        """Raise the first failure of these checks; arguments as `after`'s.

        Raises:
            NotFiniteError: a total is not finite.
        """
        for check, total, values in checks:
            if math.isfinite(total.item()):
                continue
            indices = range(len(values)) if ids is None else ids.tolist()
            failed = {
                self._tasks[index]
                for index, value in zip(indices, values.tolist(), strict=True)
                if not math.isfinite(value)
            }
            raise self._error(check, failed or {self._tasks[index] for index in indices})

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """The flag, `skip`, and each check's values; set in place."""
        return self.skip, self._values

    def count_update(self) -> Tensor:
        """Count an update unless a failure is flagged; return [] float32, 1 if it was counted."""
        counted = 1 - self.skip
        self.updates += counted.long()
        return counted

    def take(self) -> NotFiniteError | None:
        """Return the flagged failure and clear the flag; None if there is none."""
        if not self.skip.item():
            return None
        not_finite = ~self._values.isfinite()
        check = Check(int(not_finite[:, -1].int().argmax()))
        failed = {task for task, bad in zip(self._tasks, not_finite[check, :-1].tolist(), strict=True) if bad}
        self.clear()
        return self._error(check, failed or set(self._tasks))

    def clear(self) -> None:
        """Forget the flagged failure, if there is one."""
        self._values.zero_()
        self.skip.zero_()

    def _error(self, check: Check, failed: set[str]) -> NotFiniteError:
        tasks, update = [task for task in self._tasks if task in failed], int(self.updates)
        names = ", ".join(tasks)
        if check is Check.DATA:
            return NotFiniteError(f"data of {names} is not finite: no update is made with it", tasks, update)
        network = check.name.lower()
        message = (
            f"the {network}'s loss of {names} or its gradient is not finite at update {update}: "
            f"the {network}'s weights stay as they were"
        )
        return NotFiniteError(message, tasks, update)


def mean_by_task(values: Tensor, ids: Tensor | None, tasks: int) -> tuple[Tensor, Tensor]:
    """Return the means [T] of values [n] by task, 0 for tasks without values, and which tasks have values, [T] bool.

    ``ids`` [n] are the tasks of the values; None for all tasks in order.
    """
    if ids is None:
        return values, torch.ones_like(values, dtype=torch.bool)
    zeros = values.new_zeros(tasks)
    sums, counts = zeros.index_add(0, ids, values), zeros.index_add(0, ids, torch.ones_like(values))
    return sums / counts.clamp_min(1), counts > 0
