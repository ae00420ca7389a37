"""Settings of a run: frozen nested dataclasses, one group per part, saved with the run.

The command line is generated from these classes; a field's docstring is its help text. Units are in the names. Errors
name the flag, the value and the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mtray.config.checks import require, require_above_zero, require_at_least, require_at_most
from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.config.types import convert_fields

# Noise of a hundred standard deviations is a random corner of the action's box.
_MOST_NOISE = 100.0


@dataclass(frozen=True, kw_only=True)
class CollectorConfig:
    """Collectors: rollouts, exploration and pushes."""

    rollout_steps: int = 16
    """Agent steps of every copy in one rollout; a rollout is one push."""
    action_repeat: int = 2
    """Control steps (frames) per agent step, with the same action; the rewards are summed. Applies to dm_control's
    suite only; other tasks may repeat actions themselves."""
    tasks_each: int = 8
    """Number of tasks up to which every collector steps every task. More are partitioned by measured cost (host inline
    only)."""
    pushes_in_flight: int = 1
    """Unacknowledged pushes to the replay while the next rollout is stepped."""
    noise_steps: int = 16
    """Largest number of agent steps that exploration noise is held; 1 for new noise at every step."""
    least_noise: float | None = None
    """Factor of exploration noise: each copy draws one for an episode, uniformly in its logarithm, between this and
    --collector.most-noise, until the policy's mean return exceeds the best random return. By default as --preset
    says."""
    most_noise: float | None = None
    """Largest factor of exploration noise."""
    random_episodes: float = 1 / 8
    """Share of a task's episodes with random actions, until the policy's mean return exceeds the best random return;
    four times as many, up to half, while the policy's returns are all equal. Reported returns exclude random
    episodes. With 0 there may be none to exceed: noise limits that are not given are then 1."""
    random_steps: int = 64
    """Largest number of agent steps that a random action is held; 1 for a new one at every step."""
    push_timeout_seconds: float = 60.0
    """Time after which an unacknowledged push is sent again, with the same id."""
    max_restarts: int = 3
    """Number of consecutive failures of a task's simulator, less than a minute apart, after which it is still built
    anew. After the next one the task is set aside, or the run ends. Collectors that died are always replaced."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 1, "rollout_steps", "action_repeat", "tasks_each", "pushes_in_flight")
        require_at_least(self, 1, "noise_steps", "random_steps")
        require_at_least(self, 0, "max_restarts")
        require_above_zero(self, "push_timeout_seconds", "least_noise", "most_noise")
        require_at_most(self, _MOST_NOISE, "least_noise", "most_noise")
        least, most = self.least_noise, self.most_noise
        require(
            least is None or most is None or least <= most,
            f"--collector.least-noise {least}: at most --collector.most-noise, {most}",
        )
        share = self.random_episodes
        require(0 <= share <= 1, f"--collector.random-episodes {share}: must be between 0 and 1")

    @property
    def noise_factors(self) -> tuple[float, float]:
        """Limits of an episode's noise factor; 1 where no preset has filled them."""
        return self.least_noise or 1.0, self.most_noise or 1.0


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The replay: one ring per task, without padding."""

    capacity_rows: int = 1_000_000
    """Rows of a task's ring. A transition is one row; each rollout and each episode's end adds a row for its last
    observation (6 percent at the default rollout length)."""
    recent_share: float | None = None
    """Share of an update's rows, on average, that are drawn from the newest of a ring only, the others from all of it:
    most are of the present policy, and old mistakes are not forgotten. By default 0.5, with --preset frugal 0."""
    recent_rows: int = 100_000
    """How many of a ring's rows are its newest."""
    save: bool = True
    """Save the rings in checkpoints, so that a resumed run continues with its data."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 2, "capacity_rows", "recent_rows")
        share = self.recent_share
        require(share is None or 0 <= share <= 1, f"--replay.recent-share {share}: must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Logging, checkpoints and timeouts."""

    log_seconds: float = 5.0
    """Time between lines of metrics.jsonl."""
    progress: Literal["auto", "plain", "table", "none"] = "auto"
    """What the screen shows: a live table, lines of text, only warnings; auto: the table on a terminal, else lines."""
    checkpoint_frames: int | None = None
    """Frames between checkpoints, if they come before --run.checkpoint-seconds; with --deterministic they alone count,
    and are 100,000 by default. Another checkpoint is written at the end."""
    checkpoint_seconds: float = 120.0
    """Time between checkpoints."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
    evaluate_every: float | None = None
    """Minutes between evaluations of the policy without noise, which a process of their own makes; 0 for none. By
    default 2, and none with --deterministic. They are made less often where they would take over a tenth of a core's
    time."""
    evaluate_episodes: int = 10
    """Episodes of each task in an evaluation."""
    log_pushes: bool = False
    """Print every acknowledged push, with checksums of its rows, into the collector's file in logs/."""
    cpus_per_actor: float | None = None
    """Logical CPUs that each actor requests from Ray; by default 1, or a third of what there is in a cluster of fewer
    than three; above 0 with --address. Collectors that find no room wait for it."""
    start_timeout_seconds: float = 180.0
    """Timeout of an actor's first answer."""
    give_up_seconds: float = 600.0
    """Time for which an actor may fail to start, or wait for room in the cluster, before the run ends. The run
    continues if other collectors step the same tasks."""
    call_timeout_seconds: float = 300.0
    """Timeout of an actor's call, after which the actor is replaced; shorter once calls of its kind are known to be: 30
    seconds beyond ten times the longest, and of a collector also its longest build."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 0, "cpus_per_actor", "evaluate_every")
        require_at_least(self, 1, "evaluate_episodes")
        require_at_least(self, 1, "checkpoint_frames", "keep_checkpoints")
        require_above_zero(self, "log_seconds", "checkpoint_seconds", "start_timeout_seconds")
        require_above_zero(self, "call_timeout_seconds", "give_up_seconds")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train one policy on many tasks."""

    tasks: tuple[str, ...] = ("humanoid-stand", "humanoid-walk")
    """Tasks, task sets (humanoid, walker, dmc for all benchmarking tasks of the suite, ...) or package.module:maker."""
    workers: int | Literal["auto"] = 2
    """Collectors. Each is a process that steps every task (see --collector.tasks-each), and with --host parallel one
    more process per task. auto: as many as there is room for, which is followed on a cluster; on one machine a core is
    left for the learner."""
    envs_per_task: int | None = None
    """Copies of each task per collector; by default 16 of each task over all collectors, fewer if that would be more
    than 256 simulators, but at least 8 with up to --collector.tasks-each tasks, without --deterministic and
    --learner.slack-steps."""
    engine: str = "mujoco"
    """Engine of tasks that do not name one: mujoco (dm_control's suite, stepped in batches), dm_control (the same
    numbers from dm_control's own loop) or envpool."""
    host: Literal["auto", "parallel", "inline"] = "auto"
    """parallel: a process per task in each collector; inline: the collector steps its tasks itself; auto: parallel if
    that keeps more cores busy."""
    total_frames: int | None = None
    """Control steps of all tasks together after which the run is finished; by default only time ends it, but 1,000,000
    with --deterministic."""
    total_minutes: float | None = None
    """Minutes after which the run saves and ends, those of the runs that it resumes included; by default 60 where no
    --total-frames is given."""
    run_dir: Path | None = None
    """Run directory, new or empty; by default runs/<date and time>."""
    resume: Path | None = None
    """Resume the run of this directory with its settings; other flags override them."""
    on_task_failure: Literal["continue", "abort"] = "continue"
    """If a task's own code keeps failing after its first rollout: continue with the other tasks and exit with code 1 at
    the end, or abort at once. Both save."""
    preset: Literal["fast", "frugal"] = "fast"
    """Settings of learner, networks and noise that are not given. fast: the highest returns after some minutes, with at
    most 4 agent steps of every task for each update. frugal: the highest returns after some frames."""
    seed: int = 0
    """Seed of environments, networks, exploration and sampling."""
    deterministic: bool = False
    """Run in lockstep, which is slower: the same seed gives the same data, weights and metrics."""
    address: str | None = None
    """Address of a Ray cluster ('auto' finds one); by default, or with 'local', a new local Ray."""
    device: str = "auto"
    """Device of the learner: cpu, cuda, cuda:0, ... auto: a GPU if this machine, or a node of the cluster, has one; the
    CPU with --deterministic."""
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require(
            self.address in (None, "local") or self.run.cpus_per_actor != 0,
            f"--run.cpus-per-actor 0 with --address {self.address}: on a cluster room is counted in CPUs; give more "
            "than 0, for example 0.1",
        )
        if self.address == "local":
            # As if none were given: it takes the place of the address that a resumed run had.
            object.__setattr__(self, "address", None)
        require(bool(self.tasks), "--tasks: name at least one task, for example --tasks humanoid")
        require(self.workers == "auto" or self.workers >= 1, f"--workers {self.workers}: at least 1 is needed")
        require_at_least(self, 1, "envs_per_task", "total_frames")
        require(
            self.total_minutes is None or self.total_minutes > 0,
            f"--total-minutes {self.total_minutes}: must be above 0",
        )
        # A step takes two rows if its observation differs from the next observation of the step before.
        rows = 2 * self.copies() * self.collector.rollout_steps
        require(
            self.replay.capacity_rows >= rows,
            f"--replay.capacity-rows {self.replay.capacity_rows}: one rollout of {self.copies()} copies "
            f"(--envs-per-task) x {self.collector.rollout_steps} steps (--collector.rollout-steps) takes up to {rows} "
            "rows: give fewer copies or steps, or a capacity of at least that many",
        )
        least, most = self.learner.least_updates_per_step, self.learner.updates_per_step
        require(
            not self.deterministic or least in (None, most),
            f"--learner.least-updates-per-step {least}: with --deterministic the ratio is fixed, give "
            "--learner.updates-per-step alone",
        )
        require(
            not (self.deterministic and self.run.evaluate_every),
            f"--run.evaluate-every {self.run.evaluate_every}: with --deterministic there are no evaluations during the "
            "run, whose moments would differ from run to run; evaluate its checkpoints",
        )
        if self.device != "auto":
            self.learner.check_device(self.device)
        require(
            not (self.deterministic and self.learner.compiles_beside(self.device)),
            f"--learner.compile {self.learner.compile}: with --deterministic numbers must not depend on when "
            "the compiler is done; leave it out, or add --learner.graphs False, which compiles before the first update",
        )
        require(0 <= self.seed < 2**32, f"--seed {self.seed}: must be between 0 and 2**32 - 1")

    def copies(self, tasks: int = 1) -> int:
        """Return the number of copies per task and collector in a run of this many tasks."""
        return self.envs_per_task or max(1, min(16, 256 // tasks) // self.collectors)

    @property
    def frames(self) -> int | None:
        """Frames after which the run is finished; None if only time ends it."""
        return 1_000_000 if self.total_frames is None and self.deterministic else self.total_frames

    @property
    def minutes(self) -> float | None:
        """Minutes after which the run ends; None if only frames end it."""
        return 60.0 if self.total_minutes is None and self.frames is None else self.total_minutes

    @property
    def evaluation_seconds(self) -> float | None:
        """Seconds between two evaluations; None if there are none."""
        minutes = self.run.evaluate_every
        if minutes is None:
            minutes = 0.0 if self.deterministic else 2.0
        return 60 * minutes or None

    @property
    def collectors(self) -> int:
        """The number of collectors: one at least, where it is not yet known."""
        return 1 if self.workers == "auto" else self.workers
