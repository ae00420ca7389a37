"""The registry: resolves names to tasks.

Enters: ``humanoid-walk``, ``dm_control/humanoid-walk``, a task set (``humanoid``, ``walker``, ``dmc``), a maker's path
(``package.module:maker``) or a registered name. Leaves: `Task` values, which can be sent to actors.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from mtray.data.specs import TaskSpec, check_specs, check_together
from mtray.engines.base import TASK_FAILURES
from mtray.errors import MtrayError, UnknownTaskError, UsageError
from mtray.tasks.guarded import limited
from mtray.tasks.plan import DEFAULT_ENGINE, ENGINES, TORCHRL, Task, load_engine

if TYPE_CHECKING:
    from mtray.engines.torchrl import Maker

_MAKER = "a function maker(num_envs, seed) that returns a TorchRL environment is needed"

_REGISTERED: dict[str, Maker] = {}


def register_task(name: str, maker: Maker) -> None:
    """Register a task: ``maker(num_envs, seed)`` returns its TorchRL environment (see `mtray.engines.torchrl`).

    The registration holds in this process; a run sends the maker to its actors.

    Raises:
        UsageError: the name is taken, empty, or has a space, ``/`` or ``:``, or the maker can't be called.
    """
    if not name or set(name) & set("/: \t\n"):
        raise UsageError(f"task name {name!r}: give a name without spaces, '/' or ':'")
    if not callable(maker):
        raise UsageError(f"the maker of task {name!r} is of type {type(maker).__name__}: {_MAKER}")
    if name in _REGISTERED and _REGISTERED[name] is not maker:
        raise UsageError(f"task {name!r} is registered already: choose another name")
    _REGISTERED[name] = maker


def task_names(engine: str = DEFAULT_ENGINE) -> tuple[str, ...]:
    """Return the names of an engine's tasks and of the registered tasks."""
    return (*load_engine(engine).task_names(), *_REGISTERED)


def task_sets(engine: str = DEFAULT_ENGINE) -> dict[str, tuple[str, ...]]:
    """Return an engine's task sets: set name to task names."""
    return cast("dict[str, tuple[str, ...]]", load_engine(engine).task_sets())


def resolve(names: str | Sequence[str], engine: str = DEFAULT_ENGINE, action_repeat: int = 1) -> tuple[Task, ...]:
    """Return the tasks that these names denote, in order, each once; ``action_repeat`` is for engines' tasks.

    Raises:
        UnknownTaskError: a name is no task and no set; the message lists close matches.
        UsageError: no name, an unknown engine, or a maker that can't be imported.
    """
    names = _as_list(names)
    if not names:
        raise UsageError("no task given: name at least one, for example --tasks humanoid")
    tasks: list[Task] = []
    for name in names:
        # No set: a maker need not be hashable.
        tasks += [task for task in _resolve_one(name, engine, action_repeat) if task not in tasks]
    return tuple(tasks)


def resolve_like(
    names: str | Sequence[str], specs: Sequence[TaskSpec], engine: str | None = None, action_repeat: int | None = None
) -> tuple[Task, ...]:
    """Return the tasks of these names with the engines and action repeats that a policy was trained with.

    Args:
        names: as in `resolve`.
        specs: the policy's specs.
        engine: replaces the policy's engines.
        action_repeat: must equal the policy's if given.

    Raises:
        UsageError: an unknown name, a task that the policy did not learn, or learned with another spec, or one task
            with two engines.
    """
    check_repeat((), action_repeat)
    learned = {spec.name: spec for spec in specs}
    engines = list(dict.fromkeys(spec.engine for spec in specs if spec.engine != TORCHRL)) or [DEFAULT_ENGINE]
    tasks: list[Task] = []
    for name in _as_list(names):
        if name in learned:
            trained_engine = learned[name].engine
        else:
            trained_engine = next((other for other in engines if _has(other, name)), engines[0])
        if trained_engine == TORCHRL and name not in _REGISTERED:
            raise UsageError(
                f"task {name!r} was made by a maker, which is not registered: give its path package.module:maker "
                "(--tasks, or tasks of mtray.evaluate_policy), or call mtray.register_task first"
            )
        for task in resolve([name], engine or (engines[0] if trained_engine == TORCHRL else trained_engine)):
            if task.name not in learned:
                raise UsageError(f"task {task.name!r} was not learned by this policy: it has {', '.join(learned)}")
            spec = learned[task.name]
            if task.maker is None:
                chosen = task.engine if engine or "/" in name else spec.engine
                task = Task(task.name, chosen, action_repeat=action_repeat or spec.action_repeat)
            check_repeat([task], action_repeat)
            check_specs([spec], [task.spec], "when the policy was trained")
            if task not in tasks:
                tasks.append(task)
    check_together([task.spec for task in tasks])
    return tuple(tasks)


