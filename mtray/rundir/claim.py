"""The owner of a run directory: one process at a time.

A claim is an advisory lock (flock) on a file in the directory. The system drops it when its process ends, however that
ends, so no stale lock is left to clean up. The file's text tells others who the owner is.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mtray.errors import UsageError

LOCK = ".lock"
_TEXT_BYTES = 1000
# Time that an owner is given to sign.
_SIGN_SECONDS = 1.0
# File systems that have no locks, for example some of a cluster's.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Claim:
    """A held lock, signed with its owner.

    Attributes:
        run_dir: the directory that is claimed.
    """

    def __init__(self, run_dir: Path, descriptor: int, *, is_new: bool) -> None:
        """Take over an open, locked file and sign it; ``is_new``: this claim created it.

        Raises:
            UsageError: it can't be written.
        """
        self.run_dir = run_dir
        self._descriptor = descriptor
        # An empty file was created by another that was refused before it could sign.
        self._before = None if is_new else os.pread(descriptor, _TEXT_BYTES, 0) or None
        self._is_kept = False
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "start": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        try:
            self._write(json.dumps(owner).encode() + b"\n")
        except OSError as error:
            self.release()
            raise UsageError(f"run directory {run_dir} can't be written: {error.strerror}") from error

    def keep(self) -> None:
        """Let the signature stay when the claim ends: the run was not refused."""
        self._is_kept = True

    def release(self) -> None:
        """Give the directory up; a claim that was not kept leaves the lock's file as it was, or none."""
        with contextlib.suppress(OSError):
            if not self._is_kept and self._before is None:
                (self.run_dir / LOCK).unlink()
            elif not self._is_kept:
                self._write(self._before or b"")
        os.close(self._descriptor)

    def _write(self, text: bytes) -> None:
        os.pwrite(self._descriptor, text, 0)
        os.truncate(self._descriptor, len(text))


@contextlib.contextmanager
def claim(run_dir: Path) -> Iterator[Claim]:
    """Own a directory that exists while the block runs.

    Raises:
        UsageError: another run owns it, with its process and host; or it can't be written.
    """
    held = _acquire(run_dir)
    try:
        yield held
    finally:
        held.release()


def is_owned(run_dir: Path) -> bool:
    """Return whether a process owns a directory, as far as that can be seen.

    For a moment nobody else can claim it: not to be asked of a run that is starting.
    """
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return not run_dir.is_dir()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        # Held, or on a file system without locks.
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(run_dir: Path) -> Claim:
    path = run_dir / LOCK
    while True:
        try:
            try:
                descriptor, is_new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), True
            except FileExistsError:
                descriptor, is_new = os.open(path, os.O_RDWR | os.O_CLOEXEC), False
        except FileNotFoundError as error:
            if not run_dir.is_dir():
                raise UsageError(f"run directory {run_dir} is not there") from error
            # Its owner gave it up between the two attempts.
            continue
        except OSError as error:
            raise UsageError(f"run directory {run_dir} can't be written: {error.strerror}") from error
        if _lock(descriptor, run_dir) and _is_at(descriptor, path):
            return Claim(run_dir, descriptor, is_new=is_new)
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        deadline, owner = time.monotonic() + _SIGN_SECONDS, _owner(descriptor)
        # It signs as soon as it has the lock.
        while owner is None and time.monotonic() < deadline:
            time.sleep(_SIGN_SECONDS / 100)
            owner = _owner(descriptor)
        owner = owner or "a run that is starting"
        os.close(descriptor)
        raise UsageError(
            f"run directory {run_dir} is in use by {owner}: wait for its end, or choose another directory"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise UsageError(f"run directory {run_dir} can't be locked: {error.strerror}") from error
        logging.getLogger(__name__).warning("%s: no locks on this file system; start only one run in it", run_dir)
    return True


def _owner(descriptor: int) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(os.pread(descriptor, _TEXT_BYTES, 0))
        return f"process {owner['pid']} on {owner['host']} since {owner['start']}"
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: its creator may have given it up and removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
