"""The trainer: an algorithm, its scaling, its updates, and versioned snapshots of its policy.

Input: batches over tasks, and the replay's statistics. Output: versioned weights. Runs in the learner's actor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.data.batch import Batch
from mtray.data.specs import TaskSpec
from mtray.data.statistics import TaskStatistics
from mtray.learn.actor_critic import ActorCritic
from mtray.learn.execution.runner import UpdateRunner
from mtray.learn.sac import SoftActorCritic
from mtray.learn.scaling import Scaling
from mtray.learn.td3 import TD3
from mtray.policy import weights as weights_module
from mtray.policy.layout import Weights


class Trainer:
    """Trains an actor-critic algorithm over many tasks."""

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        network: NetworkConfig,
        config: LearnerConfig,
        *,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        """Create everything on the device; equal seeds give equal numbers."""
        self.specs = tuple(specs)
        self.config = config
        self.device = torch.device(device)
        algorithm = TD3 if config.algorithm == "td3" else SoftActorCritic
        self.algorithm: ActorCritic = algorithm(specs, network, config, device, seed)
        self.policy, self.critic, self.target = self.algorithm.policy, self.algorithm.critic, self.algorithm.target
        self.reward_scale = self.algorithm.reward_scale
        self.scaling = Scaling(self.algorithm)
        self._runner = UpdateRunner(self.algorithm)
        self.version = 0

    @property
    def updates(self) -> int:
        """Number of updates."""
        return self._runner.updates

    def set_statistics(self, statistics: Mapping[str, TaskStatistics]) -> None:
        """Scale observations and rewards by each task's statistics: see `Scaling.set_statistics`."""
        self.scaling.set_statistics(statistics, is_trained=self.updates > 0)

    def update(self, batch: Batch | TensorDictBase) -> None:
        """Make one update on a batch over any subset of tasks, dense or as a lazy stack.

        Raises:
            SchemaError: the batch does not fit its tasks.
            NotFiniteError: as `UpdateRunner.update` does.
        """
        self._runner.update(batch if isinstance(batch, Batch) else Batch.from_stack(batch, self.specs))

    def set_threads(self, count: int) -> None:
        """Compute updates on the CPU with so many threads; their number decides how sums are rounded."""
        self._runner.set_threads(count)

    def finish_compiling(self) -> bool:
        """Compile gradients for the CPU now, if that was asked for, and wait; return whether they are compiled."""
        return self._runner.finish_compiling()

    def check(self) -> None:
        """Raise the first deferred failure of updates, if any: see `UpdateRunner.check`."""
        self._runner.check()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the finite metrics of each task: those of `ActorCritic.metrics` and its share of the updates."""
        columns = {**self.algorithm.metrics(), "update_share": self._runner.task_updates / max(1, self.updates)}
        rows = torch.stack(list(columns.values()), 1).tolist()
        return {
            spec.name: {name: value for name, value in zip(columns, row, strict=True) if math.isfinite(value)}
            for spec, row in zip(self.specs, rows, strict=True)
        }

    def weights(self) -> Weights:
        """Return a snapshot of the policy under a new version (0 before the first update).

        Raises:
            NotFiniteError: as `check` does.
            RunError: a value of the policy is not finite.
        """
        self.check()
        snapshot = weights_module.snapshot(self.policy, self.version + 1 if self.updates else 0)
        # The next is higher than what an earlier process may have sent, though nothing was learned yet.
        self.version = max(self.version, snapshot.version)
        return snapshot

    def average(self) -> Weights:
        """Return a snapshot of the averaged policy; its version is the last of `weights`.

        Raises:
            RunError: a value is not finite.
        """
        return weights_module.snapshot(self.algorithm.average, self.version)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of training.

        Raises:
            NotFiniteError: as `check` does.
        """
        self.check()
        parts = self.algorithm, self._runner, self.scaling
        return {name: value for part in parts for name, value in part.state_dict().items()} | {"version": self.version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for part in (self.algorithm, self._runner, self.scaling):
            part.load_state_dict(state)
        self.version = state["version"]
