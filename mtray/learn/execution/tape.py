"""Recorded kernels of a function on the CPU, replayed like a CUDA graph on a GPU.

Most kernels of an update on small networks take less time than the Python and autograd code around them. A function
runs once while every kernel is recorded with the memory it reads and writes; a replay calls the kernels in order with
the same memory, without views, autograd's graph and allocations. The results are the same bit for bit.

Only operations that torch dispatches are recorded. The function may read and write tensors at fixed addresses only: no
Python numbers that change, no other library, no compiled code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten


# Arguments of operations that make a tensor; memory that exists has them already.
_OPTIONS = {"dtype", "layout", "device", "pin_memory"}


# Operations that copy; their variants that write into given memory copy twice.
_COPIES = {_aten._to_copy.default, _aten.clone.default}


_EMPTY = {_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default, _aten.empty_strided.default}


@dataclass
class _Memory:
    """Memory of tensors.

    Attributes:
        storage: None until placement for memory allocated inside the function.
        reference: weak, tells whether a tensor outside still uses the memory.
        bytes: its size.
        first, last: steps between which it is used.
    """

    storage: torch.UntypedStorage | None
    reference: StorageWeakRef
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class _View:
    """A tensor as a view of memory."""

    memory: _Memory
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        assert self.memory.storage is not None
        empty = torch.empty(0, dtype=self.dtype)
        return empty.set_(self.memory.storage, self.offset, self.size, self.stride)


@dataclass
class _Step:
    """A call of a kernel, with views in place of tensors."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@functools.cache
def _writing_variant(function: Any) -> tuple[Any, tuple[str, ...], tuple[str, ...]] | None:
    """Return the variant that writes into given memory, if any, and the names of its arguments and results."""
    types = {argument.name: str(argument.type) for argument in function._schema.arguments}
    without = {name: kind for name, kind in types.items() if name not in _OPTIONS}
    for name in function.overloadpacket.overloads():
        variant = getattr(function.overloadpacket, name)
        given = {argument.name: str(argument.type) for argument in variant._schema.arguments if not argument.is_out}
        written = tuple(argument.name for argument in variant._schema.arguments if argument.is_out)
        if written and given in (types, without):
            return variant, tuple(given), written
    return None


def _copy_all(function: Callable[..., Any], args: Sequence[Any], kwargs: Any, out: Sequence[Tensor | None]) -> None:
    """Call, and copy the results that have a target."""
    results = function(*args, **kwargs)
    for result, target in zip(results if isinstance(results, (tuple, list)) else [results], out, strict=True):
        if target is not None:
            target.copy_(result)


class _Recorder(TorchDispatchMode):
    """Records every kernel that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.memory: dict[int, _Memory] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        if function is _aten._local_scalar_dense.default:
            raise NotImplementedError("a number that Python reads can't be recorded")
        read = {self._of(tensor) for tensor in _tensors((args, kwargs))}
        written = _tensors(results)
        fresh = [tensor for tensor in written if tensor.untyped_storage()._cdata not in read]
        if not function._schema.is_mutable and not fresh:
            return results  # A view: no kernel.
        args, kwargs = self._views((args, kwargs))
        if function._schema.is_mutable:
            assert not fresh, f"{function} both writes into its arguments and makes new ones"
            self.steps.append(_Step(function, args, kwargs))
            return results
        assert len(fresh) == len(written), f"some results of {function} lie in its arguments' memory, others do not"
        for tensor in fresh:
            self._of(tensor, fresh=True)
        self._write(function, args, kwargs, self._views(results))
        return results

    def _write(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> None:
        if function in _EMPTY:
            return
        if function in _COPIES:
            self.steps.append(_Step(_aten.copy_.default, (results, args[0])))
            return
        listed = list(results) if isinstance(results, (tuple, list)) else [results]
        found = _writing_variant(function)
        if found is None or len(found[2]) != len(listed) or any(result is None for result in listed):
            self.steps.append(_Step(_copy_all, (function, args, kwargs, listed)))
            return
        variant, given, names = found
        kwargs = {name: value for name, value in kwargs.items() if name in given}
        self.steps.append(_Step(variant, args, {**kwargs, **dict(zip(names, listed, strict=True))}))

    def _of(self, tensor: Tensor, *, fresh: bool = False) -> int:
        """Return the key of a tensor's memory, and mark it as used at the next step."""
        storage, now = tensor.untyped_storage(), len(self.steps)
        key: int = storage._cdata
        if fresh or key not in self.memory:
            # A weak reference keeps the key from being given to another storage.
            reference = StorageWeakRef(storage)
            self.memory[key] = _Memory(None if fresh else storage, reference, storage.nbytes(), now, now)
        self.memory[key].last = now
        return key

    def _views(self, tree: Any) -> Any:
        def view(tensor: Tensor) -> _View:
            memory = self.memory[self._of(tensor)]
            return _View(memory, tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())

        return tree_map_only(Tensor, view, tree)

    def place(self) -> None:
        """Allocate storage for memory that was freed while recording; memory of disjoint steps shares one."""
        waiting = sorted((memory for memory in self.memory.values() if memory.storage is None), key=lambda m: m.first)
        free: dict[int, list[torch.UntypedStorage]] = {}
        used: list[_Memory] = []
        for memory in waiting:
            if not memory.reference.expired():
                # A tensor outside still uses it.
                memory.storage = torch.UntypedStorage._new_with_weak_ptr(memory.reference.cdata)
                continue
            for other in [other for other in used if other.last < memory.first]:
                used.remove(other)
                assert other.storage is not None
                free.setdefault(other.bytes, []).append(other.storage)
            same = free.get(memory.bytes)
            memory.storage = same.pop() if same else torch.UntypedStorage(memory.bytes)
            used.append(memory)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bound(step: _Step) -> Callable[[], Any]:
    args, kwargs = tree_map_only(_View, _View.tensor, (step.args, step.kwargs))
    function = step.function
    return functools.partial(getattr(function, "_op", function), *args, **kwargs)


class Tape:
    """The recorded kernels of a function."""

    def __init__(self, function: Callable[[], object]) -> None:
        """Run the function once and record it.

        Raises:
            NotImplementedError: it reads a number back into Python, which can't be recorded.
        """
        with _Recorder() as recorder:
            function()
        recorder.place()
        self._calls = [_bound(step) for step in recorder.steps]

    def replay(self) -> None:
        """Run the kernels again."""
        with torch.no_grad():
            for call in self._calls:
                call()
