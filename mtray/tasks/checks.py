"""The check that tasks can be sent to other processes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import cloudpickle

from mtray.errors import UsageError
from mtray.tasks.plan import Task

# Levels of a maker that are searched for the part that can't be pickled.
_DEPTH = 4


def check_travels(task: Task) -> None:
    """Check that a task's maker can be pickled by value (cloudpickle, as Ray does).

    Raises:
        UsageError: names the task and the part of its maker that can't be pickled.
    """
    if task.maker is None:
        return
    try:
        cloudpickle.loads(cloudpickle.dumps(task.maker))
    except Exception as error:
        raise UsageError(
            f"task {task.name!r} can't be sent to another process: {_find_unpicklable(task.maker, 'its maker')} can't "
            f"be pickled ({type(error).__name__}: {' '.join(str(error).split())}): create it inside the maker"
        ) from error


def _find_unpicklable(value: Any, name: str, depth: int = 0) -> str:
    """Return an expression for the innermost part that can't be pickled."""
    for part_name, part in _parts(value, name) if depth < _DEPTH else ():
        try:
            cloudpickle.dumps(part)
        except Exception:
            return _find_unpicklable(part, part_name, depth + 1)
    return f"{name} (a {type(value).__name__})" if depth else name


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a callable or container, each with an expression for it."""
    if isinstance(value, functools.partial):
        yield f"{name}.func", value.func
        yield from ((f"{name}.args[{index}]", part) for index, part in enumerate(value.args))
        yield from ((f"{name}.keywords[{key!r}]", part) for key, part in value.keywords.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{name}[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", part) for key, part in value.items())
    elif hasattr(value, "__self__"):
        yield f"{name}.__self__", value.__self__
    elif hasattr(value, "__code__"):
        code, cells = value.__code__, value.__closure__ or ()
        yield from ((f"{key} in {name}", cell.cell_contents) for key, cell in zip(code.co_freevars, cells, strict=True))
        yield from ((f"{key} in {name}", value.__globals__[key]) for key in code.co_names if key in value.__globals__)
    else:
        yield from ((f"{name}.{key}", part) for key, part in getattr(value, "__dict__", {}).items())
