"""The process that calls `train`: stop signals while a run goes on, and everything back as it was afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator

from mtray.errors import UsageError

# `timeout` signals a command and then its process group: two signals, one wish.
_SAME_SECONDS = 0.5
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


@contextlib.contextmanager
def stop_signals(stop: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP call ``stop``, and a second one raise KeyboardInterrupt.

    In a thread, which can't handle signals, nothing is changed.

    Yields:
        A function that sets the handlers again: Ray's C++ code replaces them when it starts, to print its own trace.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    first: float | None = None

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            # Not by sys.stderr, which the signal may have interrupted.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping: saving a checkpoint (once more to end at once)\n")
            stop("interrupted")
        elif now > first + _SAME_SECONDS:
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    # A command under nohup ignores it.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def install() -> None:
        for number in numbers:
            signal.signal(number, handle)

    install()
    try:
        yield install
    finally:
        for number, handler in before.items():
            # None: set by C code, which Python can't set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
