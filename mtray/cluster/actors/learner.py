"""The learner as a Ray actor."""

from __future__ import annotations

import collections
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
import ray._private.worker

from mtray.cluster.actors.draws import Draws
from mtray.cluster.actors.hello import Hello, say_hello
from mtray.config.settings import Config
from mtray.config.task_weights import rows_per_task
from mtray.data.specs import TaskSpec
from mtray.learn.execution.threads import Threads, prepare_updates
from mtray.tasks.processes import usable_cores

if TYPE_CHECKING:
    from mtray.data.batch import Batch
    from mtray.learn.trainer import Trainer
    from mtray.policy.layout import Weights


class LearnerState(NamedTuple):
    """What a run goes on from, and what it evaluates.

    Attributes:
        policy: state of the averaged policy, as bytes.
        whole: the whole state of training, as bytes.
        updates: made; -1 before there is a state.
        average: the averaged policy's weights, for processes without torch; None of a state read from a checkpoint.
    """

    policy: bytes = b""
    whole: bytes = b""
    updates: int = -1
    average: Weights | None = None


class Learner:
    """The learner as an actor: see `mtray.learn.trainer.Trainer`."""

    def __init__(self, specs: tuple[TaskSpec, ...], config: Config, source: Any) -> None:
        """Take what `build` needs.

        Args:
            specs: of all tasks.
            config: the run's.
            source: the replay.
        """
        self._arguments = specs, config, source
        self._learner: Trainer | None = None

    def hello(self, logs: Path, name: str) -> Hello:
        """Keep what this actor prints in a file of ``logs``; return where it is."""
        return say_hello(logs, name)

    def build(self, state: bytes | None = None, after_version: int = 0) -> tuple[dict[str, Any], Weights]:
        """Build networks and optimisers, once, or continue from a state; return as `train` does.

        Args:
            state: of an earlier process.
            after_version: the weights' versions are higher; collectors have seen those up to it.
        """
        if self._learner is None:
            self._learner = self._make()
            if state is not None:
                self._learner.load_state_dict(self._checkpoint.from_bytes(state))
            self._learner.version = max(self._learner.version, after_version)
        return self.train(0, 0.0)

    def cut(self) -> tuple[dict[str, Any], Weights]:
        """Drop what was drawn ahead, as a new learner of a resumed run has drawn nothing; return as `train` does."""
        self._batches.clear()
        self._draws.drop()
        return self.train(0, 0.0)

    def connect(self, replay: Any) -> tuple[dict[str, Any], Weights]:
        """Draw from another process of the replay from now on; return as `train` does."""
        self._draws.connect(replay)
        return self.train(0, 0.0)

    def _make(self) -> Trainer:
        specs, config, source = self._arguments
        from mtray.data.batch import unpack
        from mtray.learn.execution import products
        from mtray.learn.trainer import Trainer
        from mtray.rundir.checkpoints import checkpoint

        prepare_updates()
        # Goes with old sessions: a learner that is killed leaves what it was compiling.
        node: Any = ray._private.worker._global_node
        tempfile.tempdir = node.get_session_dir_path()
        self._checkpoint, self._unpack = checkpoint, unpack
        self._specs = specs
        self._deterministic = config.deterministic
        learner = Trainer(specs, config.network, config.learner, device=config.device, seed=config.seed)
        settings = config.learner
        # How sums are rounded depends on the library and on the number of threads.
        assert settings.batch_rows is not None
        # Once oneDNN is chosen, torch refuses to say its older setting, which compilers in this process may ask for.
        is_compiled_here = settings.compiler is not None and not settings.compiles_beside("cpu")
        if config.device == "cpu" and not config.deterministic and not is_compiled_here:
            products.use(products.fastest(settings.batch_rows, config.network.sizes.critic_width))
        if config.device == "cpu":
            print(f"float32 matrix products by {products.library().name}", flush=True)
        cores = 1 if config.deterministic or config.device != "cpu" else usable_cores()
        counts = [settings.threads] if settings.threads else [count for count in (1, 2, 4) if count <= cores]
        self._threads = Threads(counts, learner.set_threads)
        rows = rows_per_task(settings, [spec.name for spec in specs])
        assert settings.n_step is not None
        self._draws = Draws(source, specs, rows, settings.batches_per_call, settings.calls_ahead, settings.n_step)
        self._batches: collections.deque[Batch] = collections.deque()
        self._wait_seconds = 0.0
        self._ages: Mapping[str, float] = {}
        return learner

    def train(self, updates: int, seconds: float) -> tuple[dict[str, Any], Weights]:
        """Make up to ``updates`` in about ``seconds``, one at least; return figures and new weights, as two values.

        Raises:
            NotFiniteError: as `mtray.learn.trainer.Trainer.update` does.
            UnreachableError: the replay is gone or can't be reached.
        """
        learner = self._built
        deadline = time.monotonic() + seconds
        made = 0
        while made < updates and (made == 0 or time.monotonic() < deadline):
            batch = self._next()
            started = time.perf_counter()
            learner.update(batch)
            self._threads.add(time.perf_counter() - started)
            made += 1
        weights = learner.weights()
        if self._deterministic:
            # Draws in flight are made before the next push, in whatever order Ray schedules calls.
            self._draws.settle()
        figures = {
            "updates": learner.updates,
            "made": made,
            "version": weights.version,
            "wait_seconds": self._wait_seconds,
            "tasks": {
                task: values | ({"data_age": self._ages[task]} if task in self._ages else {})
                for task, values in learner.metrics().items()
            },
        }
        return figures, weights

    def _next(self) -> Batch:
        if not self._batches:
            started = time.monotonic()
            sampled = self._draws.next()
            self._wait_seconds += time.monotonic() - started
            self._ages = sampled.ages
            # A GPU goes on with earlier updates while these are unpacked; statistics are taken over once it has ended.
            batches = self._unpack(sampled.rows, self._specs).to(self._built.device)
            self._built.set_statistics(sampled.statistics)
            self._batches.extend(batches.unbind())
        return self._batches.popleft()

    @property
    def _built(self) -> Trainer:
        assert self._learner is not None, "build first"
        return self._learner

    def state(self) -> LearnerState:
        """Return what a checkpoint holds of the learner."""
        learner, to_bytes = self._built, self._checkpoint.to_bytes
        state = learner.state_dict()
        return LearnerState(to_bytes(state["average"]), to_bytes(state), learner.updates, learner.average())
