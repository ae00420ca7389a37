"""Blocks: memory that processes of a node share, so that rows pass between them without Ray's object store.

An object in the store is allocated, copied, sealed, counted and freed by three processes, which takes several times as
long as the copy (`benchmarks/replay.py`). Here one process owns a block, writes rows into it or has another process
write them, and Ray carries their address only. The owner knows when a block is free again: once the call that was given
its address has been answered.

A block is an anonymous file in memory (memfd_create(2)). It has no name in any folder and ends with the last process
that holds it, however that process ends, so nothing is ever left behind. Other processes of the same node, user and
container find it through its owner's entry in /proc; for all others rows travel in Ray's messages. A process that opens
it (`hold`) keeps it when the owner dies: that is how the replay's rows outlive the replay.
"""

from __future__ import annotations

import math
import mmap
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtray.data.specs import FloatArray


@dataclass(frozen=True)
class Address:
    """Where a block is found, on its owner's node only."""

    process: int
    descriptor: int
    name: str

    @property
    def path(self) -> str:
        """The block as a file."""
        return f"/proc/{self.process}/fd/{self.descriptor}"

    def exists(self) -> bool:
        """Return whether it is found from here. Another node may have such a process too, but not with this name."""
        try:
            return os.readlink(self.path) == f"/memfd:{self.name} (deleted)"
        except OSError:
            return False

    def open(self) -> int:
        """Return a descriptor of the block.

        Raises:
            FileNotFoundError: it is not on this node, or its owner has ended.
        """
        if not self.exists():
            raise FileNotFoundError(f"process {self.process} holds no block {self.name} for this one to open")
        return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)


class MemoryFile:
    """An anonymous file in memory that this process holds open.

    Attributes:
        address: where other processes find it.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        """Take over an open file; it is closed with this object."""
        self.address = Address(os.getpid(), descriptor, name)
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def new(cls) -> MemoryFile:
        """Create an empty one."""
        name = f"mtray-{uuid.uuid4().hex}"
        return cls(name, os.memfd_create(name))

    @property
    def descriptor(self) -> int:
        """The open file's."""
        return self.address.descriptor


def hold(address: Address) -> MemoryFile:
    """Keep another process's block, until the returned object is dropped.

    Raises:
        OSError: it is not on this node, or its owner has ended.
    """
    return MemoryFile(address.name, address.open())


class Block:
    """Memory that processes share: one of this process, or of another that gave its address."""

    def __init__(self, file: MemoryFile) -> None:
        """Map a file's memory."""
        self.file = file
        memory = mmap.mmap(file.descriptor, os.fstat(file.descriptor).st_size)
        self.words: FloatArray = np.frombuffer(memory, np.float32)

    @classmethod
    def new(cls, words: int) -> Block:
        """Reserve a number of float32 for others to find; the system provides memory as they are written."""
        file = MemoryFile.new()
        os.ftruncate(file.descriptor, 4 * words)
        block = cls(file)
        _own[file.address.name] = block
        return block

    @property
    def address(self) -> Address:
        """Where other processes find it."""
        return self.file.address


class SharedRows(Mapping[str, FloatArray]):
    """Arrays side by side in a block, by task. Pickled, they are the block's address and where in it they lie."""

    def __init__(self, block: Block, begin: int = 0) -> None:
        """Hold no array yet; the first will lie at this word of the block."""
        self._block, self._begin, self._end = block, begin, begin
        self._arrays: dict[str, FloatArray] = {}

    def add(self, task: str, shape: tuple[int, ...]) -> FloatArray:
        """Return an array behind the others, filled with whatever was there.

        Raises:
            ValueError: the block is too small.
        """
        begin, end = self._end, self._end + math.prod(shape)
        # numpy says what does not fit.
        self._arrays[task] = self._block.words[begin:end].reshape(shape)
        self._end = end
        return self._arrays[task]

    def __getitem__(self, task: str) -> FloatArray:
        return self._arrays[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self._block.address, self._begin, {task: array.shape for task, array in self._arrays.items()})


# Blocks of this process, and those of others that it has mapped.
_own: weakref.WeakValueDictionary[str, Block] = weakref.WeakValueDictionary()
_others: dict[str, tuple[Address, Block]] = {}


def reaches(address: Address) -> bool:
    """Return whether this process can map another's block."""
    try:
        _map(address)
    except OSError:
        return False
    return True


def _find(address: Address, begin: int, shapes: Mapping[str, tuple[int, ...]]) -> SharedRows:
    rows = SharedRows(_own.get(address.name) or _map(address), begin)
    for task, shape in shapes.items():
        rows.add(task, shape)
    return rows


def _map(address: Address) -> Block:
    if address.name not in _others:
        # Drop mappings whose owner has ended.
        for name in [name for name, (owner, _) in _others.items() if not owner.exists()]:
            del _others[name]
        _others[address.name] = address, Block(hold(address))
    return _others[address.name][1]
