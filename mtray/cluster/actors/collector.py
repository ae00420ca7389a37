"""A collector as a Ray actor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ObjectLostError

from mtray.cluster.actors.cores import give_way
from mtray.cluster.actors.hello import Hello, say_hello
from mtray.cluster.actors.pushes import Pusher
from mtray.config.settings import Config
from mtray.data.messages import Report
from mtray.data.rollout import pack
from mtray.data.specs import observation_width
from mtray.data.statistics import TaskStatistics
from mtray.engines import states
from mtray.tasks.plan import Task
from mtray.tasks.processes import engine_modules, fork_server, limit_torch, start_fork_server

if TYPE_CHECKING:
    from mtray.collect.hosts.base import Host
    from mtray.collect.loop import Rollout
    from mtray.collect.placement import Share
    from mtray.policy.layout import Weights


# multiprocessing makes <folder>/pymp-<8 letters>/listener-<8 letters>, and a socket's path has 107 bytes.
_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")


class Collector:
    """A collector as an actor: see `mtray.collect.loop.ActingLoop`."""

    def __init__(
        self,
        source: str,
        tasks: Sequence[Task],
        config: Config,
        target: Any,
        is_first: bool = False,
    ) -> None:
        """Take what `build` needs.

        Args:
            source: this actor's name in pushes.
            tasks: all of the run.
            config: the run's.
            target: the replay.
            is_first: whether it is to be built before others that share its cores.
        """
        self._is_first = is_first
        self._tasks = tasks
        self._config = config
        limits = config.collector
        self._pusher = Pusher(
            target, source, limits.pushes_in_flight, limits.push_timeout_seconds, prints=config.run.log_pushes
        )
        self._share: Share = {}
        self._builds = -1
        self._host: Host | None = None

    def hello(self, logs: Path, name: str) -> Hello:
        """Keep what this actor prints in a file of ``logs``; return where it is."""
        return say_hello(logs, name)

    def build(self, share: Share, seeds: Sequence[int], builds: int = 0, state: bytes | None = None) -> None:
        """Build the host and the policy, and start the simulators' processes, instead of those that are there.

        Args:
            share: tasks to step, and how many copies of each.
            seeds: one per task of the run, then one for the actions.
            builds: a number of its own for each build: asked for twice, it is made once.
            state: of an earlier collector with this share; None to begin new episodes.

        Raises:
            TaskError: a task's maker or simulator failed.
        """
        if builds == self._builds:
            return
        self.close()
        self._host = None
        tasks, config = self._tasks, self._config
        if not self._is_first:
            # Frames come early if the first is built before the others.
            self._give_way()
        # Nothing is drawn here; without this, importing dm_control looks for a display.
        os.environ.setdefault("MUJOCO_GL", "disabled")
        stepped = [task for task in tasks if task.name in share]
        if config.host == "parallel":
            start_fork_server(engine_modules(stepped), _socket_folder())
        from mtray.collect.hosts.make import make_host
        from mtray.collect.loop import ActingLoop
        from mtray.policy.layout import PolicyLayout
        from mtray.tasks.makers import make_makers

        limit_torch(stepped)
        specs = [task.spec for task in tasks]
        width = observation_width(specs)
        own_seeds = [seed for task, seed in zip(tasks, seeds, strict=False) if task.name in share]
        copies = [share[task.name] for task in stepped]
        # Another simulator than the one that failed gives other numbers.
        rebuilds = not config.deterministic
        host = make_host(config.host, make_makers(stepped, copies, own_seeds, width), rebuilds=rebuilds)
        self._collector = ActingLoop(
            host,
            PolicyLayout(tuple(specs), config.network, config.learner.policy_noise),
            rollout_steps=config.collector.rollout_steps,
            discounts={spec.name: spec.discount for spec in specs},
            noise_steps=config.collector.noise_steps,
            noise_factors=config.collector.noise_factors,
            random_share=config.collector.random_episodes,
            random_steps=config.collector.random_steps,
            seed=seeds[-1],
        )
        if state is not None:
            self._collector.load_state(states.from_bytes(state))
        self._pusher.clock = self._collector.clock
        self._rollout: Rollout | None = None
        self._host, self._share, self._builds = host, share, builds
        self._give_way()

    def _give_way(self) -> None:
        """Where no fixed ratio is kept, leave the cores that the learner computes on to it."""
        if not self._config.learner.keeps_ratio:
            # Those of the first began before; simulators that are built anew come from the fork server.
            simulators = [] if self._host is None else [*self._host.processes, *fork_server()]
            give_way(simulators)

    def state(self) -> bytes | None:
        """Return what an earlier collector's `build` takes; None if a task's engine has no states."""
        state = self._collector.state()
        return None if state is None else states.to_bytes(state)

    def cut(self, seeds: Sequence[int]) -> None:
        """Build the host and the policy again, with other seeds: as a new collector of a resumed run begins."""
        builds, self._builds = self._builds, -1
        self.build(self._share, seeds, builds)

    def act(self, version: int, box: list[Any], wait: bool = False) -> Report:
        """Step one rollout, with the boxed weights if they are newer and here (or, if told to wait, once they are)."""
        clock = self._collector.clock
        clock.lap("idle")
        if box and version > self._collector.weights_version and (wait or ray.wait(box, timeout=0)[0]):
            # They are lost where the learner's node is: others come with the next learner.
            with contextlib.suppress(*(() if wait else (ObjectLostError,))):
                weights: Weights = ray.get(box[0])
                self._collector.load(weights)
        self._rollout = self._collector.collect()
        return Report(
            episodes=self._rollout.episodes,
            weights_version=self._rollout.weights_version,
            seconds=clock.take(),
            broken=self._rollout.broken,
            failures=self._rollout.failures,
        )

    def push(self, wait: bool = True) -> None:
        """Pack the last rollout and send it to the replay; ``wait`` for the acknowledgement."""
        assert self._rollout is not None
        self._collector.clock.lap("idle")
        rows, statistics = {}, {}
        for task, arrays in self._rollout.tasks.items():
            rows[task] = pack(arrays)
            statistics[task] = TaskStatistics.of(rows[task], arrays.observation.shape[-1])
        self._pusher.push(rows, statistics, self._rollout.largest_returns)
        if wait:
            self._pusher.wait()

    def collect(self, version: int, box: list[Any]) -> Report:
        """Step one rollout and send it; its receipt is waited for while the next is stepped."""
        report = self.act(version, box)
        self.push(wait=False)
        return report

    def flush(self) -> int:
        """Wait for every receipt; return the frames that the replay has stored of all that this actor pushed."""
        self._collector.clock.lap("idle")
        self._pusher.wait()
        return self._pusher.stored()

    def connect(self, replay: Any) -> int:
        """Push to another process of the replay from now on, first what has no receipt; return as `flush` does."""
        self._collector.clock.lap("idle")
        self._pusher.connect(replay)
        return self.flush()

    def close(self) -> None:
        """End the host's processes."""
        if self._host is not None:
            self._host.close()


def _socket_folder() -> str | None:
    """Return Ray's folder of this session, which goes with old sessions: a collector that is killed leaves its socket.

    None where other users can reach it, or a socket in it would have too long a name.
    """
    node: Any = ray._private.worker._global_node
    session = Path(node.get_session_dir_path())
    is_private = any(not folder.stat().st_mode & 0o077 for folder in session.parents)
    return str(session) if is_private and len(os.fsencode(session)) <= _LONGEST_FOLDER else None
