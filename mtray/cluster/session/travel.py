"""Users' modules that makers come from: Ray sends them to a joined cluster's nodes, which may not have them."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtray.errors import UsageError
from mtray.tasks.plan import Task

# The head keeps what is sent, and each node fetches it before it starts the first process.
_LIMIT_BYTES = 100 * 2**20
_LEFT_OUT = ("__pycache__", ".git")
# What pip and distributions install to, also for one user, whose folder the default scheme of sysconfig does not name.
_PACKAGES = ("site-packages", "dist-packages")


def runtime_env(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return Ray's runtime environment with the modules of makers, and others of the same folders that are imported.

    Raises:
        UsageError: they are too large.
    """
    paths = dict.fromkeys(path for task in tasks if task.maker is not None for path in _modules(task.maker))
    for path in paths:
        size = sum(file.stat().st_size for file in _files(path))
        if size > _LIMIT_BYTES:
            raise UsageError(
                f"{path} is {size / 2**20:.0f} MiB, and {_LIMIT_BYTES >> 20} at most are sent to the cluster's nodes "
                "with a task's maker: move what is not code elsewhere, or install the package on every node"
            )
    return {"py_modules": list(map(str, paths)), "excludes": list(_LEFT_OUT)} if paths else {}


def _modules(maker: Any) -> Iterator[Path]:
    while isinstance(maker, functools.partial):
        maker = maker.func
    name = getattr(maker, "__module__", None) or type(maker).__module__
    top = name.partition(".")[0]
    if top == "__main__":
        folder = _folder_of_script()
    elif (own := _place(top)) is not None:
        folder = own.parent
    else:
        return
    # The module of the maker and what it imports from its folder. A script travels by value, its imports do not.
    for other in {name.partition(".")[0] for name in list(sys.modules)}:
        place = _place(other)
        if place is not None and place.parent == folder:
            yield place


def _folder_of_script() -> Path:
    """Return the folder that the running script or notebook imports from."""
    script = sys.modules["__main__"]
    file, spec = getattr(script, "__file__", None), script.__spec__
    if file is None:
        return Path.cwd()
    # With `python -m package.script` that of the package.
    package = spec.parent if spec is not None else None
    return Path(file).resolve().parents[package.count(".") + 1 if package else 0]


def _place(name: str) -> Path | None:
    """Return the file or folder of a top-level module; None where nodes have it, or it travels by value."""
    module = sys.modules.get(name)
    # A package without an __init__ has no file.
    found = [*getattr(module, "__path__", ()), *filter(None, [getattr(module, "__file__", None)])]
    if name in ("__main__", "mtray") or not found:
        return None
    path = Path(found[0]).resolve()
    if not path.is_dir() and path.suffix != ".py":
        return None
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    if any(folder in installed or folder.name in _PACKAGES for folder in path.parents):
        return None
    return path


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.rglob("*"):
        if file.is_file() and not set(_LEFT_OUT) & set(file.parts):
            yield file
