"""Ray's logical CPUs never keep a run from starting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtray.launch import cpus_per_actor


@pytest.mark.parametrize(
    ("nodes", "actors", "expected"),
    [([10.0], 10, 1.0), ([64.0], 10, 1.0), ([2.0], 10, 0.2), ([2.0, 2.0], 5, 0.666), ([1.0, 3.0], 4, 1.0)],
)
def test_the_share_is_the_largest_that_places_all(nodes, actors, expected):
    assert cpus_per_actor(nodes, actors) == expected


@given(st.lists(st.integers(1, 64), min_size=1, max_size=5), st.integers(1, 200))
def test_all_actors_find_a_place(nodes, actors):
    share = cpus_per_actor([float(cpus) for cpus in nodes], actors)
    # As Ray does: one after the other onto whichever node has room, in units of a ten thousandth.
    left = [cpus * 10_000 for cpus in nodes]
    for _ in range(actors):
        node = next(index for index, room in enumerate(left) if room >= round(share * 10_000))
        left[node] -= round(share * 10_000)
