"""What is checked of tasks before anything starts: that their makers can travel."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mtray.errors import UsageError

if TYPE_CHECKING:
    from mtray.tasks.plan import Task

# How far into a maker the part that can't be pickled is searched.
_DEPTH = 4


def check_travels(task: Task) -> None:
    """Raise if a task can't be sent to another process, which gets its maker by value (cloudpickle, as Ray does).

    Raises:
        UsageError: names the task and the part of its maker that can't be pickled.
    """
    if task.maker is None:
        return
    # With torch: tensordict depends on it.
    import cloudpickle

    try:
        cloudpickle.loads(cloudpickle.dumps(task.maker))
    except Exception as error:
        where = _culprit(task.maker, cloudpickle.dumps, "its maker")
        raise UsageError(
            f"task {task.name!r} can't be sent to another process: {where} can't be pickled "
            f"({type(error).__name__}: {' '.join(str(error).split())}): create it inside the maker"
        ) from error


def _culprit(value: Any, dumps: Any, name: str, depth: int = _DEPTH) -> str:
    """The innermost part that can't be pickled, as an expression."""
    for part, inner in _parts(value, name) if depth else ():
        try:
            dumps(inner)
        except Exception:
            return _culprit(inner, dumps, part, depth - 1)
    return f"{name} (a {type(value).__name__})" if depth < _DEPTH else name


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What a callable or container holds, each with an expression for it."""
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
