"""Recorded CPU kernels of a function, replayed like a CUDA graph on a GPU.

Most kernels of an update of small networks take less time than the Python and autograd code around them. The function
runs once, and every kernel is recorded with the memory that it reads and writes. A replay calls the kernels in order
with the same memory, without creating views, autograd graphs or tensors. The results are equal bit for bit.

Only operations that torch dispatches are recorded: the function may use no other library and no compiled code. It may
read and write tensors at fixed addresses only, and no Python number in it may change between calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten

# Arguments that describe a new tensor; variants that write into existing memory lack them.
_OPTIONS = {"dtype", "layout", "device", "pin_memory"}

# Operations replaced by ``copy_``: their variants that write into existing memory copy twice.
_COPIES = {_aten._to_copy.default, _aten.clone.default}

# Operations without a kernel.
_EMPTY = {_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default, _aten.empty_strided.default}


@dataclass
class _Memory:
    """Memory of one or more tensors.

    Attributes:
        storage: None, until `_Recorder.allocate`, if the function allocated the memory.
        reference: weak reference, which has expired once no tensor uses the memory.
        bytes: size.
        first, last: indices of the first and the last step that use it.
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


@functools.cache
def _out_variant(function: Any) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Return an operation's variant that writes into existing memory (None if it has none), its inputs and outputs."""
    types = {argument.name: str(argument.type) for argument in function._schema.arguments}
    without_options = {name: kind for name, kind in types.items() if name not in _OPTIONS}
    for name in function.overloadpacket.overloads():
        variant = getattr(function.overloadpacket, name)
        inputs = {argument.name: str(argument.type) for argument in variant._schema.arguments if not argument.is_out}
        outputs = tuple(argument.name for argument in variant._schema.arguments if argument.is_out)
        if outputs and inputs in (types, without_options):
            return variant, tuple(inputs), outputs
    return None, (), ()


def _copy_results(function: Callable[..., Any], args: Sequence[Any], kwargs: Any, out: Sequence[Tensor | None]) -> None:
    """Call a function without such a variant, and copy its results."""
    for result, target in zip(_as_list(function(*args, **kwargs)), out, strict=True):
        if target is not None:
            target.copy_(result)


def _as_list(results: Any) -> list[Any]:
    return list(results) if isinstance(results, (tuple, list)) else [results]


class _Recorder(TorchDispatchMode):
    """Records every kernel that is called, as steps that have views in place of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[functools.partial[Any]] = []
        self.memory: dict[int, _Memory] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        if function is _aten._local_scalar_dense.default:
            raise NotImplementedError("a number that Python reads can't be recorded")
        read = {self._use(tensor) for tensor in _tensors((args, kwargs))}
        returned = _tensors(results)
        new = [tensor for tensor in returned if tensor.untyped_storage()._cdata not in read]
        if not function._schema.is_mutable and not new:
            return results  # A view: no kernel.
        args, kwargs = self._views((args, kwargs))
        if function._schema.is_mutable:
            assert not new, f"{function} writes into its arguments and returns new tensors too"
            self.steps.append(functools.partial(function, *args, **kwargs))
            return results
        assert len(new) == len(returned), f"{function} returns new tensors and views of its arguments"
        for tensor in new:
            self._use(tensor, is_new=True)
        self._record_results(function, args, kwargs, self._views(results))
        return results

    def _record_results(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> None:
        """Record a kernel that writes its results into the memory of these views."""
        if function in _EMPTY:
            return
        if function in _COPIES:
            self.steps.append(functools.partial(_aten.copy_.default, results, args[0]))
            return
        views = _as_list(results)
        variant, inputs, outputs = _out_variant(function)
        if len(outputs) != len(views) or any(view is None for view in views):
            self.steps.append(functools.partial(_copy_results, function, args, kwargs, views))
            return
        kwargs = {name: value for name, value in kwargs.items() if name in inputs}
        self.steps.append(functools.partial(variant, *args, **kwargs, **dict(zip(outputs, views, strict=True))))

    def _use(self, tensor: Tensor, *, is_new: bool = False) -> int:
        """Return the key of a tensor's memory, and mark it as used by the next step."""
        storage, step = tensor.untyped_storage(), len(self.steps)
        key: int = storage._cdata
        if is_new or key not in self.memory:
            # The weak reference keeps another storage from getting the same key.
            reference = StorageWeakRef(storage)
            self.memory[key] = _Memory(None if is_new else storage, reference, storage.nbytes(), step, step)
        self.memory[key].last = step
        return key

    def _views(self, tree: Any) -> Any:
        def view(tensor: Tensor) -> _View:
            memory = self.memory[self._use(tensor)]
            return _View(memory, tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())

        return tree_map_only(Tensor, view, tree)

    def allocate(self) -> None:
        """Allocate storage for memory that was freed while recording; memory used by disjoint steps shares one."""
        unallocated = sorted(
            (memory for memory in self.memory.values() if memory.storage is None), key=lambda m: m.first
        )
        free: dict[int, list[torch.UntypedStorage]] = {}
        in_use: list[_Memory] = []
        for memory in unallocated:
            if not memory.reference.expired():
                # A tensor outside still uses it.
                memory.storage = torch.UntypedStorage._new_with_weak_ptr(memory.reference.cdata)
                continue
            for other in [other for other in in_use if other.last < memory.first]:
                in_use.remove(other)
                assert other.storage is not None
                free.setdefault(other.bytes, []).append(other.storage)
            reusable = free.get(memory.bytes)
            memory.storage = reusable.pop() if reusable else torch.UntypedStorage(memory.bytes)
            in_use.append(memory)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _with_tensors(step: functools.partial[Any]) -> Callable[[], Any]:
    args, kwargs = tree_map_only(_View, _View.tensor, (step.args, step.keywords))
    # The C++ function of an operation, without the checks of its Python wrapper.
    return functools.partial(getattr(step.func, "_op", step.func), *args, **kwargs)


class Tape:
    """The recorded kernels of a function."""

    def __init__(self, function: Callable[[], object]) -> None:
        """Run the function once and record it.

        Raises:
            NotImplementedError: the function reads a number back into Python, which can't be recorded.
        """
        with _Recorder() as recorder:
            function()
        recorder.allocate()
        self._calls = [_with_tensors(step) for step in recorder.steps]

    def replay(self) -> None:
        """Run the kernels again."""
        with torch.no_grad():
            for call in self._calls:
                call()
