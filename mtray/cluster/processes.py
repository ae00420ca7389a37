"""The run's actors: started, called and ended by Ray. The end of each call comes into one inbox.

Ray reports an end by a callback, so waiting takes as long with a thousand collectors as with one. What takes long and
passes through the driver, writing checkpoints and filling a replay, is done by one thread beside, one after the other.
"""

from __future__ import annotations

import functools
import queue
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray

from mtray.cluster.actors.collector import Collector
from mtray.cluster.actors.evaluator import Evaluator
from mtray.cluster.actors.hello import Hello
from mtray.cluster.actors.learner import Learner
from mtray.cluster.actors.replay import Replay
from mtray.cluster.control.protocol import Call, Counts, Event, Kind, Method, Part, Restored
from mtray.cluster.plan import seeds_of
from mtray.cluster.rows import RowsKeeper
from mtray.cluster.session.nodes import Placement
from mtray.cluster.session.own import limit_shutdown
from mtray.collect.placement import Share
from mtray.config.settings import Config
from mtray.errors import RunError
from mtray.replay.buffer import ReplayBuffer
from mtray.rundir.checkpoints.writer import CheckpointWriter, Fetch
from mtray.tasks.plan import Task

# How long collectors may take to end their simulators' processes when the run is over.
_CLOSE_SECONDS = 5.0
# How long a checkpoint that is being written as Ray dies may take: less than Ray's core gives this process.
_DRAIN_SECONDS = 8.0


