"""Updates recorded once and replayed: as CUDA graphs on a GPU, on a tape on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mtray.config.settings import LearnerConfig
from mtray.data.batch import Batch
from mtray.learn.execution.parameters import ParameterGroup
from mtray.learn.execution.tape import Tape

# Calls of a function on a GPU before it is recorded.
_WARM_CALLS = 3


def records_updates(config: LearnerConfig, device: str) -> bool:
    """Return whether updates on this device are recorded; by default wherever they can be."""
    return config.can_record(device) if config.graphs is None else config.graphs


def precision_of(config: LearnerConfig, device: str) -> str:
    """Return what matrix products are computed in on this device: float32, tfloat32 or bfloat16."""
    return config.precision or ("tfloat32" if device.startswith("cuda") else "float32")


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Compute float32 products on a GPU's tensor cores if the precision is tfloat32; restore the setting afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tfloat32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def warm_up_autograd_thread(device: torch.device) -> None:
    """Run a backward pass on a GPU, so that autograd's thread has a CUDA context: cuBLAS warns of one without."""
    start = torch.zeros((), device=device, requires_grad=True)
    torch.autograd.grad(start.exp(), start)


class Recorded:
    """A function without arguments that only reads and writes tensors at fixed addresses.

    On a GPU it is called a few times, then recorded as a CUDA graph and replayed; on the CPU its first call is
    recorded.
    """

    def __init__(self, function: Callable[[], None], generator: torch.Generator) -> None:
        """Take a function that draws from this generator, on its device."""
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
            # Libraries allocate their workspaces at the first calls, on a side stream as recording will use.
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


class RecordedUpdates:
    """Updates on batches of one shape over all tasks, each copied to the same memory so that they can be recorded."""

    def __init__(
        self,
        batch: Batch,
        generator: torch.Generator,
        update_critic: Callable[[Batch], Tensor],
        update_actor: Callable[[Tensor], None],
        groups: Sequence[ParameterGroup],
    ) -> None:
        """Reserve memory for a batch of this shape.

        Args:
            batch: of the shape.
            generator: which both functions draw from.
            update_critic: moves the critic on a batch; returns the normalised observations.
            update_actor: moves the actor on those.
            groups: the critic's and the actor's.
        """
        self._batch = Batch(batch.tasks, *(torch.empty_like(part, device=generator.device) for part in batch.tensors))
        self._observation = self._batch.observation
        self._functions = update_critic, update_actor
        self._critic_group, self._actor_group = groups
        self._critic_gradients: list[Tensor] = []
        self._actor_gradients: list[Tensor] = []
        self._critic = Recorded(self._update_critic, generator)
        self._actor = Recorded(self._update_actor, generator)

    def fits(self, batch: Batch) -> bool:
        """Return whether a batch has the tasks and rows that were reserved."""
        return self._batch.tasks == batch.tasks and self._batch.reward.shape == batch.reward.shape

    def update(self, batch: Batch, *, with_actor: bool) -> None:
        """Make an update on a copy of the batch."""
        self._batch.copy_(batch)
        # The critic always comes first: when the actor's part is recorded, it reads what the critic's writes.
        self._critic()
        # A replay runs no Python, and updates that are not recorded have left other gradients there.
        self._critic_group.gradients = self._critic_gradients
        if with_actor:
            self._actor()
            self._actor_group.gradients = self._actor_gradients

    def _update_critic(self) -> None:
        self._observation = self._functions[0](self._batch)
        self._critic_gradients = self._critic_group.gradients

    def _update_actor(self) -> None:
        self._functions[1](self._observation)
        self._actor_gradients = self._actor_group.gradients
