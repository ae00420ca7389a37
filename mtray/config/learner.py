"""Settings of the networks and of learning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mtray.config.checks import (
    is_positive,
    is_positive_integer,
    require,
    require_above_zero,
    require_at_least,
    require_at_most,
)
from mtray.config.types import convert_fields

# The backend that compiles for the CPU while updates are made.
BESIDE = "inductor"
# Beyond these, one side would wait for years.
UPDATES_PER_STEP = 1e-6, 1e6


class Sizes(NamedTuple):
    """Sizes of the backbones."""

    actor_width: int = 128
    actor_blocks: int = 1
    critic_width: int = 256
    critic_blocks: int = 1


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shared backbones and per-task heads of actor and critic."""

    actor_width: int | None = None
    """Width of the actor's backbone; by default 128, or 256 on a GPU with --preset fast."""
    actor_blocks: int | None = None
    """Residual blocks of the actor's backbone; by default 1."""
    critic_width: int | None = None
    """Width of the critic's backbone; by default 256, or 512 on a GPU with --preset fast."""
    critic_blocks: int | None = None
    """Residual blocks of the critic's backbone; by default 1, or 2 on a GPU with --preset fast."""
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

    def filled(self, usual: Sizes) -> NetworkConfig:
        """Return these settings with the usual sizes in place of those that were not given."""
        gaps = {name: size for name, size in usual._asdict().items() if getattr(self, name) is None}
        return dataclasses.replace(self, **gaps)

    @property
    def sizes(self) -> Sizes:
        """The sizes; those of a CPU where none was given."""
        config = self.filled(Sizes())
        return Sizes(**{name: getattr(config, name) for name in Sizes._fields})


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Multi-task actor-critic with a categorical critic."""

    algorithm: Literal["sac", "td3"] = "sac"
    """sac: a stochastic policy with an entropy bonus. td3: a deterministic policy, with noise added in collection and
    targets; add --network.critics 2 for its paper's two critics."""

    batch_rows: int | None = None
    """Rows of one update, equally many of every task unless --learner.row-weights is given; by default as --preset
    says, or 16 per task if that is more."""
    updates_per_step: float | None = None
    """Updates per agent step taken in every task, at most: the learner waits for collectors that lag behind; 0 collects
    without learning. By default as --preset says."""
    least_updates_per_step: float | None = None
    """The same, at least: collectors wait for a learner that lags behind. By default as --preset says, or
    --learner.updates-per-step if that is given: a fixed ratio."""
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
    n_step: int | None = None
    """Rewards that a target sums before the critic's value; fewer where an episode or a rollout ends. By default as
    --preset says."""
    polyak: float = 0.01
    """Step size of the target critic's moving average, per update."""
    actor_polyak: float = 0.002
    """Step size of the actor's moving average, per update of the actor, at most. The average is saved and evaluated; 1,
    with --learner.actor-average 0, for the actor itself. Collectors act with the actor itself."""
    actor_average: float | None = None
    """Share of all updates of the actor that its moving average spans, once that is more than 1 / actor_polyak updates,
    and up to 20,000 updates; 0 keeps the step size. By default as --preset says."""
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
    balance: bool | None = None
    """Weigh the tasks' critic losses so that the gradients of their heads are equally large. By default with --preset
    fast."""
    row_weights: tuple[str, ...] = ()
    """Weights of tasks' numbers of rows per update, whole numbers, for example cheetah-run=2; 1 for all others."""
    batches_per_call: int = 16
    """Batches per call to the replay."""
    calls_ahead: int = 2
    """Prefetched calls to the replay."""
    slice_seconds: float = 0.5
    """Time between two weights versions of the learner."""
    threads: int | None = None
    """Threads of an update on the CPU; by default one, two or four, whichever is measured to be fastest during the run;
    one with --deterministic."""
    precision: Literal["float32", "tfloat32", "bfloat16"] | None = None
    """Precision of the networks' matrix products: float32, tfloat32 (GPU only, 10 bits of mantissa) or bfloat16. By
    default tfloat32 on a GPU; on the CPU bfloat16 with --preset fast if a new local Ray runs on a machine whose CPU has
    such products (AMX or AVX-512), else float32. Parameters, losses and optimisers are always float32."""
    graphs: bool | None = None
    """Record an update once and replay its kernels (CUDA graphs on a GPU). By default wherever possible, which on the
    CPU excludes other compilers than inductor."""
    compile: str | None = None
    """Backend of torch.compile for networks and losses, for example inductor; off for none. By default inductor with
    --preset fast if a new local Ray runs on a machine that has the compiler it needs, else off. For the CPU it compiles
    the gradients of updates of one thread, beside the run and within a minute or two; other backends halve the
    speed."""

    def __post_init__(self) -> None:
        """Convert and validate."""
        convert_fields(self)
        require_at_least(self, 1, "batch_rows", "n_step", "actor_period", "atoms", "headroom")
        require_at_least(self, 1, "batches_per_call", "calls_ahead", "threads")
        require_at_least(self, 0, "updates_per_step", "warmup_steps", "slack_steps", "weight_decay", "actor_average")
        require_above_zero(self, "learning_rate", "temperature_learning_rate", "value_limit", "initial_temperature")
        require_above_zero(self, "action_noise", "slice_seconds")
        require_at_most(self, 1, "learning_rate", "temperature_learning_rate", "weight_decay", "actor_average")
        self._check_ratios()
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
            tasks = [text.rpartition("=")[0] for text in getattr(self, name)]
            twice = [task for task in tasks if tasks.count(task) > 1]
            require(not twice, f"--learner.{name.replace('_', '-')} gives {twice[:1]} twice: give each task once")

    def _check_ratios(self) -> None:
        lowest, highest = UPDATES_PER_STEP
        most, least = self.updates_per_step, self.least_updates_per_step
        if most:
            require(
                lowest <= most <= highest,
                f"--learner.updates-per-step {most:g}: must be 0 or from {lowest:g} to {highest:g}, or one side would "
                "wait for ever",
            )
        if least is not None and least != most:
            limit = highest if most is None else most
            require(
                lowest <= least <= limit,
                f"--learner.least-updates-per-step {least:g}: must be from {lowest:g} to "
                f"{limit:g}{'' if most is None else ', the most updates per step'}",
            )

    @property
    def policy_noise(self) -> float | None:
        """Standard deviation of the noise added to actions; None if the policy learns it (sac)."""
        return self.action_noise if self.algorithm == "td3" else None

    @property
    def keeps_ratio(self) -> bool:
        """Whether updates and frames keep one ratio, for which both sides wait for each other; once it is filled."""
        return self.least_updates_per_step == self.updates_per_step

    @property
    def compiler(self) -> str | None:
        """The backend of torch.compile; None for none."""
        return None if self.compile == "off" else self.compile

    def can_record(self, device: str) -> bool:
        """Return whether updates on this device can be recorded; code compiled for the CPU by others can't."""
        return device.startswith("cuda") or (device == "cpu" and self.compiler in (None, BESIDE))

    def compiles_beside(self, device: str) -> bool:
        """Return whether gradients are compiled while recorded updates are made; otherwise before the first update."""
        return device == "cpu" and self.compiler == BESIDE and self.graphs is not False

    def check_device(self, device: str) -> None:
        """Raise a UsageError if the device does not support the given precision or graphs."""
        require(
            self.can_record(device) or not self.graphs,
            f"--learner.graphs True with --learner.compile {self.compile} on {device}: updates can be recorded on a "
            f"CUDA device, or on the CPU if {BESIDE} or nothing compiles them; leave one of them out",
        )
        require(
            device.startswith("cuda") or self.precision != "tfloat32",
            f"--learner.precision tfloat32 on {device}: only GPUs support it; use float32 or bfloat16",
        )
