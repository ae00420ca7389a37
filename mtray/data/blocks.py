"""Blocks: memory that two processes of a node share, so that rows pass between them without Ray's object store.

What enters the store is allocated, copied, sealed, counted and freed by three processes, which takes several times as
long as the copying does (`benchmarks/replay.py`). Here a process lends a block, writes rows into it or has another
write them, and what Ray carries says only where they lie. The lender knows when the block is free again: once the call
it was lent for has been answered.

A block is an anonymous file in memory (memfd_create(2)). It has no name in any folder and ends with the last process
that holds it, however that one ends, so nothing is ever left behind. Others find it through its owner's entry in
/proc: processes of the same node, user and container do; for all others rows travel in Ray's messages.
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
        """Whether it is found from here. Another node may have such a process too, but not with this name."""
        try:
            return os.readlink(self.path) == f"/memfd:{self.name} (deleted)"
        except OSError:
            return False


class Block:
    """Memory that processes share: one of this process, or of another that lends it."""

    def __init__(self, address: Address, descriptor: int) -> None:
        """Map it."""
        self.address = address
        memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        self.words: FloatArray = np.frombuffer(memory, np.float32)

    @classmethod
    def new(cls, words: int) -> Block:
        """Reserve so many float32 for others to find; they are taken as they are written."""
        name = f"mtray-{uuid.uuid4().hex}"
        descriptor = os.memfd_create(name)
        os.ftruncate(descriptor, 4 * words)
        block = cls(Address(os.getpid(), descriptor, name), descriptor)
        weakref.finalize(block, os.close, descriptor)
        _own[name] = block
        return block


class SharedRows(Mapping[str, FloatArray]):
    """Arrays side by side in a block, by task. Pickled, they are the block's address and where in it they lie."""

    def __init__(self, block: Block, begin: int = 0) -> None:
        """No array yet; the first will lie at this word of the block."""
        self._block, self._begin, self._end = block, begin, begin
        self._arrays: dict[str, FloatArray] = {}

    def add(self, task: str, shape: tuple[int, ...]) -> FloatArray:
        """An array behind the others, filled with whatever was there.

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


# What this process lends, and what it has mapped of others'.
_own: weakref.WeakValueDictionary[str, Block] = weakref.WeakValueDictionary()


_others: dict[str, Block] = {}


def reaches(address: Address) -> bool:
    """Whether this process can map another's block."""
    try:
        _map(address)
    except OSError:
        return False
    return True


def _find(address: Address, begin: int, shapes: Mapping[str, tuple[int, ...]]) -> SharedRows:
    rows = SharedRows(_own.get(address.name) or _others.get(address.name) or _map(address), begin)
    for task, shape in shapes.items():
        rows.add(task, shape)
    return rows


def _map(address: Address) -> Block:
    # What is found no more has lost its owner.
    for gone in [name for name, block in _others.items() if not block.address.exists()]:
        del _others[gone]
    if not address.exists():
        raise FileNotFoundError(f"process {address.process} holds no block {address.name} for this one to map")
    descriptor = os.open(address.path, os.O_RDWR)
    try:
        _others[address.name] = Block(address, descriptor)
    finally:
        os.close(descriptor)
    return _others[address.name]
