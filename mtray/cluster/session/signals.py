"""Stop signals: how the process that calls `train` is asked to end a run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator

# SIGHUP only where it is not ignored, as under nohup.
_NUMBERS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
# `timeout` signals a command and then its process group: two signals, one wish.
_SAME_SECONDS = 0.5


@contextlib.contextmanager
def stop_signals(
    stop: Callable[[str], None], what_follows: Callable[[], str] = lambda: "saving a checkpoint"
) -> Iterator[Callable[[], None]]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP call ``stop``, and a second one raise KeyboardInterrupt.

    In a thread, which can't handle signals, nothing is changed.

    Args:
        stop: takes the reason.
        what_follows: says what the run does before it ends.

    Yields:
        A function that sets the handlers again: Ray's C++ code replaces them when it starts, to print its own trace.
    """
    first: float | None = None

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            # Not by sys.stderr, which the signal may have interrupted.
            with contextlib.suppress(OSError):
                os.write(2, f"\nstopping: {what_follows()} (once more to end at once)\n".encode())
            stop("interrupted")
        elif now > first + _SAME_SECONDS:
            raise KeyboardInterrupt

    with _handled_by(handle) as install:
        yield install


@contextlib.contextmanager
def signals_hasten(hasten: Callable[[], None]) -> Iterator[None]:
    """Let stop signals call a function while the block runs, which is not to be left by an exception half-way.

    In a thread nothing is changed.
    """
    with _handled_by(lambda number, frame: hasten()):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, types.FrameType | None], None]) -> Iterator[Callable[[], None]]:
    """Handle stop signals by a function; yield what sets it again. In a thread, which can't, nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def install() -> None:
        for number in before:
            signal.signal(number, handler)

    install()
    try:
        yield install
    finally:
        for number, handler_before in before.items():
            # None: set by C code, which Python can't set again.
            signal.signal(number, signal.SIG_DFL if handler_before is None else handler_before)
