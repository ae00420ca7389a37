"""Errors can be pickled without loss."""

import pickle

import pytest

from mtray import errors

ERRORS = [
    errors.MtrayError("text"),
    errors.UsageError("text"),
    errors.UnknownTaskError("text"),
    errors.SchemaError("text"),
    errors.RunError("text"),
    errors.TaskError("text", "walker-walk"),
    errors.UnreachableError("text"),
    errors.NotFiniteError("text", ["a", "b"], 3),
]


def test_all_errors_are_listed():
    defined = {
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert {type(error) for error in ERRORS} == defined


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_pickled(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == "text"
    assert vars(copy) == vars(error)
