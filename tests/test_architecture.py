"""The floors: who may import whom. A file that is not in the table fails; put it on its floor."""

import ast
import sys
from pathlib import Path

import pytest

import mtray

PACKAGE = Path(mtray.__file__).parent

FLOORS = {
    # Words.
    0: "__init__ batches config errors messages metrics pacing processes rows schema shared specs weights",
    # Parts; `testing` is for users' tests too.
    1: "acting actor_critic checkpoint collector device engines engines.dm_control engines.envpool engines.mujoco "
    "engines.suite engines.torchrl envs hosts learner losses makers networks noise optimiser placement replay sac tape "
    "tasks td3 testing values",
    # The cluster.
    2: "actors crew exchange supervisor",
    # Programs.
    3: "__main__ evaluate launch report",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
# dm_control's suite over mujoco.batch: a file per domain.
DOMAINS = [path.stem for path in (PACKAGE / "engines" / "suite").glob("*.py") if path.stem != "__init__"]
FLOOR |= {f"engines.suite.{domain}": 1 for domain in DOMAINS}
MUJOCO = {"dm_control", "mujoco"}
SIMULATORS = {"dm_control": MUJOCO, "mujoco": MUJOCO, "suite": MUJOCO, "envpool": {"envpool"}}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {"mtray"} | {f"mtray.{name}" for name in FILES if name != "__init__"}


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in {
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(node.test)
        if isinstance(part, ast.Name | ast.Attribute)
    }


def imports(source):
    """Every module that a source imports at any depth, except under TYPE_CHECKING, by its full name."""
    found, nodes = set(), [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if is_type_checking(node):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import: write the module's full name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES or {node.module}
        elif isinstance(node, ast.Constant) and node.value in MODULES - {"mtray"}:
            # A module's full name in a string is there to be imported by it.
            found.add(node.value)
    return found


def own(source):
    """The package's modules among a source's imports, without the package's name."""
    return {name.removeprefix("mtray.") for name in imports(source) if name.partition(".")[0] == "mtray"}


def foreign(source):
    """The top-level packages among a source's imports that are neither mtray nor the standard library."""
    return {name.partition(".")[0] for name in imports(source)} - {"mtray"} - sys.stdlib_module_names


def test_every_file_is_on_a_floor_and_every_name_on_a_floor_is_a_file():
    assert set(FILES) == set(FLOOR)


@pytest.mark.parametrize("name", FILES)
def test_imports_go_to_the_same_floor_or_lower(name):
    upwards = {
        other: FLOOR.get(other, "no module: import from the module itself")
        for other in own(FILES[name].read_text())
        if FLOOR.get(other, 99) > FLOOR[name]
    }
    assert upwards == {}


@pytest.mark.parametrize("name", [name for name in FILES if FLOOR.get(name) == 0])
def test_words_know_only_arrays(name):
    assert foreign(FILES[name].read_text()) <= {"numpy", "torch", "tensordict"}


@pytest.mark.parametrize("name", [name for name in FILES if FLOOR.get(name, 0) < 2])
def test_words_and_parts_know_no_ray(name):
    assert "ray" not in foreign(FILES[name].read_text())


@pytest.mark.parametrize("name", FILES)
def test_only_its_engine_imports_a_simulator(name):
    engine = name.split(".")[1] if name.startswith("engines.") else ""
    allowed = SIMULATORS.get(engine, set())
    assert foreign(FILES[name].read_text()) & set.union(*SIMULATORS.values()) <= allowed


@pytest.mark.parametrize(("start", "end"), [("replay", "learner"), ("learner", "replay")])
def test_replay_and_learner_do_not_reach_each_other(start, end):
    reached, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += own(FILES[name].read_text())
    assert "specs" in reached
    assert end not in reached


def test_cluster_is_where_ray_is():
    assert all("ray" in foreign(FILES[name].read_text()) for name in ("actors", "crew", "supervisor", "launch"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import mtray.replay", {"replay"}),
        ("from mtray import replay as store, specs", {"replay", "specs"}),
        ("from mtray.replay import Ring", {"replay"}),
        ("from mtray.engines import dm_control", {"engines.dm_control"}),
        ("from mtray.engines import BatchSim", {"engines"}),
        ("def f():\n    if True:\n        from mtray.replay import Ring", {"replay"}),
        ("from mtray import Config", {"mtray"}),
        ("importlib.import_module('mtray.replay')", {"replay"}),
        ("if TYPE_CHECKING:\n    from mtray.replay import Ring\nelse:\n    import mtray.specs", {"specs"}),
        ("if typing.TYPE_CHECKING:\n    from mtray.replay import Ring", set()),
        ('"""As mtray.replay does."""', set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source, expected):
    assert own(source) == expected


def test_foreign_imports_are_found_by_their_package():
    source = "import os.path, numpy as np\ndef f():\n    import ray.exceptions\n    from torch.utils import data"
    assert foreign(source) == {"numpy", "ray", "torch"}
