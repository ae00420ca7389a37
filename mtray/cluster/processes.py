"""The run's actors: started, asked and ended by Ray. Each call's end comes into one inbox.

Ray tells of an end by a callback, so waiting takes as long with a thousand collectors as with one.
"""

from __future__ import annotations

import functools
import queue
import uuid
from collections.abc import Sequence
from typing import Any

import ray

from mtray.cluster.actors.collector import Collector
from mtray.cluster.actors.learner import Learner
from mtray.cluster.actors.replay import Replay
from mtray.cluster.control.protocol import Call, Method, Part
from mtray.cluster.plan import seeds_of
from mtray.collect.placement import Share
from mtray.config.settings import Config
from mtray.rundir.checkpoint import Checkpoint
from mtray.tasks.plan import Task

# How long collectors may take to end their simulators' processes when the run is over.
_CLOSE_SECONDS = 5.0


class Processes:
    """Actors by the part they are.

    Attributes:
        inbox: calls that ended, each with its answer or the error.
        weights: version and reference of those that collectors act with; the reference lies in a list, since Ray would
            resolve one that is an argument itself.
    """

    def __init__(
        self, config: Config, tasks: Sequence[Task], shares: Sequence[Share], cpus: float, saved: Checkpoint | None
    ) -> None:
        """Start nothing yet.

        Args:
            config: the run's.
            tasks: all of the run.
            shares: what each collector steps.
            cpus: Ray's logical CPUs that each actor asks for.
            saved: what replay and learner continue from.
        """
        self.inbox: queue.SimpleQueue[tuple[Call, Any]] = queue.SimpleQueue()
        self.weights: tuple[int, list[Any]] = 0, []
        self._config = config
        self._tasks = tuple(tasks)
        self._specs = tuple(task.spec for task in tasks)
        self._shares = shares
        self._options: dict[str, Any] = {"num_cpus": cpus}
        self._saved = saved
        self._begin_frames = saved.frames if saved else 0
        self._run_id = uuid.uuid4().hex[:8]
        self._actors: dict[Part, Any] = {}
        self._made_weights: dict[int, Any] = {}

    def start(self, part: Part) -> None:
        """Start a part's process."""
        self._actors[part] = self._create(part)

    def _create(self, part: Part) -> Any:
        def create(cls: type[Any], *arguments: Any, **options: Any) -> Any:
            remote: Any = ray.remote(cls)
            return remote.options(**self._options, **options).remote(*arguments)

        config = self._config
        if part.kind == "replay":
            return create(Replay, self._specs, config)
        replay = self._actors[Part("replay")]
        if part.kind == "learner":
            gpus = {"num_gpus": 1} if config.device.startswith("cuda") else {}
            return create(Learner, self._specs, config, replay, **gpus)
        seeds = seeds_of(config, part, self._begin_frames, len(self._tasks))
        share = self._shares[part.place]
        return create(Collector, self._source(part), self._tasks, share, config, seeds, replay)

    def _source(self, part: Part) -> str:
        return f"{self._run_id}/{part.place}.{part.life}"

    def kill(self, part: Part) -> None:
        """End a part's process, if it is still there."""
        actor = self._actors.pop(part, None)
        if actor is not None:
            ray.kill(actor)

    def close(self) -> None:
        """Let collectors end their simulators, then end every process."""
        closing = [actor.close.remote() for part, actor in self._actors.items() if part.kind == "collector"]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for part in list(self._actors):
            self.kill(part)

    def ask(self, call: Call) -> None:
        """Make a call; nothing happens if its part is gone."""
        assert call.part is not None
        actor = self._actors.get(call.part)
        if actor is not None:
            self._submit(actor, call).future().add_done_callback(functools.partial(self._ended, call))

    def _ended(self, call: Call, future: Any) -> None:
        """Take a call's end, in a thread of Ray's."""
        error = future.exception()
        self.inbox.put((call, future.result() if error is None else error))

    def take_weights(self, call: Call) -> Any:
        """Return the reference of the weights that a call made; None if it makes none."""
        return self._made_weights.pop(call.id, None)

    def forget_saved_rows(self) -> None:
        """Free the rows that the replay has taken."""
        if self._saved is not None:
            self._saved.rows = {}

    def _submit(self, actor: Any, call: Call) -> Any:
        match call.method:
            case Method.BUILD:
                return self._build(actor, call)
            case Method.COLLECT:
                return actor.collect.remote(*self.weights)
            case Method.ACT:
                return actor.act.remote(*self.weights, True)
            case Method.TRAIN | Method.STATUS:
                seconds = float("inf") if self._config.deterministic else self._config.learner.slice_seconds
                return self._keep_weights(call, actor.train.options(num_returns=2).remote(call.amount, seconds))
            case Method.FENCE:
                assert call.of is not None
                return actor.fence.remote(self._source(call.of))
            case Method.SNAPSHOT:
                return actor.snapshot.remote(self._config.replay.save)
            case _:
                return getattr(actor, call.method.value).remote()

    def _build(self, actor: Any, call: Call) -> Any:
        assert call.part is not None
        saved = self._saved
        if call.part.kind == "learner":
            state = None if saved is None else saved.learner
            return self._keep_weights(call, actor.build.options(num_returns=2).remote(state))
        if call.part.kind == "replay" and saved is not None:
            return actor.build.remote(saved.replay, saved.rows)
        return actor.build.remote()

    def _keep_weights(self, call: Call, references: Sequence[Any]) -> Any:
        figures, self._made_weights[call.id] = references
        return figures
