"""Conversion of a config to plain JSON values and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtray.config.settings import Config
from mtray.config.types import build


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def from_dict(data: Mapping[str, Any], cls: type[Any] = Config) -> Any:
    """Return the config, or the group of class ``cls``, that `to_dict` wrote.

    Raises:
        UsageError: an unknown setting or an invalid value.
    """
    return build(cls, data)
