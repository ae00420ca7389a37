"""Command-line programs: exit codes, and one line per error."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from mtray.errors import MtrayError, UsageError
from mtray.rundir.sinks import say

# Of paths that were given: no search through them can begin.
_UNREACHABLE = errno.ENAMETOOLONG, errno.EACCES


def run_program(program: Callable[[], None]) -> int:
    """Run a command-line program and return its exit code.

    0 is success, 2 invalid input, 1 any other error. An error is one line on stderr; for an unexpected error it names a
    file with the traceback. Characters outside the terminal's encoding are replaced.
    """
    with contextlib.suppress(Exception):
        # A simulator's library that crashes ends this process: at least it is seen where.
        faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    code = _run(program)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        return _fail(f"output can't be written: {error.strerror}", 1)
    return code


def check_writable(option: str, path: Path) -> None:
    """Raise a UsageError if the file of an option can't be written: before the work, not after."""
    try:
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UsageError(f"{option} {path} can't be written ({error.strerror}): choose another place") from error


def _is_reader_gone() -> bool:
    """Return whether stdout is a pipe that nobody reads: other pipes break, too."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _drop_output() -> None:
    """Discard buffered output, which would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(program: Callable[[], None]) -> int:
    try:
        program()
    except UsageError as error:
        return _fail(error, 2)
    except MtrayError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _UNREACHABLE and error.filename is not None:
            return _fail(
                f"{os.fsdecode(error.filename)}: {error.strerror}; give another path, or make it accessible", 2
            )
        if isinstance(error, BrokenPipeError) and _is_reader_gone():
            # It has read what it wanted, as `head` does.
            _drop_output()
            return 0
        return _fail(f"{type(error).__name__}: {error}{_keep_traceback(error)}", 1)
    return 0


def _keep_traceback(error: Exception) -> str:
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile("w", prefix="mtray-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
        return f"; the traceback is in {file.name}"
    return ""


def _fail(error: object, code: int) -> int:
    say(f"error: {one_line(error)}\n")
    return code


def one_line(text: object) -> str:
    """Return text on one line, without control characters."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(str(text).split()))
