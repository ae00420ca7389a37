"""A config as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtray.config.settings import Config
from mtray.config.types import build


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values."""
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
    """Return the config that `to_dict` wrote.

    Raises:
        UsageError: a setting that this version does not have, or a value it refuses.
    """
    return build(cls, data)
