"""Errors of a run that nobody raised on purpose."""

import pytest

from mtray.cluster.train import _traceback_kept
from mtray.errors import RunError, UsageError


def test_an_unforeseen_error_is_one_line_and_its_traceback_is_kept(tmp_path):
    with (
        pytest.raises(RunError, match=r"KeyError: 'x'; the traceback is in .*traceback\.txt"),
        _traceback_kept(tmp_path),
    ):
        {}["x"]
    assert "KeyError: 'x'" in (tmp_path / "traceback.txt").read_text()


def test_an_error_that_was_raised_on_purpose_stays_as_it_is(tmp_path):
    with pytest.raises(UsageError, match=r"^so$"), _traceback_kept(tmp_path):
        raise UsageError("so")
    assert not list(tmp_path.iterdir())
