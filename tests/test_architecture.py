"""Architecture: folders in the order of the data flow; imports go to the left only and never in a circle."""

import ast
import sys
from pathlib import Path

import pytest

import mtray

PACKAGE = Path(mtray.__file__).parent

# Folders in one set never import each other.
ORDER = (
    {"errors", "config"},
    {"data"},
    {"engines"},
    {"tasks"},
    {"policy"},
    {"collect", "replay", "learn"},
    {"rundir"},
    {"cluster"},
    {"__init__", "__main__", "evaluate", "launch", "listing", "program", "report", "watch"},
)
# For users' tests.
APART = {"testing"}
TOGETHER = ({"errors", "config"}, ORDER[-1])
FILES_OF_A_ROOM = 9
PLACE = {room: index for index, rooms in enumerate(ORDER) for room in rooms} | dict.fromkeys(APART, 3)
MUJOCO = {"dm_control", "mujoco"}
SIMULATORS = {"dm_control": MUJOCO, "mujoco": MUJOCO, "suite": MUJOCO, "envpool": {"envpool"}}
# Modules that do not import torch, so that processes without it start quickly.
WITHOUT_TORCH = (
    "data.specs",
    "data.rows",
    "data.rollout",
    "data.messages",
    "data.statistics",
    "data.blocks",
    "policy.acting",
    "collect.loop",
    "collect.hosts.make",
    "collect.evaluation",
    "cluster.actors.evaluator",
)


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {"mtray"} | {f"mtray.{name}" for name in FILES if name != "__init__"}


def room_of(name):
    return name.partition(".")[0]


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in {
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(node.test)
        if isinstance(part, ast.Name | ast.Attribute)
    }


