"""Settings of a run: frozen nested dataclasses, one group per part, saved with the run.

The command line is generated from these classes; a field's docstring is its help text. Units are in the names. Errors
name the flag, the value and the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mtray.config.checks import is_positive, is_positive_integer, require, require_above_zero, require_at_least
from mtray.config.types import convert_fields


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
    random_episodes: float = 1 / 8
    """Share of a task's episodes with random actions, until the policy's mean return exceeds the best random return;
    four times as many, up to half, while the policy's returns are all equal. Reported returns exclude random
    episodes."""
    random_steps: int = 64
    """Largest number of agent steps that a random action is held; 1 for a new one at every step."""
    push_timeout_seconds: float = 60.0
    """Time after which an unacknowledged push is sent again, with the same id."""
    max_restarts: int = 3
    """Number of consecutive failures of a task's simulator, less than a minute apart, after which it is still built anew;
    after the next one the task is set aside, or the run ends. Collectors whose process died are always replaced."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 1, "rollout_steps", "action_repeat", "tasks_each", "pushes_in_flight")
        require_at_least(self, 1, "noise_steps", "random_steps")
        require_at_least(self, 0, "max_restarts")
        require_above_zero(self, "push_timeout_seconds")
        share = self.random_episodes
        require(0 <= share <= 1, f"--collector.random-episodes {share}: must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The replay: one ring per task, without padding."""

    capacity_rows: int = 1_000_000
    """Rows of a task's ring. A transition is one row; each rollout and each episode's end adds a row for its last
    observation (6 percent at the default rollout length)."""
    save: bool = True
    """Save the rings in checkpoints, so that a resumed run continues with its data."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 2, "capacity_rows")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shared backbones and per-task heads of actor and critic."""

    actor_width: int = 128
    """Width of the actor's backbone."""
    actor_blocks: int = 1
    """Residual blocks of the actor's backbone."""
    critic_width: int = 256
    """Width of the critic's backbone."""
    critic_blocks: int = 1
    """Residual blocks of the critic's backbone."""
    actor_output_norm: bool = True
    """Normalise the output of the actor's backbone."""
    critic_output_norm: bool = True
    """Normalise the output of the critic's backbone."""
    critics: int = 1
    """Critics, each with its own backbone and heads; the lowest value of each row is used."""
    embedding_size: int = 32
    """Width of the learned task embedding that the backbones read; 0 for none."""
    adapter_size: int = 32
    """Linear features of its inputs that each task learns, read by the backbones beside the inputs; 0 for none."""
    head_layers: int = 0
    """Hidden layers of each task's head, as wide as its backbone."""
    head_reads_observation: bool = False
    """Feed each head its task's observation beside the backbone's output, as the TorchRL tutorial does."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 1, "actor_width", "critic_width", "critics")
        require_at_least(self, 0, "actor_blocks", "critic_blocks", "embedding_size", "adapter_size", "head_layers")


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Multi-task actor-critic with a categorical critic."""

    algorithm: Literal["sac", "td3"] = "sac"
    """sac: a stochastic policy with an entropy bonus. td3: a deterministic policy, with noise added in collection and
    targets; add --network.critics 2 for its paper's two critics."""

    batch_rows: int | None = None
    """Rows of one update, equally many of every task unless --learner.row-weights is given; by default 384, or 16 per
    task if that is more."""
    updates_per_step: float = 4.0
    """Updates per agent step taken in every task; 0 collects without learning."""
    warmup_steps: int = 1000
    """Agent steps of every task before the first update, with uniformly random actions."""
    slack_steps: int | None = None
    """Agent steps of every task that collectors may be ahead of the learner; by default a quarter more than are in
    flight at once."""
    learning_rate: float = 3e-4
    """Learning rate of actor and critic (AdamW)."""
    temperature_learning_rate: float = 1e-3
    """Learning rate of the temperatures (Adam)."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    n_step: int = 1
    """Rewards that a target sums before the critic's value; fewer where an episode or a rollout ends."""
    polyak: float = 0.01
    """Step size of the target critic's moving average, per update."""
    actor_polyak: float = 0.002
    """Step size of the actor's moving average, per update of the actor. The average is saved and evaluated; 1 for the
    actor itself. Collectors act with the actor itself."""
    actor_period: int = 2
    """Updates of the critic per update of actor and temperatures."""
    atoms: int = 51
    """Atoms of the critic's distribution; 1 for a scalar critic, trained with the squared error."""
    value_limit: float = 10.0
    """The atoms span [-value_limit, value_limit], in scaled returns."""
    headroom: float = 3.0
    """Ratio of the support's limit to the largest return so far, capped at the return of receiving the largest reward
    so far at every step."""
    initial_temperature: float = 0.1
    """sac: initial temperature of every task, in units of its raw reward."""
    action_noise: float = 0.2
    """td3: standard deviation of the noise added to actions, in units of half the action range."""
    loss_weights: tuple[str, ...] = ()
    """Weights of tasks' losses, for example cheetah-run=2 walker-walk=0.5; 1 for all others."""
    row_weights: tuple[str, ...] = ()
    """Weights of tasks' numbers of rows per update, whole numbers, for example cheetah-run=2; 1 for all others."""
    batches_per_call: int = 16
    """Batches per call to the replay."""
    calls_ahead: int = 2
    """Prefetched calls to the replay."""
    slice_seconds: float = 0.5
    """Time between two weights versions of the learner."""
    threads: int | None = None
    """Threads of an update on the CPU; by default one or two, whichever is measured to be faster during the run; one
    with --deterministic."""
    precision: Literal["float32", "tfloat32", "bfloat16"] | None = None
    """Precision of the networks' matrix products: float32, tfloat32 (GPU only, 10 bits of mantissa) or bfloat16; by
    default tfloat32 on a GPU and float32 on the CPU. Parameters, losses and optimisers are always float32."""
    graphs: bool | None = None
    """Record an update once and replay its kernels (CUDA graphs on a GPU). By default wherever possible, which on the
    CPU excludes --learner.compile."""
    compile: str | None = None
    """Backend of torch.compile for networks and losses, for example inductor. On the CPU it halves the speed."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 1, "batch_rows", "n_step", "actor_period", "atoms", "headroom")
        require_at_least(self, 1, "batches_per_call", "calls_ahead", "threads")
        require_at_least(self, 0, "updates_per_step", "warmup_steps", "slack_steps", "weight_decay")
        require_above_zero(self, "learning_rate", "temperature_learning_rate", "value_limit", "initial_temperature")
        require_above_zero(self, "action_noise", "slice_seconds")
        for name in ("polyak", "actor_polyak"):
            share = getattr(self, name)
            require(0 < share <= 1, f"--learner.{name.replace('_', '-')} {share}: must be in (0, 1]")
        for name, valid, kind in (
            ("loss_weights", is_positive, "number"),
            ("row_weights", is_positive_integer, "whole number"),
        ):
            for text in getattr(self, name):
                require(
                    "=" in text and valid(text.rpartition("=")[2]),
                    f"--learner.{name.replace('_', '-')} {text}: give a task and a {kind} above 0, "
                    "for example cheetah-run=2",
                )

    @property
    def policy_noise(self) -> float | None:
        """Standard deviation of the noise added to actions; None if the policy learns it (sac)."""
        return self.action_noise if self.algorithm == "td3" else None

    def can_record(self, device: str) -> bool:
        """Return whether updates on this device can be recorded; code compiled for the CPU can't."""
        return device.startswith("cuda") or (device == "cpu" and not self.compile)

    def check_device(self, device: str) -> None:
        """Raise a UsageError if the device does not support the given precision or graphs."""
        require(
            self.can_record(device) or not self.graphs,
            f"--learner.graphs True with --learner.compile {self.compile} on {device}: updates can be recorded on a "
            "CUDA device, or on the CPU if they are not compiled; leave one of them out",
        )
        require(
            device.startswith("cuda") or self.precision != "tfloat32",
            f"--learner.precision tfloat32 on {device}: only GPUs support it; use float32 or bfloat16",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Logging, checkpoints and timeouts."""

    log_seconds: float = 5.0
    """Time between lines of metrics.jsonl."""
    checkpoint_frames: int = 100_000
    """Frames between checkpoints; another one is written at the end."""
    checkpoint_seconds: float = 120.0
    """Time between checkpoints, if there are fewer frames in it; with --deterministic frames alone count."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
    log_pushes: bool = False
    """Print every acknowledged push, with checksums of its rows, into the collector's file in logs/."""
    cpus_per_actor: float | None = None
    """Logical CPUs that each actor requests from Ray; by default 1, or less if the cluster has too few now. Use 1 if an
    autoscaler shall add machines."""
    start_timeout_seconds: float = 180.0
    """Timeout of an actor's first answer."""
    give_up_seconds: float = 600.0
    """Time for which an actor may fail to start, or wait for room in the cluster, before the run ends. The run
    continues if other collectors step the same tasks."""
    call_timeout_seconds: float = 300.0
    """Timeout of an actor's call, after which the actor is replaced; shorter once calls of its kind are known to be: 30
    seconds beyond ten times the longest."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 0, "cpus_per_actor")
        require_at_least(self, 1, "checkpoint_frames", "keep_checkpoints")
        require_above_zero(self, "log_seconds", "checkpoint_seconds", "start_timeout_seconds")
        require_above_zero(self, "call_timeout_seconds", "give_up_seconds")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train one policy on many tasks."""

    tasks: tuple[str, ...] = ("humanoid-stand", "humanoid-walk")
    """Tasks, task sets (humanoid, walker, dmc for all benchmarking tasks of the suite, ...) or package.module:maker."""
    workers: int = 2
    """Collectors. Each is a process that steps every task (see --collector.tasks-each), and with --host parallel one
    more process per task."""
    envs_per_task: int | None = None
    """Copies of each task per collector; by default 16 of each task over all collectors, fewer if that would be more
    than 256 simulators."""
    engine: str = "mujoco"
    """Engine of tasks that do not name one: mujoco (dm_control's suite, stepped in batches), dm_control (the same
    numbers from dm_control's own loop) or envpool."""
    host: Literal["auto", "parallel", "inline"] = "auto"
    """parallel: a process per task in each collector; inline: the collector steps its tasks itself; auto: parallel if
    that keeps more cores busy."""
    total_frames: int = 1_000_000
    """Control steps of all tasks together after which the run is finished."""
    run_dir: Path | None = None
    """Run directory, new or empty; by default runs/<date and time>."""
    resume: Path | None = None
    """Resume the run of this directory with its settings; other flags override them."""
    on_task_failure: Literal["continue", "abort"] = "continue"
    """If a task's own code keeps failing after its first rollout: continue with the other tasks and exit with code 1 at
    the end, or abort at once. Both save."""
    seed: int = 0
    """Seed of environments, networks, exploration and sampling."""
    deterministic: bool = False
    """Run in lockstep, which is slower: the same seed gives the same data, weights and metrics."""
    address: str | None = None
    """Address of a Ray cluster ('auto' finds one); by default a new local Ray."""
    device: str = "cpu"
    """Device of the learner: cpu, cuda, cuda:0, ..."""
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require(bool(self.tasks), "--tasks: name at least one task, for example --tasks humanoid")
        require_at_least(self, 1, "workers", "envs_per_task", "total_frames")
        # A step takes two rows if its observation differs from the next observation of the step before.
        rows = 2 * self.copies() * self.collector.rollout_steps
        require(
            self.replay.capacity_rows >= rows,
            f"--replay.capacity-rows {self.replay.capacity_rows}: one rollout of {self.copies()} copies x "
            f"{self.collector.rollout_steps} steps takes up to {rows}, so at least that many are needed",
        )
        self.learner.check_device(self.device)
        require(0 <= self.seed < 2**32, f"--seed {self.seed}: must be between 0 and 2**32 - 1")

    def copies(self, tasks: int = 1) -> int:
        """Return the number of copies per task and collector in a run of this many tasks."""
        return self.envs_per_task or max(1, min(16, 256 // tasks) // self.workers)
