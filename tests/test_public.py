"""The public names: all are there, and importing the package is fast."""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mtray

PUBLIC = [
    "CollectorConfig",
    "Config",
    "LearnerConfig",
    "MtrayError",
    "MultiTaskEnv",
    "NetworkConfig",
    "ReplayConfig",
    "RunConfig",
    "RunError",
    "SchemaError",
    "TaskError",
    "UsageError",
    "evaluate_policy",
    "load_policy",
    "make_multi_task_env",
    "make_task_env",
    "read_config",
    "register_task",
    "task_names",
    "task_sets",
    "train",
]


def fresh(code):
    """Return the words that code prints in a new Python process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_public_names_are_these():
    assert mtray.__all__ == PUBLIC
    assert dir(mtray) == PUBLIC


def test_every_public_name_is_there_and_defined_by_mtray():
    # In a new process, because other tests have imported modules here.
    values = fresh("import mtray\nfor n in mtray.__all__:\n    v = getattr(mtray, n); print(v.__module__, v.__name__)")
    assert values[1::2] == PUBLIC
    assert all(module.startswith("mtray.") for module in values[::2])


def test_version_is_that_of_the_installed_package():
    [version] = fresh("import mtray; print(mtray.__version__)")
    assert version == metadata.version("mtray")
    done = subprocess.run([sys.executable, "-m", "mtray", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mtray {version}\n"


def test_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="'mtray' has no attribute 'lunch'"):
        _ = mtray.lunch


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(mtray.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname for node in block.body for alias in node.names}
    assert seen == set(PUBLIC)


def test_importing_mtray_imports_neither_torch_nor_ray():
    loaded = fresh("import sys, mtray; print(*sorted({name.partition('.')[0] for name in sys.modules}))")
    assert "mtray" in loaded
    assert not {"torch", "tensordict", "torchrl", "ray", "dm_control", "numpy"} & set(loaded)


def test_config_and_errors_import_neither_torch_nor_ray():
    loaded = fresh("import sys, mtray; mtray.Config(), mtray.UsageError; print(*sys.modules)")
    assert "mtray.config" in loaded
    assert not {"torch", "ray"} & set(loaded)


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("mtray.replay.buffer", {"torch", "tensordict", "torchrl"}),
        ("mtray.collect.loop, mtray.collect.hosts.make, mtray.tasks.makers, mtray.engines.mujoco", {"torchrl"}),
        ("mtray.learn.trainer", {"torchrl", "mujoco", "dm_control"}),
        ("mtray.launch", {"torch", "torchrl", "mujoco", "ray"}),
    ],
)
def test_processes_do_not_import_unneeded_packages(modules, absent):
    loaded = fresh(f"import sys, {modules}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))")
    assert not absent & set(loaded)
