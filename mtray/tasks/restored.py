"""The process of a caller, left as it was: a user's maker, Ray and simulators change what they please in it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from mtray.errors import UsageError

_LOGGERS = ("", "ray", "absl")


@contextlib.contextmanager
def process_restored() -> Iterator[None]:
    """Restore working directory, environment and logging when the block ends."""
    with _folder_restored(), _environment_restored(), _logging_restored():
        yield


@contextlib.contextmanager
def _folder_restored() -> Iterator[None]:
    try:
        folder = os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder was deleted: change to one that is there") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.chdir(folder)


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    try:
        yield
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers
