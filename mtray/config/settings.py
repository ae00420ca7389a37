"""Every setting of a run: frozen, nested, one group per part, saved with the run.

The command line is made of these classes: a field's text is its help. Units are in the names. Nothing is computed
here but what follows from the fields; validation names the value, the limit and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mtray.config.checks import is_positive, is_positive_integer, require
from mtray.config.types import convert_fields


@dataclass(frozen=True, kw_only=True)
class CollectorConfig:
    """What a collector does between two pushes."""

    rollout_steps: int = 16
    """Steps of every copy in one rollout, which is one push."""
    action_repeat: int = 2
    """Control steps (frames) per agent step, with the same action; the rewards are summed. It holds for the tasks of
    dm_control's suite; other tasks repeat actions themselves or not."""
    tasks_each: int = 8
    """Tasks up to which every collector steps every task. More are spread over the collectors by measured cost, if the
    collectors step them themselves (host inline)."""
    pushes_in_flight: int = 1
    """Pushes under way to the replay while the next rollout is stepped."""
    noise_steps: int = 16
    """Most steps that exploration noise is held before it is drawn anew; 1 for fresh noise at every step."""
    random_episodes: float = 1 / 8
    """Share of a task's episodes that are stepped with random actions while the policy's own return, on average, no
    more than the best of those; four times as many, up to half, where the policy's all return the same. The returns of
    random ones are not among those that are shown."""
    random_steps: int = 64
    """Most steps that these random actions are held before they are drawn anew; 1 for a fresh one at every step."""
    push_timeout_seconds: float = 60.0
    """Time after which an unanswered push is sent again, under the same id."""
    max_restarts: int = 3
    """Times in a row, with less than a minute between, that a collector is replaced because a task's own code failed;
    the next time the run ends with its error. Processes that die are replaced without end."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require(self.action_repeat >= 1, f"--collector.action-repeat {self.action_repeat}: at least 1 is needed")
        require(self.tasks_each >= 1, f"--collector.tasks-each {self.tasks_each}: at least 1 is needed")
        require(self.rollout_steps >= 1, f"--collector.rollout-steps {self.rollout_steps}: at least 1 is needed")
        require(self.pushes_in_flight >= 1, f"--collector.pushes-in-flight {self.pushes_in_flight}: at least 1")
        require(self.noise_steps >= 1, f"--collector.noise-steps {self.noise_steps}: at least 1 is needed")
        share = self.random_episodes
        require(0 <= share <= 1, f"--collector.random-episodes {share}: a share, from 0 to 1, is needed")
        require(self.random_steps >= 1, f"--collector.random-steps {self.random_steps}: at least 1 is needed")
        require(self.push_timeout_seconds > 0, "--collector.push-timeout-seconds must be above 0")
        require(self.max_restarts >= 0, f"--collector.max-restarts {self.max_restarts}: can't be negative")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The rings: one per task, each of its task's own width."""

    capacity_rows: int = 1_000_000
    """Rows a task's ring holds. A transition is one row; each rollout and each episode's end adds a row to hold
    its last observation (6 percent at the default rollout length)."""
    save: bool = True
    """Write the rings into checkpoints, so that a resumed run continues with its data."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require(self.capacity_rows >= 2, f"--replay.capacity-rows {self.capacity_rows}: at least 2 are needed")


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
    """Normalise what comes out of the actor's backbone."""
    critic_output_norm: bool = True
    """Normalise what comes out of the critic's backbone."""
    critics: int = 1
    """Critics, each with a backbone and heads of its own; of several the most pessimistic counts, row by row."""
    embedding_size: int = 32
    """Width of the learned task embedding that conditions the backbones; 0 for none."""
    adapter_size: int = 32
    """Linear features of its own inputs that each task learns for the backbones, beside the inputs; 0 for none."""
    head_layers: int = 0
    """Hidden layers of each task's head, as wide as its backbone."""
    head_reads_observation: bool = False
    """Feed each head its task's own observation beside the backbone's output, as the TorchRL tutorial does."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        for name in ("actor_width", "critic_width", "critics"):
            require(getattr(self, name) >= 1, f"--network.{name.replace('_', '-')} must be at least 1")
        for name in ("actor_blocks", "critic_blocks", "embedding_size", "adapter_size", "head_layers"):
            require(getattr(self, name) >= 0, f"--network.{name.replace('_', '-')} can't be negative")


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Multi-task actor-critic with a categorical critic."""

    algorithm: Literal["sac", "td3"] = "sac"
    """sac: a policy that is paid for its entropy. td3: one action, with noise around it when data are collected and in
    targets; --network.critics 2 gives it the two critics of its paper."""

    batch_rows: int | None = None
    """Rows of one update, equally many of every task unless --learner.row-weights says otherwise; by default 384, or 16
    of every task where that is more."""
    updates_per_step: float = 4.0
    """Updates per agent step of every task; 0 collects without learning."""
    warmup_steps: int = 1000
    """Agent steps of every task before the first update; their actions are uniformly random."""
    slack_steps: int | None = None
    """Agent steps of every task that collectors may be ahead of the learner; by default a quarter more than are under
    way at once."""
    learning_rate: float = 3e-4
    """Of actor and critic (AdamW)."""
    temperature_learning_rate: float = 1e-3
    """Of the temperatures (Adam)."""
    weight_decay: float = 1e-2
    """AdamW's."""
    n_step: int = 1
    """Rewards that a target sums before the critic's value: up to so many, fewer where an episode or a rollout ends."""
    polyak: float = 0.01
    """Share of the critic that enters its target with every update."""
    actor_polyak: float = 0.002
    """Share of the actor that enters, with every update of it, the average that is saved and evaluated; 1 for the actor
    as it is. Collectors act with the actor itself."""
    actor_period: int = 2
    """Updates of the critic per update of actor and temperatures."""
    atoms: int = 51
    """Atoms of the critic's distribution; 1 for a scalar critic, which is trained by the squared error."""
    value_limit: float = 10.0
    """The atoms span [-value_limit, value_limit], in scaled returns."""
    headroom: float = 3.0
    """How many times as far as the largest return seen the support reaches, but never farther than the largest reward
    seen, at every step for ever, would."""
    initial_temperature: float = 0.1
    """Of every task, in units of its raw reward; sac's."""
    action_noise: float = 0.2
    """Standard deviation of the noise around td3's actions, in half their range."""
    loss_weights: tuple[str, ...] = ()
    """Tasks whose losses count more or less than the others', whose weight is 1: cheetah-run=2 walker-walk=0.5."""
    row_weights: tuple[str, ...] = ()
    """Tasks with more rows in every update than the others, whose weight is 1; whole numbers: cheetah-run=2."""
    batches_per_call: int = 16
    """Batches fetched from the replay in one call."""
    calls_ahead: int = 2
    """Calls to the replay under way or waiting, so that the learner does not wait for them."""
    slice_seconds: float = 0.5
    """Time after which the learner gives out new weights."""
    threads: int | None = None
    """Threads of one update on the CPU; by default one or two, whichever is found to be quicker as the run goes; one
    with --deterministic."""
    precision: Literal["float32", "tfloat32", "bfloat16"] | None = None
    """What the networks' products are computed in: float32; tfloat32, a GPU's float32 with 10 of 23 bits; bfloat16. By
    default tfloat32 on a GPU and float32 on the CPU. Parameters, losses and optimisers are float32 always."""
    graphs: bool | None = None
    """Record the update once and replay its kernels: as CUDA graphs on a GPU, one after another on the CPU. By default
    wherever it can be recorded, which on the CPU it can't where --learner.compile is given."""
    compile: str | None = None
    """Backend of torch.compile for networks and losses, for example inductor. On the CPU that halves the speed."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        for name in ("batch_rows", "threads"):
            count = getattr(self, name)
            require(count is None or count >= 1, f"--learner.{name.replace('_', '-')} {count}: at least 1 is needed")
        for name in ("actor_period", "n_step", "batches_per_call", "calls_ahead"):
            require(getattr(self, name) >= 1, f"--learner.{name.replace('_', '-')} must be at least 1")
        for name in (
            "learning_rate",
            "temperature_learning_rate",
            "value_limit",
            "initial_temperature",
            "action_noise",
            "slice_seconds",
        ):
            require(getattr(self, name) > 0, f"--learner.{name.replace('_', '-')} must be above 0")
        require(self.slack_steps is None or self.slack_steps >= 0, "--learner.slack-steps can't be negative")
        require(self.headroom >= 1, f"--learner.headroom {self.headroom}: at least 1 is needed")
        for name in ("updates_per_step", "warmup_steps", "weight_decay"):
            require(getattr(self, name) >= 0, f"--learner.{name.replace('_', '-')} can't be negative")
        require(self.atoms >= 1, f"--learner.atoms {self.atoms}: at least 1 is needed, for a scalar critic")
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
        """Deviation of the noise around the policy's actions, None where the policy learns it."""
        return self.action_noise if self.algorithm == "td3" else None

    def can_record(self, device: str) -> bool:
        """Return whether updates on this device can be recorded; code compiled for the CPU calls no torch kernels."""
        return device.startswith("cuda") or (device == "cpu" and not self.compile)

    def check_device(self, device: str) -> None:
        """Raise a UsageError if the device can't compute in the given precision or record updates."""
        require(
            self.can_record(device) or not self.graphs,
            f"--learner.graphs True with --learner.compile {self.compile} on {device}: updates can be recorded on a "
            "CUDA device, or on the CPU where they are not compiled; leave one of them out",
        )
        require(
            device.startswith("cuda") or self.precision != "tfloat32",
            f"--learner.precision tfloat32 on {device}: only GPUs have it; give float32 or bfloat16",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the run is watched and saved."""

    log_seconds: float = 5.0
    """Time between two lines of metrics.jsonl."""
    checkpoint_frames: int = 100_000
    """Frames between two checkpoints; one more is written at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    cpus_per_actor: float | None = None
    """Ray's logical CPUs that each actor asks for; by default 1, or less where the cluster has too few now. Give 1
    where an autoscaler shall bring machines."""
    start_timeout_seconds: float = 180.0
    """Time within which every actor must answer for the first time."""
    give_up_seconds: float = 600.0
    """Time for which an actor can fail to start, or wait for room in the cluster, before the run ends; it goes on if
    others step its tasks."""
    call_timeout_seconds: float = 300.0
    """Time within which an actor's call must end; one that does not ends the run with the actor's name."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require(self.cpus_per_actor is None or self.cpus_per_actor >= 0, "--run.cpus-per-actor can't be negative")
        for name in ("log_seconds", "start_timeout_seconds", "call_timeout_seconds", "give_up_seconds"):
            require(getattr(self, name) > 0, f"--run.{name.replace('_', '-')} must be above 0")
        for name in ("checkpoint_frames", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"--run.{name.replace('_', '-')} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train one policy on many tasks."""

    tasks: tuple[str, ...] = ("humanoid-stand", "humanoid-walk")
    """Tasks, task sets (humanoid, walker, dmc for all benchmarking tasks of the suite, ...) or package.module:maker."""
    workers: int = 2
    """Collectors. Each is a process that steps every task (see --collector.tasks-each), and with --host parallel one
    more process per task."""
    envs_per_task: int | None = None
    """Copies of each task per collector; by default so many that all collectors together have 16 of each, or fewer
    where that would be more than 256 simulators."""
    engine: str = "mujoco"
    """What simulates tasks that do not name their engine: mujoco (dm_control's suite, stepped in batches), dm_control
    (the same numbers from dm_control's own loop), envpool."""
    host: Literal["auto", "parallel", "inline"] = "auto"
    """What steps a collector's tasks: a process per task (torchrl's ParallelEnv), or the collector itself; auto chooses
    parallel where that puts more cores to work."""
    total_frames: int = 1_000_000
    """Control steps of all tasks after which the run is finished."""
    run_dir: Path | None = None
    """Folder of this run, new or empty; by default runs/<date and time>."""
    resume: Path | None = None
    """Continue the run in this folder, with its settings; those given beside it win."""
    seed: int = 0
    """Seed of everything."""
    deterministic: bool = False
    """Run in lockstep: the same seed gives the same data, weights and metrics, at the cost of speed."""
    address: str | None = None
    """Address of a Ray cluster ('auto' finds one); by default a Ray of the run's own on this machine."""
    device: str = "cpu"
    """Where the learner computes: cpu, cuda, cuda:0, ..."""
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require(bool(self.tasks), "--tasks: name at least one task, for example --tasks humanoid")
        require(self.workers >= 1, f"--workers {self.workers}: at least 1 collector is needed")
        require(
            self.envs_per_task is None or self.envs_per_task >= 1,
            f"--envs-per-task {self.envs_per_task}: at least 1 copy is needed",
        )
        require(self.total_frames >= 1, f"--total-frames {self.total_frames}: at least 1 is needed")
        # Where every observation differs from the one reached before, a step takes two rows.
        rows = 2 * self.copies() * self.collector.rollout_steps
        require(
            self.replay.capacity_rows >= rows,
            f"--replay.capacity-rows {self.replay.capacity_rows}: one rollout of {self.copies()} copies x "
            f"{self.collector.rollout_steps} steps takes up to {rows}, so at least that many are needed",
        )
        self.learner.check_device(self.device)
        require(0 <= self.seed < 2**32, f"--seed {self.seed}: must be between 0 and 2**32 - 1")

    def copies(self, tasks: int = 1) -> int:
        """Copies of each of so many tasks, per collector."""
        return self.envs_per_task or max(1, min(16, 256 // tasks) // self.workers)
