"""How an update runs without anybody waiting for it: recorded, its failures noted where it runs.

On a GPU it is recorded as CUDA graphs, on the CPU on a tape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mtray.learn.tape import Tape

# Calls of a function on a GPU before it is recorded.
_WARM_CALLS = 3


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Have a GPU's float32 products made by its tensor cores where tfloat32 is asked for; afterwards as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tfloat32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def wake_backward(device: torch.device) -> None:
    """Let the thread that goes back through networks on a GPU meet it; cuBLAS warns of a thread that has not."""
    start = torch.zeros((), device=device, requires_grad=True)
    torch.autograd.grad(start.exp(), start)


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
        # Of each kind the tasks' numbers and their total, as they were when the first was not finite.
        self._seen = torch.zeros(kinds, tasks + 1, device=device)

    def note(self, kind: int, total: Tensor, values: Tensor) -> None:
        """Note the tasks' ``values`` [T] if ``total`` [] is not finite and nothing is noted yet."""
        seen = self._seen[kind]
        torch.where(self.stop == 0, torch.cat([values, total.view(1)]), seen, out=seen)
        # What is not finite less itself is no number.
        self.stop.copy_(torch.maximum(self.stop, (total - total) != 0))

    def take(self) -> tuple[int, list[bool]] | None:
        """The first failure's kind and, per task, whether it failed; forgets it. None if all was finite."""
        if not self.stop.item():
            return None
        bad = ~self._seen.isfinite()
        kind = int(bad[:, -1].int().argmax())
        failed: list[bool] = bad[kind, :-1].tolist()
        self._seen.zero_()
        self.stop.zero_()
        return kind, failed if any(failed) else [True] * len(failed)


class Recorded:
    """A function without arguments that only reads and writes tensors which stay where they are.

    On a GPU it is called a few times, then recorded as a CUDA graph and replayed; on the CPU it is recorded as it is
    called first.
    """

    def __init__(self, function: Callable[[], None], generator: torch.Generator) -> None:
        """Of a function that draws from this generator, on its device."""
        self._function, self._generator = function, generator
        self._calls = 0
        self._recording: torch.cuda.CUDAGraph | Tape | None = None

    def __call__(self) -> None:
        """Call or replay."""
        if self._recording is not None:
            self._recording.replay()
            return
        device = self._generator.device
        if device.type != "cuda":
            self._recording = Tape(self._function)
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
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph):
            self._function()
        self._recording = graph
        graph.replay()
