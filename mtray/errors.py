"""The errors mtray raises on purpose.

::

    MtrayError                  anything below
    ├── UsageError              what the user typed or passed can't work: exit code 2, one line
    │   ├── UnknownTaskError    no task of that name
    │   └── SchemaError         data that does not fit its task's schema
    └── RunError                the run could not go on: exit code 1
        └── NotFiniteError      an update met a number that is none
"""

from collections.abc import Sequence


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


class NotFiniteError(RunError):
    """An update met a number that is not finite: it was not made, and the weights are those before it."""

    def __init__(self, message: str, tasks: Sequence[str], update: int) -> None:
        """Of these tasks, at the update after so many."""
        super().__init__(message)
        self.tasks, self.update = tuple(tasks), update
