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

from mtray.specs import FloatArray

Shapes = Mapping[str, tuple[int, ...]]


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

    def reached(self) -> bool:
        """Whether it is found from here. Another node may have such a process too, but not with this name."""
        try:
            return os.readlink(self.path) == f"/memfd:{self.name} (deleted)" and os.access(self.path, os.R_OK | os.W_OK)
        except OSError:
            return False


class Block:
    """Memory of this process that others can map."""

    def __init__(self, nbytes: int) -> None:
        """Reserve the memory; it is taken as it is written."""
        name = f"mtray-{uuid.uuid4().hex}"
        descriptor = os.memfd_create(name)
        weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, nbytes)
        self.address = Address(os.getpid(), descriptor, name)
        self.memory = _map(descriptor)
        _own[name] = self


class SharedRows(Mapping[str, FloatArray]):
    """Arrays side by side in a block, by task. Pickled, they are the block's address and their shapes."""

    def __init__(self, address: Address, memory: FloatArray, shapes: Shapes) -> None:
        """Lay arrays of these shapes over the start of a block's memory."""
        self._address = address
        self._arrays: dict[str, FloatArray] = {}
        begin = 0
        for task, shape in shapes.items():
            end = begin + math.prod(shape)
            self._arrays[task] = memory[begin:end].reshape(shape)
            begin = end

    def __getitem__(self, task: str) -> FloatArray:
        return self._arrays[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self._address, {task: array.shape for task, array in self._arrays.items()})


# What this process lends, and what it has mapped of others'.
_own: weakref.WeakValueDictionary[str, Block] = weakref.WeakValueDictionary()
_mapped: dict[Address, FloatArray] = {}


def nbytes_of(shapes: Shapes) -> int:
    """Bytes of float32 arrays of these shapes."""
    return 4 * sum(map(math.prod, shapes.values()))


def rows_in(block: Block, shapes: Shapes) -> SharedRows:
    """Arrays of these shapes at the start of a block."""
    return SharedRows(block.address, block.memory, shapes)


def _find(address: Address, shapes: Shapes) -> SharedRows:
    block = _own.get(address.name)
    if block is not None:
        return SharedRows(address, block.memory, shapes)
    if address not in _mapped:
        # What is gone was replaced by a larger block, or its owner has ended.
        for gone in [known for known in _mapped if not known.reached()]:
            del _mapped[gone]
        if not address.reached():
            raise FileNotFoundError(f"process {address.process} holds no block {address.name} for this one to map")
        descriptor = os.open(address.path, os.O_RDWR)
        try:
            _mapped[address] = _map(descriptor)
        finally:
            os.close(descriptor)
    return SharedRows(address, _mapped[address], shapes)


def _map(descriptor: int) -> FloatArray:
    memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    return np.frombuffer(memory, np.float32)
