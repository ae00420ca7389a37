"""Recorded CPU kernels of a function, replayed like a CUDA graph on a GPU.

Most kernels of an update of small networks take less time than the Python and autograd code around them. The function
runs once, and every kernel is recorded with the memory that it reads and writes. A replay calls the kernels in order
with the same memory, without creating views, autograd graphs or tensors. The results are equal bit for bit.

TorchScript's interpreter makes the calls, because it needs no lock of Python's: threads can replay side by side.

Only operations that torch dispatches are recorded: the function may use no other library and no compiled code. It may
read and write tensors at fixed addresses only, and no Python number in it may change between calls.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
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


@dataclass(eq=False)
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


@dataclass(frozen=True)
class _Step:
    """A call of an operation, with views in place of tensors.

    Attributes:
        function: the operation.
        args, kwargs: its arguments.
        into: views that its results are copied into, if it can't write there itself; none otherwise.
    """

    function: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    into: Sequence[Any] = ()


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


def _as_list(results: Any) -> list[Any]:
    return list(results) if isinstance(results, (tuple, list)) else [results]


class _Recorder(TorchDispatchMode):
    """Records every kernel that is called, as steps that have views in place of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
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
            self.steps.append(_Step(function, args, kwargs))
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
            self.steps.append(_Step(_aten.copy_.default, (results, args[0]), {}))
            return
        views = _as_list(results)
        variant, inputs, outputs = _out_variant(function)
        if len(outputs) != len(views) or any(view is None for view in views):
            self.steps.append(_Step(function, args, kwargs, views))
            return
        kwargs = {name: value for name, value in kwargs.items() if name in inputs}
        self.steps.append(_Step(variant, args, {**kwargs, **dict(zip(outputs, views, strict=True))}))

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


class _Script:
    """A TorchScript function of one argument, the list of all tensors that its calls read and write."""

    def __init__(self) -> None:
        self._graph: Any = torch._C.Graph()
        self._tensors: list[Tensor] = []
        self._numbers: dict[_View, int] = {}
        self._calls: list[tuple[Any, list[Any], Sequence[Any]]] = []

    def add(self, step: _Step) -> None:
        """Call an operation after those before."""
        arguments = step.function._schema.arguments
        given = {**dict(zip([argument.name for argument in arguments], step.args, strict=False)), **step.kwargs}
        values = [given.get(argument.name, argument.default_value) for argument in arguments]
        for view in tree_leaves((values, list(step.into))):
            if isinstance(view, _View) and view not in self._numbers:
                self._numbers[view] = len(self._tensors)
                self._tensors.append(view.tensor())
        self._calls.append((step.function, values, step.into))

    def compiled(self) -> Callable[[], Any]:
        """Return a function that makes the calls."""
        graph, tensors = self._graph, self._graph.addInput()
        tensors.setType(torch._C.ListType.ofTensors())
        self._unpacked = list(
            self._node("prim::ListUnpack", [tensors], [torch._C.TensorType.get()] * len(self._tensors))
        )
        for function, values, into in self._calls:
            schema = function._schema
            inputs = [
                self._value(value, argument.type) for value, argument in zip(values, schema.arguments, strict=True)
            ]
            results = self._node(schema.name, inputs, [result.type for result in schema.returns])
            for result, view in zip(results, into, strict=False):
                if view is not None:
                    self._node("aten::copy_", [self._value(view), result, graph.insertConstant(False)], [result.type()])
        graph.registerOutput(graph.insertConstant(None))
        script = torch._C._create_function_from_graph("replay", graph)
        return functools.partial(script, self._tensors)

    def _node(self, kind: str, inputs: Sequence[Any], types: Sequence[Any]) -> Any:
        node = self._graph.insertNode(self._graph.create(kind, list(inputs), len(types)))
        outputs = list(node.outputs())
        for output, kind_of_output in zip(outputs, types, strict=True):
            output.setType(kind_of_output)
        return outputs

    def _value(self, value: Any, kind: Any = None) -> Any:
        if isinstance(value, _View):
            return self._unpacked[self._numbers[value]]
        is_list = isinstance(value, (list, tuple))
        if is_list and (not value or isinstance(value[0], _View)):
            [made] = self._node("prim::ListConstruct", [self._value(item) for item in value], [kind])
            return made
        return self._graph.insertConstant(list(value) if is_list else value)


def _is_scripted(step: _Step) -> bool:
    """Return whether TorchScript can make a call: it takes no generators and no memory formats, for example."""
    leaves = tree_leaves((step.args, step.kwargs))
    return all(value is None or isinstance(value, (_View, bool, int, float)) for value in leaves)


def _call_of(step: _Step) -> Callable[[], Any]:
    """Return a call from Python."""
    args, kwargs, into = tree_map_only(_View, _View.tensor, (step.args, step.kwargs, step.into))
    if into:
        return functools.partial(_copy_results, step.function, args, kwargs, into)
    return functools.partial(step.function, *args, **kwargs)


def _copy_results(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Any, into: Sequence[Tensor | None]
) -> None:
    for result, target in zip(_as_list(function(*args, **kwargs)), into, strict=True):
        if target is not None:
            target.copy_(result)


def _compiled(steps: Sequence[_Step]) -> Iterator[Callable[[], Any]]:
    """Yield functions that make the calls one after another."""
    for is_scripted, group in itertools.groupby(steps, _is_scripted):
        if is_scripted:
            script = _Script()
            for step in group:
                script.add(step)
            yield script.compiled()
        else:
            yield from map(_call_of, group)


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
        self._calls = list(_compiled(recorder.steps))

    def replay(self) -> None:
        """Run the kernels again."""
        # As recorded, without TorchScript's own changes.
        with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            for call in self._calls:
                call()
