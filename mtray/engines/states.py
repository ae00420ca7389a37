"""States: named arrays from which a part goes on as if it had not stopped.

Enters: the arrays of simulators and of what acts on them. Leaves: one flat dict, and its bytes, which hold no code.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

State: TypeAlias = Mapping[str, npt.NDArray[Any]]


def nested(states: Mapping[str, State]) -> dict[str, npt.NDArray[Any]]:
    """Return a copy of several states as one: ``{"a": {"b": x}}`` becomes ``{"a.b": x}``."""
    return {f"{outer}.{inner}": np.array(array) for outer, state in states.items() for inner, array in state.items()}


def part(state: State, name: str) -> dict[str, npt.NDArray[Any]]:
    """Return one of the states that `nested` joined; names must have no dots."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}


def generator_state(generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a generator's state, whose integers have 128 bits, as JSON."""
    return np.frombuffer(json.dumps(generator.bit_generator.state).encode(), np.uint8)


def load_generator(generator: np.random.Generator, state: npt.NDArray[np.uint8]) -> None:
    """Load what `generator_state` returned."""
    generator.bit_generator.state = json.loads(state.tobytes())


def random_state(generators: Sequence[np.random.RandomState]) -> State:
    """Return the states of K generators: ``keys`` [K, 624] uint32 and ``rest`` [K, 3] float64."""
    states: list[Any] = [generator.get_state() for generator in generators]
    return {
        "keys": np.array([key for _, key, *_ in states], np.uint32),
        "rest": np.array([rest for _, _, *rest in states], np.float64),
    }


def load_random_state(generators: Sequence[np.random.RandomState], state: State) -> None:
    """Load what `random_state` returned."""
    for generator, key, (position, has_gauss, gauss) in zip(generators, state["keys"], state["rest"], strict=True):
        generator.set_state(("MT19937", key, int(position), int(has_gauss), gauss))


def to_bytes(state: State) -> bytes:
    """Return a state as an npz file's bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **state)
    return buffer.getvalue()


def from_bytes(data: bytes) -> State:
    """Return what `to_bytes` was given; no code in it is run."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)