def imports(source, *, at_import=False):
    """Return every module that a source imports, except under TYPE_CHECKING; ``at_import``: outside functions only."""
    found, nodes = set(), [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if is_type_checking(node):
            nodes += node.orelse
            continue
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import: write the module's full name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES or {node.module}
        elif not at_import and isinstance(node, ast.Constant) and node.value in MODULES - {"mtray"}:
            # A module's full name in a string is an argument of import_module.
            found.add(node.value)
    return found


def own(source, **kwargs):
    """Return the package's modules among a source's imports, without the package's name."""
    return {name.removeprefix("mtray.") for name in imports(source, **kwargs) if name.partition(".")[0] == "mtray"}


def foreign(source):
    """Return the top-level packages among a source's imports, without mtray and the standard library."""
    return {name.partition(".")[0] for name in imports(source)} - {"mtray"} - sys.stdlib_module_names


def wrong_way(name, others):
    """Return the modules among ``others`` that a file must not import."""
    room = room_of(name)
    return {
        other
        for other in others
        if room_of(other) != room
        and not any({room, room_of(other)} <= rooms for rooms in TOGETHER)
        and PLACE[room_of(other)] >= PLACE[room]
    }


def circles(graph):
    """Return the circles: a path for every module that reaches itself."""

    def way(start):
        seen, waiting = set(), [(start,)]
        while waiting:
            path = waiting.pop()
            for other in graph.get(path[-1], ()):
                if other == start:
                    return (*path, start)
                if other not in seen:
                    seen.add(other)
                    waiting.append((*path, other))
        return None

    return [path for path in map(way, sorted(graph)) if path]


def test_every_file_is_in_a_room():
    assert {room_of(name) for name in FILES} == set(PLACE)


@pytest.mark.parametrize("name", FILES)
def test_imports_go_to_the_left(name):
    assert wrong_way(name, own(FILES[name].read_text())) == set()


def test_no_file_is_in_a_circle_of_imports():
    assert circles({name: own(path.read_text()) - {name} for name, path in FILES.items()}) == []


def test_a_folder_is_small_and_its_init_describes_it():
    for folder in (path.parent for path in PACKAGE.glob("*/**/__init__.py") if path.parent.name != "suite"):
        init = (folder / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(init)), folder
        assert len(init.splitlines()) <= 6, folder
        assert 3 <= len(list(folder.glob("*.py"))) - 1 <= FILES_OF_A_ROOM, folder


@pytest.mark.parametrize("name", FILES)
def test_ray_is_imported_in_the_cluster_only(name):
    assert "ray" not in foreign(FILES[name].read_text()) or room_of(name) == "cluster"


def test_control_imports_no_ray_threads_or_clock():
    """Neither control nor anything that it imports, directly or indirectly."""
    reached, waiting = set(), ["cluster.control.free", "cluster.control.lockstep"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += own(FILES[name].read_text())
    assert len(reached) > 1
    packages = set().union(*(imports(FILES[name].read_text()) for name in reached))
    assert not {name.partition(".")[0] for name in packages} & {
        "ray",
        "threading",
        "asyncio",
        "time",
        "torch",
        "random",
    }


@pytest.mark.parametrize("name", FILES)
def test_only_its_engine_imports_a_simulator(name):
    engine = name.split(".")[1] if name.startswith("engines.") else ""
    allowed = SIMULATORS.get(engine, set())
    assert foreign(FILES[name].read_text()) & set.union(*SIMULATORS.values()) <= allowed


@pytest.mark.parametrize(
    "name", [name for name in FILES if name in WITHOUT_TORCH or room_of(name) in {"replay", "config"} | ORDER[-1]]
)
def test_importing_it_does_not_import_torch(name):
    """Neither directly nor indirectly."""
    reached, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting += own(FILES[current].read_text(), at_import=True)
    packages = set().union(*(imports(FILES[other].read_text(), at_import=True) for other in reached))
    assert not {package.partition(".")[0] for package in packages} & {"torch", "tensordict", "torchrl"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import mtray.replay.ring", {"replay.ring"}),
        ("from mtray.replay import ring as store, buffer", {"replay.ring", "replay.buffer"}),
        ("from mtray.replay.ring import Ring", {"replay.ring"}),
        ("from mtray.engines import dm_control", {"engines.dm_control"}),
        ("def f():\n    if True:\n        from mtray.replay.ring import Ring", {"replay.ring"}),
        ("from mtray import Config", {"mtray"}),
        ("importlib.import_module('mtray.replay.ring')", {"replay.ring"}),
        ("if TYPE_CHECKING:\n    from mtray.replay.ring import Ring\nelse:\n    import mtray.errors", {"errors"}),
        ("if typing.TYPE_CHECKING:\n    from mtray.replay.ring import Ring", set()),
        ('"""As mtray.replay.ring does."""', set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source, expected):
    assert own(source) == expected


def test_foreign_imports_are_found_by_their_package():
    source = "import os.path, numpy as np\ndef f():\n    import ray.exceptions\n    from torch.utils import data"
    assert foreign(source) == {"numpy", "ray", "torch"}


def test_a_wrong_import_and_a_circle_are_found():
    assert wrong_way("data.specs", {"policy.policy", "errors"}) == {"policy.policy"}
    assert wrong_way("learn.trainer", {"replay.ring", "policy.policy"}) == {"replay.ring"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [("b", "c", "b"), ("c", "b", "c")]


# What they unpickle comes over unnamed pipes between a run's own processes, in Ray's calls, or was pickled there.
UNPICKLES = {
    "collect.hosts.worker": {"cloudpickle.loads", "connection.recv", "self._connection.recv"},
    "cluster.actors.draws": {"pickle.loads"},
    "cluster.actors.replay": {"pickle.loads"},
    "tasks.checks": {"cloudpickle.loads"},
}
SAFE = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}


@pytest.mark.parametrize("name", FILES)
def test_what_is_unpickled_comes_from_the_run_itself(name):
    calls = [node for node in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(node, ast.Call)]
    found = {ast.unparse(call.func) for call in calls}
    ends = ("onnection.recv", "Unpickler", "Listener", "Client", "pickle.loads", "pickle.load")
    assert {text for text in found if text.endswith(ends)} == UNPICKLES.get(name, set())
    for call in calls:
        wanted = SAFE.get(ast.unparse(call.func))
        assert wanted is None or wanted in [ast.unparse(keyword) for keyword in call.keywords], ast.unparse(call)
