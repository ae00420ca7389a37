"""Modules that makers come from are sent to a cluster's nodes; what is installed there, or too large, is not."""

import functools
import sys

import pytest

from mtray.cluster.session import travel
from mtray.errors import UsageError
from mtray.tasks.plan import Task
from mtray.testing import CountingMaker


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def sent(*makers):
    found = travel.runtime_env([Task(f"t{index}", "torchrl", maker) for index, maker in enumerate(makers)])
    return {path.rpartition("/")[2] for path in found.get("py_modules", ())}


def test_a_file_travels_with_the_files_of_its_folder_that_it_imports(folder):
    (folder / "travel_helper.py").write_text("x = 1\n")
    (folder / "travel_other.py").write_text("x = 1\n")
    (folder / "travel_tasks.py").write_text("import travel_helper\ndef make(num_envs, seed): ...\n")
    import travel_tasks

    assert sent(travel_tasks.make) == {"travel_tasks.py", "travel_helper.py"}
    assert sent(functools.partial(travel_tasks.make, 1)) == {"travel_tasks.py", "travel_helper.py"}


@pytest.mark.parametrize("has_init", [True, False])
def test_a_package_travels_whole(folder, has_init):
    (folder / "travel_package").mkdir()
    if has_init:
        (folder / "travel_package" / "__init__.py").write_text("")
    (folder / "travel_package" / "tasks.py").write_text("class Maker:\n    def __call__(self, num_envs, seed): ...\n")
    import travel_package.tasks

    assert sent(travel_package.tasks.Maker()) == {"travel_package"}


def test_what_nodes_have_or_what_is_pickled_by_value_is_not_sent():
    assert sent(None, CountingMaker(), pytest.fixture) == set()
    assert travel.runtime_env([Task("a", "mujoco")]) == {}


def test_what_is_too_large_is_refused_with_its_size(folder, monkeypatch):
    monkeypatch.setattr(travel, "_LIMIT_BYTES", 2**20)
    (folder / "travel_large").mkdir()
    (folder / "travel_large" / "__init__.py").write_text("def make(num_envs, seed): ...\n")
    (folder / "travel_large" / "data.bin").write_bytes(bytes(3 * 2**20))
    (folder / "travel_large" / "__pycache__").mkdir()
    (folder / "travel_large" / "__pycache__" / "more.bin").write_bytes(bytes(3 * 2**20))
    import travel_large

    with pytest.raises(UsageError, match=r"travel_large is 3 MiB, and 1 at most are sent .* move what is not code"):
        sent(travel_large.make)
