"""The learner: an algorithm, what it scales by, and the weights it gives out.

Enters: batches over tasks and the statistics the replay keeps. Leaves: versioned weights. Runs in one actor of the
cluster (or in a plain test). Every task has a discount, a temperature and a reward scale of its own; rewards are
divided by the scale when a batch is used, so old rows never go stale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mtray.config.settings import LearnerConfig, NetworkConfig
from mtray.data.batch import Batch
from mtray.data.specs import TaskSpec
from mtray.data.statistics import TaskStatistics
from mtray.learn import losses
from mtray.learn.actor_critic import ActorCritic
from mtray.learn.sac import SoftActorCritic
from mtray.learn.td3 import TD3
from mtray.policy import weights as weights_module
from mtray.policy.weights import Weights

# A reward scale is taken over once it has moved by this much. Stretching a head's logits blurs them a little, so not at
# every step of a scale that creeps.
_SCALE_STEP = 0.02


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
        self.largest_return = torch.zeros(len(specs), device=self.device)
        self.possible_return = torch.zeros(len(specs), device=self.device)
        self.reward_scale.copy_(self._scale_of(self.possible_return))
        self.version = 0

    @property
    def updates(self) -> int:
        """Made so far."""
        return self.algorithm.updates

    def set_statistics(self, statistics: Mapping[str, TaskStatistics]) -> None:
        """Take over what the replay knows of each task: the inputs' mean and deviation, the largest reward and return.

        Where the reward scale follows, the critic's heads keep their values in rewards (van Hasselt et al. 2016,
        "Learning values across many orders of magnitude", PopArt, here for a categorical head).
        """
        for index, spec in enumerate(self.specs):
            known = statistics.get(spec.name)
            if known is None or known.count < 2:
                continue
            width = spec.observation_size
            deviation = torch.from_numpy((known.square / (known.count - 1) + 1e-6) ** 0.5)
            self.policy.mean[index, :width] = torch.from_numpy(known.mean).to(self.policy.mean)
            self.policy.scale[index, :width] = (1 / deviation).to(self.policy.scale)
            self.largest_return[index] = known.largest_return
            self.possible_return[index] = losses.possible_return(
                known.largest_return, known.largest_reward, spec.discount, self.config.headroom
            )
        wanted = self._scale_of(self.possible_return)
        self.algorithm.reach.copy_(wanted / self._scale_of(self.largest_return))
        if not self.updates:
            self.reward_scale.copy_(wanted)
            return
        ratio = wanted / self.reward_scale
        moved = (ratio.log().abs() > _SCALE_STEP).nonzero().squeeze(1)
        if len(moved):
            for critic in (self.critic, self.target):
                critic.rescale(moved, ratio[moved], self.algorithm.kind)
            self.reward_scale[moved] = wanted[moved]

    def _scale_of(self, returns: Tensor) -> Tensor:
        known, limit = self.algorithm, self.config.value_limit
        return losses.reward_scale(returns, known.temperature, known.target_entropy, known.discount, limit)

    def update(self, batch: Batch | TensorDictBase) -> None:
        """One update on a batch over any subset of tasks, dense or as a lazy stack.

        Raises:
            SchemaError: the batch does not fit its tasks.
            NotFiniteError: as `ActorCritic.update` does.
        """
        self.algorithm.update(batch if isinstance(batch, Batch) else Batch.from_stack(batch, self.specs))

    def check(self) -> None:
        """Raise for what was not finite in the updates made so far: see `ActorCritic.check`."""
        self.algorithm.check()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Task to what the last update that it was in saw of it (`ActorCritic.metrics`), without what none saw."""
        columns = self.algorithm.metrics()
        rows = torch.stack(list(columns.values()), 1).tolist()
        return {
            spec.name: {name: value for name, value in zip(columns, row, strict=True) if math.isfinite(value)}
            for spec, row in zip(self.specs, rows, strict=True)
        }

    def weights(self) -> Weights:
        """A snapshot of the policy under a new version (0 before the first update).

        Raises:
            RunError: a number is not finite; no such weights are given out.
        """
        self.check()
        version = self.version + 1 if self.updates else 0
        snapshot = weights_module.snapshot(self.policy, version)
        self.version = version
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on.

        Raises:
            NotFiniteError: as `update` does.
        """
        self.check()
        return {
            **self.algorithm.state_dict(),
            "largest_return": self.largest_return,
            "possible_return": self.possible_return,
            "version": self.version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.algorithm.load_state_dict(state)
        self.largest_return = state["largest_return"].to(self.device)
        self.possible_return = state["possible_return"].to(self.device)
        self.version = state["version"]
