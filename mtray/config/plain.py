"""A config as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from mtray.config.checks import require
from mtray.config.settings import Config
from mtray.errors import UsageError


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return {
        spec.name: to_dict(value) if dataclasses.is_dataclass(value) else _plain(value)
        for spec in dataclasses.fields(config)
        for value in [getattr(config, spec.name)]
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def from_dict(data: Mapping[str, Any], cls: type[Any] = Config) -> Any:
    """The config that `to_dict` wrote.

    Raises:
        UsageError: a setting that this version does not know, or a value it refuses.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    require(not unknown, f"{cls.__name__} has no setting named {', '.join(unknown)}: was another version used?")
    values = {}
    for name, value in data.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = from_dict(value, typing.cast(type[Any], hint))
        elif isinstance(value, list):
            values[name] = tuple(value)
        elif value is not None and isinstance(hint, UnionType) and Path in typing.get_args(hint):
            values[name] = Path(value)
        else:
            values[name] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise UsageError(f"{cls.__name__}: a setting is of the wrong type: {error}") from error
