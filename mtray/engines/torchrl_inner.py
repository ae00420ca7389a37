"""The objects that a user's environment wraps: environments of TorchRL, Gymnasium and dm_control, and transforms.

Enters: environments as makers returned them. Leaves: their parts, or a `UsageError` if two share one.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torchrl.envs import EnvBase
from torchrl.envs.batched_envs import BatchedEnvBase

from mtray.errors import UsageError

# Attributes in which wrappers of TorchRL, Gymnasium and dm_control keep the wrapped object.
_WRAPPED = ("base_env", "_env", "env", "_transform", "transforms", "_envs", "envs")

# All environments that makers returned in this process, by id, to refuse one that is returned again.
_returned: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def inner(env: Any) -> Iterator[Any]:
    """Yield an object and all objects that it wraps, directly or not."""
    seen: set[int] = set()
    waiting = [env]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        # Not getattr: attribute access can make TorchRL's batched environments start their processes.
        fields = getattr(current, "__dict__", {})
        fields = {**fields, **(fields.get("_modules") or {})}
        for value in (fields.get(key) for key in _WRAPPED):
            parts: Iterable[Any] = value if isinstance(value, list | tuple | torch.nn.ModuleList) else [value]
            waiting += [part for part in parts if part is not None]


def check_new(name: str, envs: Sequence[EnvBase]) -> None:
    """Check that a maker built new environments.

    Raises:
        UsageError: two of these environments, or one of them and an earlier one, are or wrap the same object.
    """
    found = list(_environments(envs))
    groups = [envs, *(members for env in envs for members in _vectorised(env))]
    if any(_returned.get(id(env)) is env for env in found) or any(map(_overlap, groups)):
        raise UsageError(
            f"the maker of task {name!r} returned the same environment twice: it must build a new one at each call"
        )
    _returned.update({id(env): env for env in found if hasattr(type(env), "__weakref__")})


def is_started(env: EnvBase) -> bool:
    """Return whether an environment can be closed; TorchRL's batched ones can't be before their first reset."""
    return not any(isinstance(part, BatchedEnvBase) and part.__dict__["is_closed"] for part in inner(env))


def _environments(envs: Iterable[Any]) -> Iterator[Any]:
    """Yield these environments and all that they wrap."""
    for env in envs:
        for part in inner(env):
            if hasattr(type(part), "step") and hasattr(type(part), "reset"):
                yield part


def _vectorised(env: Any) -> Iterator[Sequence[Any]]:
    """Yield the members of each vectorised environment in ``env``."""
    for part in inner(env):
        for key in ("_envs", "envs"):
            members = getattr(part, "__dict__", {}).get(key)
            if isinstance(members, list | tuple):
                yield members


def _overlap(envs: Sequence[Any]) -> bool:
    """Return whether two of these environments are or wrap the same one."""
    ids = [id(part) for env in envs for part in _environments([env])]
    return len(ids) > len(set(ids))
