"""From Ray's errors to how a call failed, with one line for the user."""

from __future__ import annotations

import re

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from mtray.cluster.control.protocol import Failed, Failure
from mtray.errors import MtrayError, TaskError, UnreachableError, UsageError

_OF_PROCESSES = (RayActorError, NodeDiedError, OutOfMemoryError, OwnerDiedError, WorkerCrashedError)
# What Ray knows of a process that ended without a word.
_ENDED = "connection error code 2. End of file"


def failure_of(call: int, error: BaseException) -> Failed:
    """Return how a call failed."""
    if isinstance(error, RayTaskError):
        # What it raised; an error whose class does not unpickle is there as text only.
        cause = error.cause if isinstance(error.cause, BaseException) else error
        return _raised(call, cause)
    if isinstance(error, ActorUnavailableError):
        return Failed(call, Failure.UNAVAILABLE, one_line(error))
    if isinstance(error, _OF_PROCESSES):
        return Failed(call, Failure.DIED, _cause_of_death(error))
    if isinstance(error, ObjectLostError):
        # The call ran, but the node of its answer has gone before it came: Ray tells of the process next.
        return Failed(call, Failure.UNAVAILABLE, one_line(error))
    return _raised(call, error)


def lost_node(error: BaseException) -> str | None:
    """Return, in one line, that Ray has given up the driver's node and all that it started; None if it has not."""
    # The owner is this process, and it lives.
    is_lost = isinstance(error, RayActorError) and "its owner has died" in str(error)
    return f"Ray's node process on this machine is gone or stuck: {one_line(error)}" if is_lost else None


def _raised(call: int, cause: BaseException) -> Failed:
    if isinstance(cause, TaskError):
        return Failed(call, Failure.TASK, str(cause), cause.task)
    if isinstance(cause, UsageError):
        return Failed(call, Failure.INPUT, str(cause))
    if isinstance(cause, UnreachableError | RayActorError | ObjectLostError):
        return Failed(call, Failure.PEER, one_line(cause))
    if isinstance(cause, MtrayError | OSError):
        return Failed(call, Failure.RAISED, one_line(cause))
    return Failed(call, Failure.RAISED, f"{type(cause).__name__}: {one_line(cause)}")


def _cause_of_death(error: BaseException) -> str:
    """Return why a process is gone: plainly if it was killed or crashed, which Ray words as a connection that ended."""
    return "its process was killed or crashed" if _ENDED in str(error) else one_line(error)


def trace_of(error: BaseException) -> str:
    """Return the traceback of an error that nobody raised on purpose, as text; empty if there is none to show."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, TaskError):
        return cause.trace
    if isinstance(error, RayTaskError) and not isinstance(cause, MtrayError | RayActorError):
        # Its text is the traceback, coloured.
        return re.sub(r"\x1b\[\d*m", "", str(error))
    return ""


def one_line(error: BaseException) -> str:
    """Return an error's text in one line; of a traceback the last line, of Ray's accounts of a death the cause."""
    if isinstance(error, RayTaskError):
        return str(error).strip().splitlines()[-1]
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    detail = next((line.partition("exit detail:")[2] for line in lines if "exit detail:" in line), "")
    # Ray's guesses at what else may have happened are longer than what it knows.
    detail = detail.partition("Some common causes")[0].strip()
    return " ".join([*lines[:1], *([f"({detail.rstrip('.')})"] if detail else [])]) or type(error).__name__
