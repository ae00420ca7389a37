"""How an update runs on a GPU without anybody waiting for it: recorded as CUDA graphs, its failures noted there.

On the CPU, where looking costs nothing and nothing is launched, the same classes look at once and call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Calls of a function on a GPU before it is recorded.
_WARM_CALLS = 3


class Watch:
    """What of an update was not finite, noted on its device.

    Attributes:
        late: whether the notes are looked at later than they are made.
        stop: [] float32, 1 from the first note on. To fused optimisers it is ``found_inf``: while it is 1 their steps
            leave everything as it is.
        updates: [] int64, how many were made before the first note.
    """

    def __init__(self, kinds: int, tasks: int, device: torch.device, *, late: bool) -> None:
        """Note for each of so many kinds of failure and tasks."""
        self.late = late
        self.stop = torch.zeros((), device=device)
        self.updates = torch.zeros((), device=device, dtype=torch.int64)
        self._failed = torch.zeros(kinds, tasks, device=device, dtype=torch.bool)

    def note(self, kind: int, total: Tensor, failed: Tensor) -> None:
        """Note the tasks that ``failed`` [T] bool if ``total`` [] is not finite and nothing is noted yet."""
        first = ~total.isfinite() & (self.stop == 0)
        self._failed[kind] |= failed & first
        self.stop.copy_(torch.maximum(self.stop, first))

    def take(self) -> tuple[int, list[bool]] | None:
        """The first failure's kind and, per task, whether it failed; forgets it. None if all was finite."""
        if not self.stop.item():
            return None
        kind = int(self._failed.any(1).int().argmax())
        failed: list[bool] = self._failed[kind].tolist()
        self._failed.zero_()
        self.stop.zero_()
        return kind, failed


class Recorded:
    """A function without arguments that only reads and writes tensors which stay where they are.

    On a GPU it is called a few times, then recorded as a CUDA graph and replayed; elsewhere it is called.
    """

    def __init__(self, function: Callable[[], None], generator: torch.Generator) -> None:
        """Of a function that draws from this generator, on its device."""
        self._function, self._generator = function, generator
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Call or replay."""
        device = self._generator.device
        if device.type != "cuda":
            self._function()
            return
        self._calls += 1
        if self._calls <= _WARM_CALLS:
            # What allocates once (optimisers' state, libraries' workspaces) does so here, on a stream beside the
            # default one, as recording will.
            stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._function()
            current.wait_stream(stream)
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self._generator)
            with torch.cuda.graph(graph):
                self._function()
            self._graph = graph
        self._graph.replay()
