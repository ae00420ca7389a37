"""JSON of a run directory: standard, whatever the numbers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtray.rundir.files import to_json, whole_lines
from mtray.rundir.sinks import cut_lines, last_seconds

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def refuse(text):
    raise AssertionError(f"{text} is not JSON")


@given(VALUES)
def test_every_value_is_standard_json(value):
    found = json.loads(to_json(value), parse_constant=refuse)
    expected = json.loads(json.dumps(value), parse_constant=lambda _: None)
    assert found == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32(math.nan), np.array(math.inf)])
def test_numbers_that_are_not_finite_are_null(value):
    assert to_json({"tasks": {"a": (value, [value])}}) == '{"tasks": {"a": [null, [null]]}}'


def test_damaged_lines_are_left_out_and_told_once(tmp_path, caplog):
    path = tmp_path / "events.jsonl"
    assert whole_lines(path) == []
    path.write_bytes(b'{"time": 1.0}\ngarbage\n{"ti\xff\n3\n[]\n{}\n{"time": 2}\n{"time": 3')
    for _ in range(2):
        assert whole_lines(path) == [{"time": 1.0}, {"time": 2}]
    assert caplog.messages == [f"{path}: line {number} is damaged and left out" for number in range(2, 7)]


def test_a_resume_cuts_lines_beyond_a_damaged_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"time": 1.0}\ngarbage\n{"time": 2.0}\n{"time": 3.0}\n')
    (tmp_path / "events.jsonl").write_text('{"time": 2.5}\ngarbage\n')
    assert last_seconds(tmp_path) == 3.0
    cut_lines(path, 2.0)
    assert path.read_text() == '{"time": 1.0}\ngarbage\n{"time": 2.0}\n'
    assert last_seconds(tmp_path) == 2.5


def test_numpy_scalars_are_numbers():
    assert to_json([np.int64(3), np.float32(0.5), np.bool_(True)]) == "[3, 0.5, true]"
