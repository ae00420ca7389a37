"""The errors mtray raises on purpose.

::

    MtrayError                  anything below
    ├── UsageError              what the user typed or passed can't work: exit code 2, one line
    │   ├── UnknownTaskError    no task of that name
    │   └── SchemaError         data that does not fit its task's schema
    └── RunError                the run could not go on: exit code 1
        ├── TaskError           a task's own code failed: its maker, reset, step or close
        ├── UnreachableError    another part of the run could not be reached
        └── NotFiniteError      an update met a number that is not finite
"""

from collections.abc import Sequence
from typing import Any


class MtrayError(Exception):
    """Base of every error that mtray raises on purpose."""


class UsageError(MtrayError):
    """Input that can't work; the message names the value, the limit and the remedy.

    No ValueError: tyro takes those from a config's validation as its own and prints them over many lines.
    """


class UnknownTaskError(UsageError):
    """No task of that name; the message lists near matches."""


class SchemaError(UsageError):
    """Data that does not fit its task's schema; the message names task, key and both shapes."""


class RunError(MtrayError, RuntimeError):
    """A run that could not go on; what was saved before it is whole."""


class TaskError(RunError):
    """A task's own code failed: its maker, reset, step or close.

    The message names the task, what was called, and the error's type and text.

    Attributes:
        task: name of the task.
    """

    def __init__(self, message: str, task: str) -> None:
        """Take the whole message and the task's name."""
        super().__init__(message)
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.task)


class UnreachableError(RunError):
    """Another part of the run could not be reached; what it was asked for may have happened or not."""


class NotFiniteError(RunError):
    """An update met a number that is not finite: it was not made, and the weights are those before it.

    Attributes:
        tasks: names of the tasks whose numbers they were.
        update: how many updates had been made before.
    """

    def __init__(self, message: str, tasks: Sequence[str], update: int) -> None:
        """Take the whole message, the tasks and the number of updates."""
        super().__init__(message)
        self.tasks, self.update = tuple(tasks), update

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.tasks, self.update)
