"""States: named arrays as bytes that hold no code."""

import io

import numpy as np
import pytest

from mtray.engines import states


def test_nested_states_are_copies_and_come_apart_again():
    inner = {"x": np.zeros(2), "y.z": np.ones(1, np.uint32)}
    joined = states.nested({"a": inner, "a1": {"x": np.full(1, 7)}})
    inner["x"][:] = 5
    back = states.from_bytes(states.to_bytes(joined))
    assert {name: array.tolist() for name, array in states.part(back, "a").items()} == {"x": [0, 0], "y.z": [1]}
    assert states.part(back, "a1")["x"].tolist() == [7]
    assert back["a.y.z"].dtype == np.uint32


def test_a_generator_goes_on_from_its_state():
    one, other = np.random.default_rng(1), np.random.default_rng(2)
    # Half of a 64-bit draw is kept for the next.
    one.random(3, np.float32)
    states.load_generator(other, states.generator_state(one))
    assert (one.random(5, np.float32) == other.random(5, np.float32)).all()
    assert one.standard_normal() == other.standard_normal()


def test_code_in_a_state_is_not_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    file = io.BytesIO()
    np.savez(file, a=np.array([Runs()], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        states.from_bytes(file.getvalue())
    assert not (tmp_path / "ran").exists()
