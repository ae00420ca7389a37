"""The journal: what happened to the rings, kept in memory that outlives the replay's process.

A record is written before the rings change and marked done after. So a process that takes the memory over knows every
push that was stored whole, and which rows of the one that was not. It lies in two files in memory, used in turns: each
begins with a whole state, and the next is begun before the last is given up. Plain bytes; nothing is unpickled.

    file   = frame*                      the first holds a state, the others records
    frame  = length, crc32, done, payload
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence

from mtray.data.blocks import Address, MemoryFile, hold
from mtray.errors import RunError

_FRAME = struct.Struct("<IIB")
_DONE_AT = _FRAME.size - 1
# Bytes of records after which a state is written and the other file begun; more where the state itself is long, so that
# writing it stays a small part.
_FILE_BYTES = 2**22


class Journal:
    """States and records in two files."""

    def __init__(self, files: Sequence[MemoryFile] | None = None) -> None:
        """Begin an empty journal, or take over the files of another process; `begin` then starts anew."""
        self._files = list(files or (MemoryFile.new(), MemoryFile.new()))
        self._generation = 0
        self._end = self._last = self._state_bytes = 0

    @classmethod
    def attach(cls, addresses: Sequence[Address]) -> Journal:
        """Open another process's journal.

        Raises:
            OSError: that process and those that held its files have ended, or are on another node.
        """
        return cls([hold(address) for address in addresses])

    @property
    def addresses(self) -> list[Address]:
        """Where the files are found."""
        return [file.address for file in self._files]

    @property
    def is_long(self) -> bool:
        """Whether it is time to `begin` again."""
        return self._end - self._state_bytes > max(_FILE_BYTES, 2 * self._state_bytes)

    def begin(self, state: bytes) -> None:
        """Write a whole state; what was written before it counts no more."""
        self._generation += 1
        file = self._files[self._generation % 2]
        os.ftruncate(file.descriptor, 0)
        self._end = 0
        self._write(file, struct.pack("<Q", self._generation) + state, done=True)
        self._state_bytes = self._end

    def add(self, record: bytes) -> None:
        """Write a record of a change that is about to be made."""
        self._write(self._files[self._generation % 2], record, done=False)

    def done(self) -> None:
        """Mark the last record: its change was made."""
        os.pwrite(self._files[self._generation % 2].descriptor, b"\1", self._last + _DONE_AT)

    def _write(self, file: MemoryFile, payload: bytes, *, done: bool) -> None:
        frame = _FRAME.pack(len(payload), zlib.crc32(payload), done) + payload
        os.pwrite(file.descriptor, frame, self._end)
        self._last, self._end = self._end, self._end + len(frame)

    def read(self) -> tuple[bytes, list[tuple[bytes, bool]]]:
        """Return the newest whole state and the records after it, each with whether its change was made.

        Only the last record can be one that was not made.

        Raises:
            RunError: there is none.
        """
        found: tuple[int, bytes, list[tuple[bytes, bool]]] | None = None
        for file in self._files:
            frames = _frames(os.pread(file.descriptor, os.fstat(file.descriptor).st_size, 0))
            if frames:
                (generation,) = struct.unpack_from("<Q", frames[0][0])
                if found is None or generation > found[0]:
                    found = generation, frames[0][0][8:], frames[1:]
        if found is None:
            raise RunError("the replay's memory holds no state")
        self._generation = found[0]
        return found[1:]


def _frames(data: bytes) -> list[tuple[bytes, bool]]:
    """Return the whole frames of a file, up to the first that is not."""
    frames, begin = [], 0
    while begin + _FRAME.size <= len(data):
        length, checksum, done = _FRAME.unpack_from(data, begin)
        payload = data[begin + _FRAME.size : begin + _FRAME.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            break
        frames.append((payload, bool(done)))
        begin += _FRAME.size + length
    return frames
