"""Non-finite numbers of an update: raised at once, or flagged on the device and raised later.

A recorded update can't stop in its middle, and reading a number back makes the CPU wait for the device. So the first
failure sets a flag on the device; from then on every optimiser step is skipped, and the flag is read now and then.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtray.errors import NotFiniteError


class Check(enum.IntEnum):
    """What may turn out not to be finite, in the order of an update."""

    DATA = 0
    CRITIC = 1
    ACTOR = 2


class NonFiniteFlag:
    """The first non-finite loss, gradient or row of data.

    Attributes:
        is_deferred: whether failures are flagged and raised by `raise_if_set`, not at once.
        skip: [] float32, 1 once a failure is flagged. Fused optimisers take it as ``found_inf``: while it is 1, their
            steps change nothing.
        updates: [] int64, updates made before the failure.
    """

    def __init__(self, tasks: Sequence[str], device: torch.device, *, is_deferred: bool) -> None:
        """Start without a failure, for an update over these tasks."""
        self.is_deferred = is_deferred
        self.skip = torch.zeros((), device=device)
        self.updates = torch.zeros((), device=device, dtype=torch.int64)
        self._tasks = tuple(tasks)
        # Per check the tasks' values and their total, as they were at the first failure.
        self._seen = torch.zeros(len(Check), len(tasks) + 1, device=device)

    def verify(self, check: Check, total: Tensor, values: Tensor, ids: Tensor | None) -> None:
        """Flag or raise a failure if the total is not finite.

        Args:
            check: what is looked at.
            total: [].
            values: [n], whose non-finite entries name the tasks that failed.
            ids: [n] task of each value; None for all tasks in order.

        Raises:
            NotFiniteError: the total is not finite, and failures are not deferred.
        """
        if self.is_deferred:
            seen = self._seen[check]
            by_task, _ = mean_by_task(values, ids, len(self._tasks))
            torch.where(self.skip == 0, torch.cat([by_task, total.view(1)]), seen, out=seen)
            # A non-finite number minus itself is not a number, which differs from zero.
            self.skip.copy_(torch.maximum(self.skip, (total - total) != 0))
        elif not math.isfinite(total.item()):
            indices = range(len(values)) if ids is None else ids.tolist()
            failed = {
                self._tasks[index]
                for index, value in zip(indices, values.tolist(), strict=True)
                if not math.isfinite(value)
            }
            raise self._error(check, failed or {self._tasks[index] for index in indices}, int(self.updates))

    def count_update(self) -> Tensor:
        """Count an update made unless a failure is flagged; return [] float32, 1 if it was counted."""
        counted = 1 - self.skip
        self.updates += counted.long()
        return counted

    def take(self) -> NotFiniteError | None:
        """Return the failure that is flagged, and clear the flag; None if there is none."""
        if not self.skip.item():
            return None
        not_finite = ~self._seen.isfinite()
        check = Check(int(not_finite[:, -1].int().argmax()))
        failed = {task for task, bad in zip(self._tasks, not_finite[check, :-1].tolist(), strict=True) if bad}
        self._seen.zero_()
        self.skip.zero_()
        return self._error(check, failed or set(self._tasks), int(self.updates))

    def _error(self, check: Check, failed: set[str], update: int) -> NotFiniteError:
        tasks = [task for task in self._tasks if task in failed]
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
    """Return each task's mean [T] of values [n], zero without any, and whether it has any [T] bool.

    ``ids`` [n] are the values' tasks, None for all tasks in order.
    """
    if ids is None:
        return values, torch.ones_like(values, dtype=torch.bool)
    zeros = values.new_zeros(tasks)
    sums, counts = zeros.index_add(0, ids, values), zeros.index_add(0, ids, torch.ones_like(values))
    return sums / counts.clamp_min(1), counts > 0
