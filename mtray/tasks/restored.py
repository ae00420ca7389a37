"""Restore the caller's process, which users' makers, Ray and simulators may change."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from mtray.errors import UsageError

_LOGGERS = ("", "ray", "absl")


@contextlib.contextmanager
def process_restored() -> Iterator[None]:
    """Restore working directory, environment variables and logging when the block ends."""
    try:
        folder = os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder was deleted: change to one that exists") from error
    environment = dict(os.environ)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    logging_states = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        for logger, (level, propagate, handlers) in zip(loggers, logging_states, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers
