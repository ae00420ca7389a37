"""Conversion of settings to the types of their fields' annotations.

Called by every group's ``__post_init__``, so that the command line, JSON and Python callers have the same rules.
Conversions are lossless: numpy integers and whole floats to int, text to Path, lists to tuples, a single text to a
tuple, mappings to groups. Other values are refused.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import os
import types
import typing
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Literal

from mtray.errors import UsageError


def flag(cls: type[Any], name: str) -> str:
    """Return a field's command-line flag: ``rollout_steps`` of CollectorConfig is ``--collector.rollout-steps``."""
    # Other programs' options have no groups.
    group = cls.__name__.removesuffix("Config").lower() if cls.__name__.endswith("Config") else ""
    return f"--{group + '.' if group else ''}{name.replace('_', '-')}"


def convert_fields(config: Any) -> None:
    """Convert every field of a new frozen dataclass to its annotated type.

    Raises:
        UsageError: names the flag, the value and the allowed values.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        converted = _convert(value, hints[field.name], flag(type(config), field.name))
        if converted is not value:
            object.__setattr__(config, field.name, converted)


def build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Return a group of settings from name to value.

    Raises:
        UsageError: an unknown setting or an invalid value.
    """
    unknown = sorted(str(name) for name in set(values) - set(typing.get_type_hints(cls)))
    if unknown:
        raise UsageError(f"{cls.__name__} has no setting named {', '.join(unknown)}: was another version used?")
    return cls(**values)


def _convert(value: Any, hint: Any, name: str) -> Any:
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        words = [word for option in options for word in typing.get_args(option)]
        if isinstance(value, str) and value in words:
            return str(value)
        return _convert(value, next(option for option in options if option is not type(None)), name)
    if typing.get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in options:
            raise UsageError(f"{name} {value}: choose from {', '.join(options)}")
        return str(value)
    if typing.get_origin(hint) is tuple:
        return _to_tuple(value, options[0], name)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if isinstance(value, Mapping):
            return build(typing.cast(type[Any], hint), value)
        raise _refusal(name, value, f"a {hint.__name__} or a dict of its settings is needed")  # type: ignore[union-attr]
    return _PLAIN[hint](value, name)


def _to_tuple(value: Any, item: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = (value,)
    try:
        entries = None if isinstance(value, bytes | Mapping | Set) else tuple(value)
    except TypeError:
        entries = None
    if entries is None:
        raise _refusal(name, value, "a list or tuple is needed")
    converted = tuple(_convert(entry, item, name) for entry in entries)
    is_same = isinstance(value, tuple) and all(map(operator.is_, converted, value))
    return value if is_same else converted


def _to_bool(value: Any, name: str) -> bool:
    # numpy's bool is no subclass of bool.
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise _refusal(name, value, "True or False is needed")


def _to_int(value: Any, name: str) -> int:
    if not isinstance(value, bool):
        try:
            return int(operator.index(value))
        except TypeError:
            # Large whole numbers are often written as floats, such as 1e6.
            if isinstance(value, numbers.Real) and float(value).is_integer():
                return round(float(value))
    raise _refusal(name, value, "a whole number is needed")


def _to_float(value: Any, name: str) -> float:
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise _refusal(name, value, "a number is needed")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise _refusal(name, value, "a number is needed") from None
    if not math.isfinite(number):
        raise UsageError(f"{name} {number}: must be finite")
    return number


def _to_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return str(value)
    hint = "; register a maker with mtray.register_task and give its name" if callable(value) else ""
    raise _refusal(name, value, f"text is needed{hint}")


def to_path(value: Any, name: str) -> Path:
    """Return text or a path as a path; refuse anything else, by this name."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise _refusal(name, value, "a path is needed")
    if not path:
        # A variable of a shell that is not set, most often.
        raise UsageError(f"{name} is empty: a path is needed; . is the current folder")
    if "\0" in path:
        raise UsageError(f"{name} {path!r}: a path can't have a NUL character")
    return value if isinstance(value, Path) else Path(path)


def _refusal(name: str, value: Any, needed: str) -> UsageError:
    text = repr(value)
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return UsageError(f"{name} {shown} is of the wrong type ({type(value).__name__}): {needed}")


_PLAIN = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_text, Path: to_path}