def check_repeat(tasks: Sequence[Task], action_repeat: int | None) -> None:
    """Raise a UsageError if an action repeat that was given can't be, or has no effect on one of the tasks."""
    if action_repeat is not None and action_repeat < 1:
        raise UsageError(f"action_repeat {action_repeat}: at least 1 is needed")
    for task in tasks:
        if action_repeat not in (None, task.spec.action_repeat):
            raise UsageError(f"task {task.name!r} sets its action repeat itself: omit {action_repeat=}")


def _as_list(names: str | Sequence[str]) -> Sequence[str]:
    # A text is a sequence too: of its letters.
    return [names] if isinstance(names, str) else names


def _resolve_one(name: str, engine: str, action_repeat: int) -> list[Task]:
    if name in _REGISTERED:
        if name in load_engine(engine).task_names():
            raise UsageError(
                f"task {name!r} is registered, but also a task of engine {engine!r}: register it under another name"
            )
        return [Task(name, TORCHRL, _REGISTERED[name])]
    if ":" in name:
        return [Task(name.rpartition(":")[2], TORCHRL, _import_maker(name))]
    prefix, slash, rest = name.partition("/")
    if slash:
        engine, name = prefix, rest
    module = load_engine(engine)
    names, sets = module.task_names(), module.task_sets()
    if name in names:
        return [Task(name, engine, action_repeat=action_repeat)]
    if name in sets:
        return [Task(member, engine, action_repeat=action_repeat) for member in sets[name]]
    if not slash and _is_module(name):
        raise UnknownTaskError(f"{name!r} is no task but a module: name a maker in it, {name}:maker")
    matches = difflib.get_close_matches(name, [*names, *sets, *_REGISTERED], n=4, cutoff=0.6)
    hint = (
        f"did you mean {', '.join(matches)}?"
        if matches
        else f"task sets: {', '.join(sorted(sets))} (mtray tasks lists all)"
    )
    if other := _other_engine(name, engine):
        hint = f"engine {other!r} has it, add --engine {other} or write {other}/{name}"
        if other not in _installed():
            hint += f' (pip install -e ".[{other}]")'
    raise UnknownTaskError(
        f"unknown task {name!r} of engine {engine!r}: {hint}; write a task of your own as package.module:maker, or "
        "register it in this process with mtray.register_task"
    )


def _is_module(name: str) -> bool:
    with contextlib.suppress(ImportError, ValueError):
        return name.isidentifier() and importlib.util.find_spec(name) is not None
    return False


def _has(engine: str, name: str) -> bool:
    """Return whether an engine is installed and has a task or a set of this name."""
    if engine not in _installed():
        return False
    module = load_engine(engine)
    return name in module.task_names() or name in module.task_sets()


def _other_engine(name: str, engine: str) -> str | None:
    """Return another engine that has the task or set; EnvPool is recognised by its names where it is not installed."""
    for other in ENGINES:
        if other != engine and _has(other, name):
            return other
    is_envpools = name.startswith("metaworld") or re.fullmatch(r"[A-Z]\w*-v\d+", name) or name == "gymnasium"
    return "envpool" if is_envpools and engine != "envpool" and "envpool" not in _installed() else None


@functools.cache
def _installed() -> frozenset[str]:
    """Return the engines that can be loaded."""
    found = set()
    for name in ENGINES:
        with contextlib.suppress(UsageError):
            load_engine(name)
            found.add(name)
    return frozenset(found)


def _import_maker(path: str) -> Maker:
    module_name, _, attribute = path.rpartition(":")
    module_name = module_name.removesuffix(".py")
    if not module_name or not attribute:
        raise UsageError(f"maker {path!r} is not whole: write package.module:maker, for example my_tasks:pendulum")
    try:
        with limited(f"maker {path!r}: the import of its module"):
            maker = functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except MtrayError:
        raise
    except TASK_FAILURES as error:
        raise UsageError(
            f"maker {path!r} can't be imported ({type(error).__name__}: {' '.join(str(error).split())}): "
            "write package.module:maker, with the package installed or in the current folder"
        ) from error
    if not callable(maker):
        raise UsageError(f"maker {path!r} is of type {type(maker).__name__}: {_MAKER}")
    return cast("Maker", maker)
