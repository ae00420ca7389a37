"""Modules that makers come from are sent to a cluster's nodes; what is installed there, or too large, is not."""

import functools
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("place", ["user/lib/python3.11/site-packages", "usr/lib/python3/dist-packages"])
def test_what_is_installed_elsewhere_is_not_sent(folder, monkeypatch, place):
    (folder / place / "travel_installed").mkdir(parents=True)
    (folder / place / "travel_installed" / "__init__.py").write_text("def make(num_envs, seed): ...\n")
    (folder / place / "travel_beside.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(folder / place)
    import travel_beside  # noqa: F401
    import travel_installed

    assert sent(travel_installed.make) == set()


SCRIPT = """
import travel_helper
from mtray.cluster.session import travel
from mtray.tasks.plan import Task

def make(num_envs, seed):
    return travel_helper.x

for path in travel.runtime_env([Task("a", "torchrl", make)])["py_modules"]:
    print(path.rpartition("/")[2])
"""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["script.py"], {"travel_helper.py"}),
        (["-m", "script"], {"travel_helper.py"}),
        (["-m", "travel_package.script"], {"travel_helper.py", "travel_package"}),
        (["-c", SCRIPT], {"travel_helper.py"}),
    ],
)
def test_what_a_script_imports_from_its_folder_is_sent(tmp_path, command, expected):
    (tmp_path / "travel_helper.py").write_text("x = 1\n")
    (tmp_path / "travel_package").mkdir()
    for place in ("", "travel_package"):
        (tmp_path / place / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    printed = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert set(printed.split()) == expected


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
