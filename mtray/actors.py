"""The Ray actors: shells around the parts, without logic of their own beside the calls between processes.

`Replay` holds the rings, `Collector`s push to it directly, `Learner` samples from it directly; the driver sees
neither. Weights reach a collector as a reference that it resolves only if it is newer and already here.

Each actor imports what it needs when it is built, not with this file: the replay runs without torch, the learner
without TorchRL and the simulators, and a run starts seconds earlier for it.
"""

from __future__ import annotations

import collections
import functools
import os
import pickle
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray

from mtray import shared
from mtray.config import Config
from mtray.errors import NotFiniteError, RunError
from mtray.exchange import Draws, Pusher
from mtray.messages import Push, Receipt, Report, Sampled, TaskStatistics
from mtray.processes import Threads, prepare_updates, start_fork_server, usable_cores
from mtray.replay import Replay as _Replay
from mtray.shared import Address
from mtray.specs import FloatArray, TaskSpec, observation_width
from mtray.tasks import Task, engine_modules

if TYPE_CHECKING:
    from mtray.batches import Batch
    from mtray.collector import Rollout
    from mtray.placement import Share
    from mtray.weights import Weights


class Replay:
    """The replay as an actor: see `mtray.replay.Replay`."""

    def __init__(self, specs: tuple[TaskSpec, ...], config: Config) -> None:
        """Reserve the rings."""
        self._replay = _Replay(specs, config.replay, config.seed)

    def ready(self) -> int:
        """This actor's process id."""
        return os.getpid()

    def insert(self, push: Push) -> Receipt:
        """Store a push once."""
        return self._replay.insert(push)

    def sample_rows(self, rows_per_task: int | Mapping[str, int], batches: int, steps: int = 1) -> Sampled:
        """Draw batches over all tasks."""
        return self._replay.sample_rows(rows_per_task, batches, steps=steps)

    def reaches(self, address: Address) -> bool:
        """Whether rows may come and go in that process's blocks."""
        return shared.reaches(address)

    def insert_near(self, push: bytes) -> bytes:
        """`insert` of rows in a block, both ways pickled by the caller's side: see `mtray.exchange`."""
        return pickle.dumps(self._replay.insert(pickle.loads(push)))

    def sample_near(self, rows_per_task: int | Mapping[str, int], batches: int, steps: int, out: bytes) -> bytes:
        """`sample_rows` into a block."""
        return pickle.dumps(self._replay.sample_rows(rows_per_task, batches, out=pickle.loads(out), steps=steps))

    def pushes_of(self, task: str, rows: FloatArray) -> dict[str, list[int]]:
        """See `mtray.replay.Replay.pushes_of`."""
        return self._replay.pushes_of(task, rows)

    def stats(self) -> dict[str, dict[str, int]]:
        """Frames inserted ever, per task and per source."""
        return {"frames": self._replay.frames(), "sources": self._replay.source_frames()}

    def snapshot(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Everything, as of one moment."""
        return self._replay.state(), {spec.name: self._replay.rows(spec.name) for spec in self._replay.specs}

    def load(self, state: dict[str, Any], rows: dict[str, FloatArray]) -> None:
        """Continue from a snapshot."""
        self._replay.load(state, rows)


class Collector:
    """A collector as an actor: see `mtray.collector.Collector`."""

    def __init__(
        self,
        source: str,
        tasks: Sequence[Task],
        share: Share,
        config: Config,
        seeds: Sequence[int],
        target: Any,
    ) -> None:
        """Start the host.

        Args:
            source: this actor's name in pushes.
            tasks: all of the run.
            share: those to step, and how many copies of each.
            config: the run's.
            seeds: one per task of the run, then one for the actions.
            target: the replay.
        """
        # Nothing is drawn here; without this, importing dm_control looks for a display.
        os.environ.setdefault("MUJOCO_GL", "disabled")
        stepped = [task for task in tasks if task.name in share]
        if config.host == "parallel":
            start_fork_server(engine_modules(stepped))
        import torch

        from mtray import collector
        from mtray.batches import pack
        from mtray.hosts import make_host
        from mtray.makers import make_makers
        from mtray.networks import MultiTaskPolicy

        torch.set_num_threads(1)
        self._pack = pack
        specs = [task.spec for task in tasks]
        self._width = observation_width(specs)
        own_seeds = [seed for task, seed in zip(tasks, seeds, strict=False) if task.name in share]
        copies = [share[task.name] for task in stepped]
        self._host = make_host(config.host, make_makers(stepped, copies, own_seeds, self._width))
        policy = MultiTaskPolicy(specs, config.network, action_noise=config.learner.policy_noise).requires_grad_(False)
        self._collector = collector.Collector(
            self._host,
            policy,
            rollout_steps=config.collector.rollout_steps,
            discounts={spec.name: spec.discount for spec in specs},
            noise_steps=config.collector.noise_steps,
            random_share=config.collector.random_episodes,
            random_steps=config.collector.random_steps,
            seed=seeds[-1],
        )
        limits = config.collector
        # An episode may end with every step. Memory that is not written is not taken.
        words = sum(2 * limits.rollout_steps * share[task.name] * task.spec.row_size for task in stepped)
        clock = self._collector.clock
        self._pusher = Pusher(target, source, limits.pushes_in_flight, limits.push_timeout_seconds, words, clock)
        self._rollout: Rollout | None = None

    def ready(self) -> int:
        """This actor's process id."""
        return os.getpid()

    def act(self, version: int, box: list[Any], wait: bool = False) -> Report:
        """Step one rollout, with the boxed weights if they are newer and here (or, if told to wait, once they are)."""
        clock = self._collector.clock
        clock.lap("idle")
        if box and version > self._collector.weights_version and (wait or ray.wait(box, timeout=0)[0]):
            weights: Weights = ray.get(box[0])
            self._collector.load(weights)
        self._rollout = self._collector.collect()
        return Report(
            episodes=self._rollout.episodes, weights_version=self._rollout.weights_version, seconds=clock.take()
        )

    def push(self, wait: bool = True) -> None:
        """Send the rollout stepped last to the replay, and wait for the receipt if told to."""
        assert self._rollout is not None
        self._collector.clock.lap("idle")
        lent = self._pusher.lend()
        rows, statistics = {}, {}
        for spec, data in zip(self._host.specs, self._rollout.data.tensordicts, strict=True):
            empty = None if lent is None else functools.partial(lent.add, spec.name)
            rows[spec.name] = self._pack(data, spec, self._width, empty)
            statistics[spec.name] = TaskStatistics.of(rows[spec.name], spec.observation_size)
        largest_returns, version = self._rollout.largest_returns, self._rollout.weights_version
        self._pusher.push(rows if lent is None else lent, statistics, largest_returns, version)
        if wait:
            self._pusher.wait()

    def collect(self, version: int, box: list[Any]) -> Report:
        """Step one rollout and send it; its receipt is waited for while the next is stepped."""
        report = self.act(version, box)
        self.push(wait=False)
        return report

    def flush(self) -> None:
        """Wait for every receipt."""
        self._collector.clock.lap("idle")
        self._pusher.wait()

    def close(self) -> None:
        """End the host's processes."""
        self._host.close()


class Learner:
    """The learner as an actor: see `mtray.learner.Learner`."""

    def __init__(self, specs: tuple[TaskSpec, ...], config: Config, source: Any) -> None:
        """Build networks and optimisers.

        Args:
            specs: of all tasks.
            config: the run's.
            source: the replay.
        """
        import torch

        from mtray import checkpoint, learner
        from mtray.batches import unpack

        prepare_updates()
        # How many threads there are decides how sums are rounded. More than two were not measured.
        counts = [1] if config.deterministic or config.device != "cpu" else range(1, min(2, usable_cores()) + 1)
        self._threads = Threads([config.learner.threads] if config.learner.threads else counts, torch.set_num_threads)
        self._checkpoint, self._unpack = checkpoint, unpack
        self._specs, self._source = specs, source
        self._deterministic = config.deterministic
        self._learner = learner.Learner(specs, config.network, config.learner, device=config.device, seed=config.seed)
        settings = config.learner
        rows_per_task = settings.rows_of([spec.name for spec in specs])
        self._draws = Draws(
            source, specs, rows_per_task, settings.batches_per_call, settings.calls_ahead, settings.n_step
        )
        # Each as it was drawn, and where the learner computes.
        self._batches: collections.deque[tuple[Batch, Batch]] = collections.deque()
        # Updates made before, and the batch: of all updates that an error may still tell of.
        self._used: collections.deque[tuple[int, Batch]] = collections.deque(maxlen=self._learner.algorithm.look_every)
        self._wait_seconds = 0.0
        self._ages: Mapping[str, float] = {}

    def ready(self) -> int:
        """This actor's process id."""
        return os.getpid()

    def train(self, updates: int, seconds: float) -> tuple[dict[str, Any], Weights]:
        """Make updates, at most so many and about so long; give figures and new weights, as two return values."""
        deadline = time.monotonic() + seconds
        made = 0
        try:
            while made < updates and (made == 0 or time.monotonic() < deadline):
                batch, near = self._next()
                self._used.append((self._learner.updates, batch))
                started = time.perf_counter()
                self._learner.update(near)
                self._threads.spent(time.perf_counter() - started)
                made += 1
            weights = self._learner.weights()
        except NotFiniteError as error:
            raise RunError(f"{error}; {self._origin(error)}") from None
        if self._deterministic:
            # Draws that are under way are made before the next push, whatever the scheduler does.
            self._draws.settle()
        figures = {
            "updates": self._learner.updates,
            "made": made,
            "version": weights.version,
            "wait_seconds": self._wait_seconds,
            "tasks": {
                task: {**values, "data_age": self._ages[task]} for task, values in self._learner.metrics().items()
            },
        }
        return figures, weights

    def _origin(self, error: NotFiniteError) -> str:
        """Which pushes the rows of an update that failed came with."""
        batch = dict(self._used)[error.update]
        parts = []
        for spec in self._specs:
            if spec.name in error.tasks:
                found = ray.get(self._source.pushes_of.remote(spec.name, batch.rows(spec.name, spec)))
                pushes = [f"{source} {', '.join(map(str, numbers))}" for source, numbers in found.items()]
                parts.append(f"{spec.name}: {'; '.join(pushes) or 'loaded with the checkpoint'}")
        return f"its batch's rows came with these pushes: {' | '.join(parts)}"

    def _next(self) -> tuple[Batch, Batch]:
        if not self._batches:
            started = time.monotonic()
            sampled = self._draws.next()
            self._wait_seconds += time.monotonic() - started
            self._ages = sampled.ages
            # A GPU goes on with earlier updates while these are unpacked; statistics are taken over once it has ended.
            batches = self._unpack(sampled.rows, self._specs)
            near = batches.to(self._learner.device)
            self._learner.set_statistics(sampled.statistics)
            self._batches.extend(zip(batches.unbind(), near.unbind(), strict=True))
        return self._batches.popleft()

    def weights(self) -> Weights:
        """A snapshot under a new version."""
        return self._learner.weights()

    def state(self) -> tuple[bytes, bytes]:
        """The averaged policy's state and the whole learner's, as bytes."""
        state = self._learner.state_dict()
        to_bytes = self._checkpoint.to_bytes
        return to_bytes(state["average"]), to_bytes(state)

    def load_state(self, data: bytes) -> int:
        """Continue from the learner's state; give the updates made."""
        self._learner.load_state_dict(self._checkpoint.from_bytes(data))
        return self._learner.updates
