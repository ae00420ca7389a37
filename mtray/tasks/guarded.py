"""The caller's process while users' makers, Ray and simulators work in it: it is restored, and waits only so long."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import types
from collections.abc import Iterator

from mtray.errors import UsageError

_LOGGER = logging.getLogger("mtray")
_LOGGERS = ("", "ray", "absl")
_TOLD_SECONDS, _LIMIT_SECONDS = 10.0, 180.0


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


@contextlib.contextmanager
def limited(what: str) -> Iterator[None]:
    """Say after ten seconds what is waited for, and give up after three minutes.

    Outside the main thread, or where the caller uses SIGALRM, it is only said. Code that never returns to Python can't
    be interrupted.

    Raises:
        UsageError: it takes longer.
    """
    timer = threading.Timer(_TOLD_SECONDS, _LOGGER.warning, ("%s: waited for since %g s", what, _TOLD_SECONDS))
    timer.daemon = True
    timer.start()
    is_main = threading.current_thread() is threading.main_thread()
    may_interrupt = is_main and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL

    def give_up(number: int, frame: types.FrameType | None) -> None:
        raise UsageError(f"{what}: not done after {_LIMIT_SECONDS:g} s")

    try:
        if may_interrupt:
            signal.signal(signal.SIGALRM, give_up)
            signal.setitimer(signal.ITIMER_REAL, _LIMIT_SECONDS)
        yield
    finally:
        if may_interrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        timer.cancel()
