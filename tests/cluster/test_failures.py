"""How a call failed, in words for the user, and the traceback that goes with it."""

import pickle

import pytest
from ray.exceptions import ObjectLostError, OutOfMemoryError, OwnerDiedError, RayActorError, RayTaskError

from mtray.cluster.control.protocol import Failure
from mtray.cluster.failures import failure_of, trace_of
from mtray.engines.base import task_error
from mtray.errors import NotFiniteError, UnreachableError

# As Ray 2.5x words the end of an actor's process by SIGKILL.
RAYS = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Learner\n\tactor_id: 8f1e\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called."
)


def raised(error):
    """As it comes from an actor."""
    try:
        raise error
    except Exception as caught:
        return RayTaskError("train", f"Traceback (most recent call last):\n{type(caught).__name__}: {caught}\n", caught)


def test_a_killed_process_is_told_in_plain_words():
    failed = failure_of(7, RayActorError(error_msg=RAYS))
    assert (failed.kind, failed.text) == (Failure.DIED, "its process was killed or crashed")


def test_of_another_death_the_first_cause_is_told():
    failed = failure_of(7, OutOfMemoryError("The node is low on memory.\nRefer to the documentation\nfor more."))
    assert (failed.kind, failed.text) == (Failure.DIED, "The node is low on memory.")


@pytest.mark.parametrize(("kind", "expected"), [(ObjectLostError, Failure.UNAVAILABLE), (OwnerDiedError, Failure.DIED)])
def test_an_answer_that_went_with_its_node_is_no_error_of_the_part(kind, expected):
    error = kind("ff" * 28, None, "a call")
    assert failure_of(7, error).kind is expected
    # What a part could not fetch of another's.
    assert failure_of(7, raised(error)).kind is Failure.PEER


def test_the_traceback_of_a_tasks_error_travels_with_it():
    try:
        raise ValueError("the arm hit\nthe table")
    except ValueError as error:
        task = pickle.loads(pickle.dumps(task_error("lift", "step", error)))
    assert "\n" not in str(task)
    assert 'raise ValueError("the arm hit\\nthe table")' in trace_of(raised(task))


def test_an_error_that_nobody_raised_on_purpose_has_a_traceback():
    error = raised(KeyError("x"))
    # `ray.get` raises an error that is of the cause's class, too.
    for kind in (error, error.as_instanceof_cause()):
        assert trace_of(kind).endswith("\nKeyError: 'x'")
        assert "\x1b" not in trace_of(kind)


@pytest.mark.parametrize("error", [NotFiniteError("nan", ["a"], 3), UnreachableError("the replay is gone")])
def test_an_error_that_was_raised_on_purpose_is_its_line_only(error):
    assert trace_of(raised(error)) == ""
    assert trace_of(RayActorError(error_msg=RAYS)) == ""
