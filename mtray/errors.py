"""The errors mtray raises on purpose.

::

    MtrayError                  base class
    ├── UsageError              invalid input: exit code 2, one line
    │   ├── UnknownTaskError    no task has that name
    │   └── SchemaError         data does not match its task's schema
    └── RunError                the run can't continue: exit code 1
        ├── TaskError           a task's own code failed: its maker, reset, step or close
        ├── UnreachableError    another process of the run could not be reached
        └── NotFiniteError      a loss or gradient is not finite
"""

from collections.abc import Sequence
from typing import Any


class MtrayError(Exception):
    """Base of every error that mtray raises on purpose."""


class UsageError(MtrayError):
    """Invalid input; the message names the value, the limit and the remedy.

    It is no ValueError, because tyro catches those of a config's validation and prints them over many lines.
    """


class UnknownTaskError(UsageError):
    """No task has that name; the message lists close matches."""


class SchemaError(UsageError):
    """Data does not match its task's schema; the message names task, key and both shapes."""


class RunError(MtrayError, RuntimeError):
    """The run can't continue; earlier checkpoints are intact."""


class TaskError(RunError):
    """A task's own code failed: its maker, reset, step or close.

    The message names the task, the call, and the error's type and text.

    Attributes:
        task: name of the task.
        trace: the traceback in the process that ran the code; empty if that process died.
    """

    def __init__(self, message: str, task: str, trace: str = "") -> None:
        """Store the message, the task's name and the traceback."""
        super().__init__(message)
        self.task, self.trace = task, trace

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.task, self.trace)


class UnreachableError(RunError):
    """Another process of the run could not be reached; it may or may not have done the call."""


class NotFiniteError(RunError):
    """A loss or gradient of an update is not finite; the update was not applied.

    Attributes:
        tasks: names of the tasks with such numbers.
        update: number of updates before it.
    """

    def __init__(self, message: str, tasks: Sequence[str], update: int) -> None:
        """Store the message, the tasks and the number of updates."""
        super().__init__(message)
        self.tasks, self.update = tuple(tasks), update

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.tasks, self.update)
