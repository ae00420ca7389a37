"""Checks of settings: each raises a `UsageError` that names the flag and the value."""

from __future__ import annotations

import math
import numbers
from typing import Any

from mtray.config.types import flag
from mtray.errors import UsageError


def require(condition: bool, message: str) -> None:
    """Raise a UsageError with this message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def require_count(name: str, value: Any) -> None:
    """Raise a UsageError unless the value is a whole number of at least 1."""
    require(_is_whole(value) and value >= 1, f"{name} {value!r}: at least 1 is needed, a whole number")


def require_seed(name: str, value: Any) -> None:
    """Raise a UsageError unless the value is a whole number that numpy takes as a seed."""
    is_seed = _is_whole(value) and 0 <= value < 2**32
    require(is_seed, f"{name} {value!r}: must be a whole number between 0 and 2**32 - 1")


def _is_whole(value: Any) -> bool:
    # numpy's integers are no subclass of int.
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def require_at_least(config: Any, limit: int, *names: str) -> None:
    """Raise a UsageError if one of these settings is below the limit; None is allowed."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= limit, f"{flag(type(config), name)} {value}: at least {limit} is needed")


def require_at_most(config: Any, limit: float, *names: str) -> None:
    """Raise a UsageError if one of these settings is above the limit; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            require(value <= limit, f"{flag(type(config), name)} {value:g}: at most {limit:g} is possible")


def require_above_zero(config: Any, *names: str) -> None:
    """Raise a UsageError if one of these settings is 0 or negative; None is allowed."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{flag(type(config), name)} {value}: must be above 0")


def is_positive(text: str) -> bool:
    """Return whether the text is a finite number above 0."""
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def is_positive_integer(text: str) -> bool:
    """Return whether the text is a whole number above 0."""
    return text.isdecimal() and int(text) > 0
