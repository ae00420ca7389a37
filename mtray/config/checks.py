"""Checks that settings share: each raises one `UsageError`."""

from __future__ import annotations

import math

from mtray.errors import UsageError


def require(condition: bool, message: str) -> None:
    """Raise a UsageError with this message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def is_positive(text: str) -> bool:
    """Return whether the text is a finite number above 0."""
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def is_positive_integer(text: str) -> bool:
    """Return whether the text is a whole number above 0."""
    return text.isdecimal() and int(text) > 0
