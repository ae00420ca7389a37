"""The Ray actors: shells around the parts, without logic of their own beside the calls between processes.

`Replay` holds the rings, `Collector`s push to it directly, `Learner` samples from it directly; the driver sees
neither. Weights reach a collector as a reference that it resolves only if it is newer and already here.

Each actor imports what it needs when it is built, not with this file: the replay runs without torch, the learner
without TorchRL and the simulators, and a run starts seconds earlier for it.
"""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from mtray.config import Config
from mtray.errors import RunError
from mtray.messages import Push, Receipt, Report, Sampled
from mtray.processes import start_fork_server
from mtray.replay import Replay as _Replay
from mtray.specs import FloatArray, TaskSpec, observation_width
from mtray.tasks import Task, engine_modules

if TYPE_CHECKING:
    from mtray.collector import Rollout
    from mtray.metrics import Clock
    from mtray.placement import Share
    from mtray.weights import Weights

# How often a push is sent before the replay counts as lost.
_PUSH_ATTEMPTS = 5


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

    def sample_rows(self, rows_per_task: int, batches: int) -> Sampled:
        """Draw batches over all tasks."""
        return self._replay.sample_rows(rows_per_task, batches)

    def stats(self) -> dict[str, dict[str, int]]:
        """Frames inserted ever, per task and per source."""
        return {"frames": self._replay.frames(), "sources": self._replay.source_frames()}

    def snapshot(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """Everything, as of one moment."""
        return self._replay.state(), {spec.name: self._replay.rows(spec.name) for spec in self._replay.specs}

    def load(self, state: dict[str, Any], rows: dict[str, FloatArray]) -> None:
        """Continue from a snapshot."""
        self._replay.load(state, rows)


class _Pusher:
    """Pushes under way, a bounded number; one that is not answered is sent again under its id."""

    def __init__(self, target: Any, source: str, limit: int, timeout_seconds: float, clock: Clock) -> None:
        self._target = target
        self._source = source
        self._limit = limit
        self._timeout = timeout_seconds
        self._clock = clock
        self._number = 0
        self._pending: collections.deque[tuple[Push, Any]] = collections.deque()

    def push(self, rows: dict[str, FloatArray], largest_returns: Any, weights_version: int) -> None:
        self.wait(self._limit - 1)
        push = Push(
            source=self._source,
            number=self._number,
            rows=rows,
            largest_returns=largest_returns,
            weights_version=weights_version,
        )
        self._number += 1
        self._pending.append((push, self._target.insert.remote(push)))

    def wait(self, left: int = 0) -> None:
        """Wait until at most ``left`` pushes are unanswered."""
        self._clock.lap("push")
        while len(self._pending) > left:
            push, answer = self._pending[0]
            for _ in range(_PUSH_ATTEMPTS):
                try:
                    ray.get(answer, timeout=self._timeout)
                    break
                except (ActorUnavailableError, GetTimeoutError):
                    # It may have been stored or not: the replay tells by the push's id.
                    answer = self._target.insert.remote(push)
            else:
                raise RunError(f"push {push.number} of {push.source} was not answered in {_PUSH_ATTEMPTS} attempts")
            self._pending.popleft()
        self._clock.lap("receipt")


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
        from mtray.learner import discount_of
        from mtray.makers import make_makers
        from mtray.networks import MultiTaskPolicy

        torch.set_num_threads(1)
        self._pack = pack
        specs = [task.spec for task in tasks]
        self._width = observation_width(specs)
        own_seeds = [seed for task, seed in zip(tasks, seeds, strict=False) if task.name in share]
        copies = [share[task.name] for task in stepped]
        self._host = make_host(config.host, make_makers(stepped, copies, own_seeds, self._width))
        policy = MultiTaskPolicy(specs, config.network).requires_grad_(False)
        self._collector = collector.Collector(
            self._host,
            policy,
            rollout_steps=config.collector.rollout_steps,
            discounts={spec.name: discount_of(spec) for spec in specs},
            seed=seeds[-1],
        )
        limits = config.collector
        clock = self._collector.clock
        self._pusher = _Pusher(target, source, limits.pushes_in_flight, limits.push_timeout_seconds, clock)
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
        rows = {
            spec.name: self._pack(data, spec, self._width)
            for spec, data in zip(self._host.specs, self._rollout.data.tensordicts, strict=True)
        }
        self._pusher.push(rows, self._rollout.largest_returns, self._rollout.weights_version)
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
        from mtray.batches import unpack_batches

        torch.set_num_threads(config.learner.threads)
        self._checkpoint, self._unpack = checkpoint, unpack_batches
        self._specs = specs
        self._config = config.learner
        self._deterministic = config.deterministic
        self._learner = learner.Learner(specs, config.network, config.learner, device=config.device, seed=config.seed)
        self._source = source
        self._rows_per_task = max(1, config.learner.batch_rows // len(specs))
        self._calls: collections.deque[Any] = collections.deque()
        self._batches: collections.deque[Any] = collections.deque()
        self._wait_seconds = 0.0

    def ready(self) -> int:
        """This actor's process id."""
        return os.getpid()

    def train(self, updates: int, seconds: float) -> tuple[dict[str, Any], Weights]:
        """Make updates, at most so many and about so long; give figures and new weights, as two return values."""
        deadline = time.monotonic() + seconds
        made = 0
        while made < updates and (made == 0 or time.monotonic() < deadline):
            self._learner.update(self._next())
            made += 1
        if self._deterministic and self._calls:
            # Draws that are under way are made before the next push, whatever the scheduler does.
            ray.wait(list(self._calls), num_returns=len(self._calls))
        weights = self._learner.weights()
        figures = {
            "updates": self._learner.updates,
            "made": made,
            "version": weights.version,
            "wait_seconds": self._wait_seconds,
            "tasks": self._learner.metrics(),
        }
        return figures, weights

    def _next(self) -> Any:
        if not self._batches:
            self._ask()
            started = time.monotonic()
            sampled: Sampled = ray.get(self._calls.popleft())
            self._wait_seconds += time.monotonic() - started
            self._ask()
            self._learner.set_statistics(sampled.statistics)
            self._batches.extend(self._unpack(sampled.rows, self._specs))
        return self._batches.popleft()

    def _ask(self) -> None:
        while len(self._calls) < self._config.calls_ahead:
            self._calls.append(self._source.sample_rows.remote(self._rows_per_task, self._config.batches_per_call))

    def weights(self) -> Weights:
        """A snapshot under a new version."""
        return self._learner.weights()

    def state(self) -> tuple[bytes, bytes]:
        """The policy's state and the whole learner's, as bytes."""
        state = self._learner.state_dict()
        to_bytes = self._checkpoint.to_bytes
        return to_bytes(state["policy"]), to_bytes(state)

    def load_state(self, data: bytes) -> int:
        """Continue from the learner's state; give the updates made."""
        self._learner.load_state_dict(self._checkpoint.from_bytes(data))
        return self._learner.updates
