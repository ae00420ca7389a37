"""The trainer: an algorithm, its scaling, and versioned snapshots of its policy.

Enters: batches over tasks and the statistics the replay keeps. Leaves: versioned weights. Runs in the learner's actor
(or in a plain test).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from mtray.config.settings import LearnerConfig, NetworkConfig
from mtray.data.batch import Batch
from mtray.data.specs import TaskSpec
from mtray.data.statistics import TaskStatistics
from mtray.learn.actor_critic import ActorCritic
from mtray.learn.sac import SoftActorCritic
from mtray.learn.scaling import Scaling
from mtray.learn.td3 import TD3
from mtray.policy import weights as weights_module
from mtray.policy.weights import Weights


class Trainer:
    """An actor-critic algorithm over many tasks, fed with batches and statistics."""

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        network: NetworkConfig,
        config: LearnerConfig,
        *,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        """Build everything on the device; the same seed gives the same numbers."""
        self.specs = tuple(specs)
        self.config = config
        self.device = torch.device(device)
        algorithm = TD3 if config.algorithm == "td3" else SoftActorCritic
        self.algorithm: ActorCritic = algorithm(specs, network, config, device=device, seed=seed)
        self.policy, self.critic, self.target = self.algorithm.policy, self.algorithm.critic, self.algorithm.target
        self.reward_scale = self.algorithm.reward_scale
        self.scaling = Scaling(self.algorithm)
        self.version = 0

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self.algorithm.updates

    def set_statistics(self, statistics: Mapping[str, TaskStatistics]) -> None:
        """Scale observations and rewards by what the replay knows of each task: see `Scaling.set_statistics`."""
        self.scaling.set_statistics(statistics)

    def update(self, batch: Batch | TensorDictBase) -> None:
        """Make one update on a batch over any subset of tasks, dense or as a lazy stack.

        Raises:
            SchemaError: the batch does not fit its tasks.
            NotFiniteError: as `ActorCritic.update` does.
        """
        self.algorithm.update(batch if isinstance(batch, Batch) else Batch.from_stack(batch, self.specs))

    def check(self) -> None:
        """Raise for a failure of earlier updates: see `ActorCritic.check`."""
        self.algorithm.check()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return task to figures of the last update that it was in (`ActorCritic.metrics`), finite ones only."""
        columns = self.algorithm.metrics()
        rows = torch.stack(list(columns.values()), 1).tolist()
        return {
            spec.name: {name: value for name, value in zip(columns, row, strict=True) if math.isfinite(value)}
            for spec, row in zip(self.specs, rows, strict=True)
        }

    def weights(self) -> Weights:
        """Return a snapshot of the policy under a new version (0 before the first update).

        Raises:
            RunError: a number of the policy is not finite.
        """
        self.check()
        version = self.version + 1 if self.updates else 0
        snapshot = weights_module.snapshot(self.policy, version)
        self.version = version
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next update depends on.

        Raises:
            NotFiniteError: as `update` does.
        """
        self.check()
        return {
            **self.algorithm.state_dict(),
            **self.scaling.state_dict(),
            "version": self.version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.algorithm.load_state_dict(state)
        self.scaling.load_state_dict(state)
        self.version = state["version"]