class Processes:
    """Actors by the part they are.

    Attributes:
        inbox: calls that ended, each with its answer or the error, and what was seen of the cluster.
        weights: version and reference of those that collectors act with; the reference lies in a list, since Ray would
            resolve one that is an argument itself.
        learner_state: the newest that the learner gave, for the process that replaces it.
        restored_frames: task to the frames that the replay's newest process began with.
        aside: tasks without which the replay's counts tell whether all are warm.
    """

    def __init__(
        self,
        config: Config,
        tasks: Sequence[Task],
        shares: Sequence[Share],
        cpus: float,
        writer: CheckpointWriter,
        placement: Placement | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            config: the run's.
            tasks: all of the run.
            shares: what each collector steps as the run begins.
            cpus: Ray's logical CPUs that each actor asks for.
            writer: whose newest checkpoint replay and learner continue from.
            placement: of a joined cluster, chooses nodes.
        """
        self.inbox: queue.SimpleQueue[tuple[Call, Any] | Event] = queue.SimpleQueue()
        self.weights: tuple[int, list[Any]] = 0, []
        self._config = config
        self._tasks = tuple(tasks)
        self._specs = tuple(task.spec for task in tasks)
        self._placement = placement
        self._options: dict[str, Any] = {"num_cpus": cpus}
        self._writer = writer
        saved = writer.newest
        self.learner_state = saved.learner if saved else None
        # Of collectors that step what they stepped then; others begin new episodes.
        is_same = config.deterministic and saved is not None and saved.meta.get("collectors") == list(shares)
        self._collector_states = saved.collectors if saved and is_same else ()
        self.restored_frames: dict[str, int] = {}
        self._begin_frames = saved.frames if saved else 0
        self._run_id = uuid.uuid4().hex[:8]
        self._actors: dict[Part, Any] = {}
        self._nodes: dict[Part, Hello] = {}
        # The newest process of each place, though it may have ended.
        self._newest: dict[tuple[Kind, int], Part] = {}
        self._replay: Any = None
        self._rows = RowsKeeper(self._specs, config)
        self._made_weights: dict[int, Any] = {}
        self.aside: set[str] = set()
        self._jobs: queue.SimpleQueue[tuple[Call, Callable[[], Any]] | None] = queue.SimpleQueue()
        # A daemon: one that waits for a disk that hangs must not keep the driver from ending.
        threading.Thread(target=self._work, name="checkpoints", daemon=True).start()

    def start(self, part: Part) -> None:
        """Start a part's process."""
        self._newest[part.kind, part.place] = part
        self._actors[part] = self._create(part)
        if part.kind == "replay":
            self._replay = self._actors[part]

    def is_newest(self, call: Call) -> bool:
        """Return whether a call was made to a process that was not replaced since."""
        return call.part is None or self._newest.get((call.part.kind, call.part.place)) == call.part

    def _create(self, part: Part) -> Any:
        def create(cls: type[Any], *arguments: Any, **options: Any) -> Any:
            remote: Any = ray.remote(cls)
            if self._placement is not None:
                options = self._placement.options(part.kind)
            return remote.options(**{**self._options, **options}).remote(*arguments)

        config = self._config
        if part.kind == "replay":
            return create(Replay, self._specs, config)
        if part.kind == "learner":
            gpus = {"num_gpus": 1} if config.device.startswith("cuda") else {}
            return create(Learner, self._specs, config, self._replay, **gpus)
        return create(Collector, self._source(part), self._tasks, config, self._replay, part.place == 0)

    def start_evaluator(self) -> Any:
        """Start a process beside the run, which takes none of its cores; return its actor."""
        remote: Any = ray.remote(Evaluator)
        options = {"num_cpus": 0} if self._placement is None else self._placement.beside()
        return remote.options(**options).remote(self._tasks, self._config)

    def _source(self, part: Part) -> str:
        return f"{self._run_id}/{part.place}.{part.life}"

    def set_aside(self, task: str) -> None:
        """Have the replay's counts tell whether all but a task are warm."""
        self.aside.add(task)

    def kill(self, part: Part) -> None:
        """End a part's process, if it is still there."""
        actor = self._actors.pop(part, None)
        self._nodes.pop(part, None)
        if actor is not None:
            ray.kill(actor)

    def add_node(self, part: Part, hello: Hello) -> None:
        """Take where a process is."""
        if part in self._actors:
            self._nodes[part] = hello

    def nodes(self) -> dict[Part, str]:
        """Return the node of each process that has one."""
        return {part: hello.node for part, hello in self._nodes.copy().items()}

    def here(self, *kinds: Kind) -> list[int]:
        """Return the ids of the processes of these kinds that are on this process's node."""
        return [hello.process for part, hello in self._nodes.copy().items() if part.kind in kinds and hello.is_here]

    def where(self) -> str:
        """Return where the processes of the run are, in one line."""
        core = {part.kind: hello.address for part, hello in self._nodes.items() if part.kind != "collector"}
        replay, learner = core.get("replay", "nowhere yet"), core.get("learner", "nowhere yet")
        both = f"learner and replay on {learner}" if replay == learner else f"learner on {learner}, replay on {replay}"
        counts = Counter(hello.address for part, hello in self._nodes.items() if part.kind == "collector")
        return f"{both}; collectors: " + (", ".join(f"{count} on {on}" for on, count in counts.most_common()) or "none")

    def close(self) -> None:
        """End what runs in the driver, and every process."""
        limit_shutdown()
        self._jobs.put(None)
        self.close_actors()

    def close_actors(self) -> None:
        """Let collectors end their simulators, then end every process but an evaluator."""
        closing = [actor.close.remote() for part, actor in self._actors.items() if part.kind == "collector"]
        try:
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        finally:
            # Also where a second signal ends the waiting: on a cluster nobody else would end them.
            for part in list(self._actors):
                self.kill(part)
            placement, self._placement = self._placement, None
            if placement is not None:
                placement.release()

    def leave_ray(self, *, is_stuck: bool) -> ReplayBuffer:
        """Leave a Ray that has died, and return the replay, from its memory that this process holds.

        Args:
            is_stuck: its processes are there, but answer nothing: it is left when the run has ended.

        Raises:
            RunError: nothing was collected, or it can't be reached.
        """
        self._actors.clear()
        # What is reserved goes with Ray, which a call would start anew.
        self._placement = None
        is_idle = threading.Event()
        self.in_background(Call(-1, None, Method.WRITE), is_idle.set)
        if not is_idle.wait(_DRAIN_SECONDS):
            raise RunError(f"a checkpoint that was being written did not end within {_DRAIN_SECONDS:g} s")
        if not is_stuck:
            # Its core would end this process.
            ray.shutdown()
        return self._rows.take_over()

    def ask(self, call: Call) -> None:
        """Make a call; nothing happens if its part is gone."""
        assert call.part is not None
        actor = self._actors.get(call.part)
        if actor is not None and call.method is Method.BUILD and call.part.kind == "replay":
            self.in_background(call, lambda: self._fill(actor))
        elif actor is not None:
            self._submit(actor, call).future().add_done_callback(functools.partial(self._ended, call))

    def _ended(self, call: Call, future: Any) -> None:
        """Take a call's end, in a thread of Ray's."""
        error = future.exception()
        self.inbox.put((call, future.result() if error is None else error))

    def take_weights(self, call: Call) -> Any:
        """Return the reference of the weights that a call made; None if it makes none."""
        return self._made_weights.pop(call.id, None)

    # Beside.

    def in_background(self, call: Call, job: Callable[[], Any]) -> None:
        """Do what a call asks for after other jobs of this kind; its end comes into the inbox."""
        self._jobs.put((call, job))

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            call, job = entry
            try:
                result = job()
            except Exception as error:
                result = error
            self.inbox.put((call, result))

    def rows_reader(self) -> Fetch:
        """Return a function that reads rows of the replay's newest process; it raises UnreachableError if that dies."""
        return self._rows.reader(self._replay)

    def _fill(self, replay: Any) -> Restored:
        """Make a process of the replay ready, with what the one before had, or with the newest checkpoint."""
        source, has_rows = self._rows.fill(replay, self._writer.newest)
        counts, sources = ray.get([replay.count.remote(self.aside), replay.sources.remote()])
        self.restored_frames = counts["frames"]
        stored = {self._part(name): frames for name, frames in sources.items() if name.startswith(f"{self._run_id}/")}
        return Restored(Counts(sum(counts["frames"].values()), counts["is_warm"]), source, stored, has_rows)

    def _part(self, source: str) -> Part:
        place, _, life = source.partition("/")[2].partition(".")
        return Part("collector", int(place), int(life))

    # Calls.

    def _submit(self, actor: Any, call: Call) -> Any:
        part = call.part
        assert part is not None
        match call.method:
            case Method.HELLO:
                name = f"collector-{part.place}" if part.kind == "collector" else part.kind
                return actor.hello.remote(self._writer.run_dir / "logs", name)
            case Method.BUILD if part.kind == "learner":
                return self._with_weights(call, actor.build, self.learner_state, self.weights[0])
            case Method.BUILD if part.kind == "collector":
                assert call.place is not None
                seeds = seeds_of(self._config, part, self._begin_frames, len(self._tasks), call.amount)
                state = self._collector_states[part.place] if self._collector_states else None
                return actor.build.remote(dict(call.place.copies), seeds, call.amount, state)
            case Method.CONNECT if part.kind == "learner":
                return self._with_weights(call, actor.connect, self._replay)
            case Method.CUT if part.kind == "learner":
                return self._with_weights(call, actor.cut)
            case Method.CUT:
                return actor.cut.remote(seeds_of(self._config, part, call.amount, len(self._tasks)))
            case Method.CONNECT:
                return actor.connect.remote(self._replay)
            case Method.COLLECT:
                return actor.collect.remote(*self.weights)
            case Method.ACT:
                return actor.act.remote(*self.weights, True)
            case Method.TRAIN | Method.STATUS:
                seconds = float("inf") if self._config.deterministic else self._config.learner.slice_seconds
                return self._with_weights(call, actor.train, call.amount, seconds)
            case Method.COUNT | Method.SNAPSHOT:
                return getattr(actor, call.method.value).remote(self.aside)
            case Method.FENCE:
                assert call.of is not None
                return actor.fence.remote(self._source(call.of))
            case _:
                return getattr(actor, call.method.value).remote()

    def _with_weights(self, call: Call, method: Any, *arguments: Any) -> Any:
        """Call a method of the learner that returns figures and weights; keep the weights' reference."""
        figures, self._made_weights[call.id] = method.options(num_returns=2).remote(*arguments)
        return figures
