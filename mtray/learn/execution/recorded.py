"""Updates recorded once and replayed: as CUDA graphs on a GPU, on a tape on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtray.data.batch import Batch
from mtray.learn.actor_critic import ActorCritic
from mtray.learn.execution.tape import Tape

# Calls of a function on a GPU before it is recorded.
_WARM_CALLS = 3


class Recorded:
    """A function without arguments that only reads and writes tensors at fixed addresses.

    On a GPU the first calls run it, the next records a CUDA graph, and later calls replay it. On the CPU the first call
    records a tape.
    """

    def __init__(self, function: Callable[[], None], generator: torch.Generator) -> None:
        """Prepare to record a function that draws its random numbers from this generator, on its device."""
        self._function, self._generator = function, generator
        self._calls = 0
        self._recording: torch.cuda.CUDAGraph | Tape | None = None

    def __call__(self) -> None:
        """Run, record or replay the function."""
        if self._recording is not None:
            self._recording.replay()
            return
        device = self._generator.device
        if device.type != "cuda":
            self._recording = Tape(self._function)
            return
        self._calls += 1
        if self._calls <= _WARM_CALLS:
            # In their first calls libraries allocate workspaces, on a side stream, as a recording uses.
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

    def __init__(self, algorithm: ActorCritic, batch: Batch, ids: Tensor | None) -> None:
        """Allocate memory for batches like this one, of tasks ``ids`` (None: all tasks in order)."""
        self._algorithm, self._ids = algorithm, ids
        self._batch = Batch(batch.tasks, *(torch.empty_like(part, device=algorithm.device) for part in batch.tensors))
        self._observation = self._batch.observation
        self._critic_gradients: list[Tensor] = []
        self._actor_gradients: list[Tensor] = []
        self._critic = Recorded(self._update_critic, algorithm.generator)
        self._actor = Recorded(self._update_actor, algorithm.generator)

    def fits(self, batch: Batch) -> bool:
        """Return whether a batch has the tasks and the number of rows of the allocated one."""
        return self._batch.tasks == batch.tasks and self._batch.reward.shape == batch.reward.shape

    def update(self, batch: Batch, *, with_actor: bool) -> None:
        """Make an update on a copy of the batch."""
        self._batch.copy_(batch)
        # The critic comes first: the actor's recording reads the observations that the critic's writes.
        self._critic()
        # A replay runs no Python, and an update that was not recorded has replaced the groups' gradients.
        self._algorithm.critic_group.gradients = self._critic_gradients
        if with_actor:
            self._actor()
            self._algorithm.actor_group.gradients = self._actor_gradients

    def _update_critic(self) -> None:
        self._observation = self._algorithm.update_critic(self._batch, self._ids)
        self._critic_gradients = self._algorithm.critic_group.gradients

    def _update_actor(self) -> None:
        self._algorithm.update_actor(self._observation, self._ids)
        self._actor_gradients = self._algorithm.actor_group.gradients
