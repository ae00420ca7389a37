"""Where the object store of a Ray of the run's own lies, and what is refused."""

from pathlib import Path

import pytest

from mtray.cluster.session import store
from mtray.errors import UsageError

# For 8 collectors, with what is left to others.
NEEDED = 128 + 8 * 4 + 16


@pytest.fixture
def free(monkeypatch):
    """MiB that are free, by folder."""
    free = {"/dev/shm": NEEDED, "/scratch": NEEDED}
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    monkeypatch.setattr(store, "_free_bytes", lambda folder: free[str(folder)] * 2**20)
    return free


@pytest.mark.parametrize(("shared", "folder"), [(NEEDED, "/dev/shm"), (NEEDED - 1, "/scratch"), (64, "/scratch")])
def test_it_lies_in_shared_memory_where_that_has_room_and_its_memory_is_taken_at_the_start(free, shared, folder):
    free["/dev/shm"] = shared
    options = store.store_options(8)
    assert options["_plasma_directory"] == folder
    assert options["object_store_memory"] == store.store_bytes(8) == (128 + 8 * 4) * 2**20
    assert options["_system_config"] == {"preallocate_plasma_memory": True}


def test_no_room_in_either_is_refused_with_the_figure_that_would_fit(free):
    free |= {"/dev/shm": 64, "/scratch": NEEDED - 1}
    text = r"--workers 8: .* takes 176 MiB, and /dev/shm has 64 and /scratch has 175 MiB free: free so much in one of"
    with pytest.raises(UsageError, match=text):
        store.store_options(8)
    free["/scratch"] = NEEDED
    store.store_options(8)


def test_a_folder_that_is_not_there_has_no_room():
    assert store._free_bytes(Path("/nowhere")) == 0
