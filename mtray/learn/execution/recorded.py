"""Updates recorded once and replayed: as CUDA graphs on a GPU, on a tape on the CPU."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from mtray.data.batch import Batch
from mtray.learn.actor_critic import ActorCritic, Gradient, write
from mtray.learn.execution.compiled import Compiled
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


class _Rows:
    """Some of a batch's rows: their memory, and the last gradients over them."""

    def __init__(
        self, algorithm: ActorCritic, batch: Batch, noise: Tensor, ids: Tensor | None, begin: int, end: int
    ) -> None:
        """Keep memory of these rows of such a batch, whose ``noise`` [n, B, act] is filled before each half."""
        own = batch.rows(begin, end)
        self._batch = Batch(own.tasks, *(torch.empty_like(part, device=algorithm.device) for part in own.tensors))
        self._algorithm, self._noise, self._ids = algorithm, noise[:, begin:end], ids
        self._begin, self._end, self._rows = begin, end, batch.reward.shape[1]
        self._observation = self._batch.observation
        self.critic: Gradient
        self.actor: Gradient

    def copy_(self, batch: Batch) -> None:
        self._batch.copy_(batch.rows(self._begin, self._end))

    def _compute_critic(self) -> tuple[Gradient, Tensor]:
        return self._algorithm.critic_gradient(self._batch, self._noise, self._ids, self._rows)

    def _compute_actor(self) -> Gradient:
        # The critic comes first: this reads the observations that it wrote.
        return self._algorithm.actor_gradient(self._observation, self._noise, self._ids, self._rows)

    def differentiate_critic(self) -> None:
        self.critic, self._observation = self._compute_critic()

    def differentiate_actor(self) -> None:
        self.actor = self._compute_actor()

    def compiled(self, generator: torch.Generator) -> tuple[Compiled, Compiled]:
        """Return what differentiates critic and actor, and books it: recorded, and compiled beside it.

        These rows must be all of the batch.
        """
        algorithm, ids = self._algorithm, self._ids

        def critic() -> None:
            self.differentiate_critic()
            write(algorithm.critic_books, algorithm.book_critic(self.critic, ids))

        def actor() -> None:
            self.differentiate_actor()
            write(algorithm.actor_books, algorithm.book_actor(self.actor, ids))

        def compute_critic() -> list[Tensor]:
            gradient, observation = self._compute_critic()
            return [*_parts_of(gradient), observation, *algorithm.book_critic(gradient, ids)]

        def compute_actor() -> list[Tensor]:
            gradient = self._compute_actor()
            return [*_parts_of(gradient), *algorithm.book_actor(gradient, ids)]

        return (
            Compiled(
                "the critic's gradient",
                Recorded(critic, generator),
                compute_critic,
                functools.partial(self._in_float32, compute_critic),
                lambda: [*_parts_of(self.critic), self._observation, *algorithm.critic_books],
            ),
            Compiled(
                "the actor's gradient",
                Recorded(actor, generator),
                compute_actor,
                functools.partial(self._in_float32, compute_actor),
                lambda: [*_parts_of(self.actor), *algorithm.actor_books],
            ),
        )

    def _in_float32(self, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        precision, self._algorithm.precision = self._algorithm.precision, "float32"
        try:
            return compute()
        finally:
            self._algorithm.precision = precision


def _parts_of(gradient: Gradient) -> list[Tensor]:
    return [*gradient.tensors, *gradient.means.values()]


class RecordedUpdates:
    """Updates on batches of one shape over all tasks, each copied to the same memory so that they can be recorded.

    Several threads share out the rows of a batch: within a kernel of this size they would mostly wait for each other.
    """

    def __init__(
        self, algorithm: ActorCritic, batch: Batch, ids: Tensor | None, threads: int, executor: Executor | None
    ) -> None:
        """Allocate memory for batches like this one, of tasks ``ids`` (None: all tasks in order).

        Args:
            algorithm: whose updates to record.
            batch: an example.
            ids: [n] of its tasks; None for all in order.
            threads: that compute, this one included; one on a GPU.
            executor: runs the others; None without any.
        """
        self._algorithm, self._ids, self._executor = algorithm, ids, executor
        rows = batch.reward.shape[1]
        self._noise = torch.empty_like(batch.action, device=algorithm.device)
        bounds = [rows * thread // threads for thread in range(threads + 1)]
        self._parts = [
            _Rows(algorithm, batch, self._noise, ids, begin, end) for begin, end in itertools.pairwise(bounds)
        ]
        self._shape = batch.tasks, batch.reward.shape
        self._compiled: tuple[Compiled, Compiled] | tuple[()] = ()
        if threads == 1 and algorithm.config.compiles_beside(algorithm.device.type):
            self._compiled = self._parts[0].compiled(algorithm.generator)
        if self._compiled:
            critic, actor = self._compiled
            self._critic = self._compiled_stages(critic, self._optimise_critic)
            self._actor = self._compiled_stages(actor, self._optimise_actor)
        else:
            self._critic = self._stages([part.differentiate_critic for part in self._parts], self._step_critic)
            self._actor = self._stages([part.differentiate_actor for part in self._parts], self._step_actor)

    def _compiled_stages(self, gradient: Compiled, optimise: Callable[[], None]) -> list[list[Callable[[], Any]]]:
        """As `_stages`, for a gradient that is booked where it is computed."""
        draw = functools.partial(self._algorithm.draw_, self._noise)
        return [[draw], [gradient], [Recorded(optimise, self._algorithm.generator)]]

    def _stages(
        self, gradients: Sequence[Callable[[], None]], step: Callable[[], None]
    ) -> list[list[Callable[[], Any]]]:
        """Return half an update as functions to be called side by side, one list after another."""
        generator = self._algorithm.generator
        draw = functools.partial(self._algorithm.draw_, self._noise)
        if len(gradients) == 1:

            def half() -> None:
                draw()
                gradients[0]()
                step()

            return [[Recorded(half, generator)]]
        return [[draw], [Recorded(gradient, generator) for gradient in gradients], [Recorded(step, generator)]]

    def fits(self, batch: Batch) -> bool:
        """Return whether a batch has the tasks and the number of rows of the allocated one."""
        return self._shape == (batch.tasks, batch.reward.shape)

    def update(self, batch: Batch, *, with_actor: bool) -> None:
        """Make an update on a copy of the batch."""
        for part in self._parts:
            part.copy_(batch)
        for stage in self._critic + (self._actor if with_actor else []):
            self._call(stage)
        # A replay runs no Python, and an update that was not recorded has replaced the groups' gradients.
        algorithm, first = self._algorithm, self._parts[0]
        algorithm.critic_group.gradients = first.critic.tensors
        if with_actor:
            algorithm.actor_group.gradients = first.actor.tensors

    def _call(self, functions: Sequence[Callable[[], Any]]) -> None:
        others = [self._executor.submit(function) for function in functions[1:]] if self._executor else []
        functions[0]()
        for other in others:
            other.result()

    def finish_compiling(self) -> bool:
        """Compile now if that was asked for, and wait for it; return whether gradients are compiled."""
        for function in self._compiled:
            function.start()
        return bool(self._compiled) and all([function.finish() for function in self._compiled])

    def close(self) -> None:
        """End what compiles."""
        for function in self._compiled:
            function.close()

    def _optimise_critic(self) -> None:
        self._algorithm.optimise_critic(self._parts[0].critic)

    def _optimise_actor(self) -> None:
        self._algorithm.optimise_actor(self._parts[0].actor, self._ids)

    def _step_critic(self) -> None:
        self._algorithm.step_critic([part.critic for part in self._parts], self._ids)

    def _step_actor(self) -> None:
        self._algorithm.step_actor([part.actor for part in self._parts], self._ids)
