"""JSON of a run directory: standard, whatever the numbers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtray.rundir.files import to_json

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


def test_numpy_scalars_are_numbers():
    assert to_json([np.int64(3), np.float32(0.5), np.bool_(True)]) == "[3, 0.5, true]"
