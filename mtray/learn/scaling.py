"""What each task's observations and rewards are scaled by, from the statistics that the replay keeps.

Observations are normalised by their running mean and deviation. Rewards are divided by a scale that brings a task's
returns into the critic's support. Both are applied when a batch is used, so rows in the replay never go stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtray.data.statistics import TaskStatistics
from mtray.learn.actor_critic import ActorCritic

# A reward scale is replaced once it has moved by this much. Stretching a head's logits blurs them a little, so a scale
# that grows slowly is not followed at every step.
_SCALE_STEP = 0.02


def possible_return(largest_return: float, largest_reward: float, discount: float, headroom: float) -> float:
    """Return a bound on a task's absolute discounted return, from the largest return and reward seen.

    ``headroom`` times that return, at least 1, but no more than that reward at every step for ever. A support that ends
    at the largest return seen holds the critic back: every better return is clipped to its end, where actions no longer
    differ.
    """
    return max(largest_return, min(headroom * largest_return, largest_reward / (1 - discount)))


def reward_scale(
    possible_return: Tensor, temperature: Tensor, target_entropy: Tensor, discount: Tensor, value_limit: float
) -> Tensor:
    """Return the divisor [T] that brings each task's soft returns into the critic's support.

    (possible return + temperature * |target entropy| / (2 (1 - discount))) / value limit; Nauman et al. 2025, "Bigger,
    regularized, categorical" (BRC).

    Args:
        possible_return: [T], see `possible_return`.
        temperature: [T].
        target_entropy: [T].
        discount: [T].
        value_limit: the support's end.
    """
    bonus = temperature * target_entropy.abs() / (2 * (1 - discount))
    return ((possible_return + bonus) / value_limit).clamp_min(1e-3)


class Scaling:
    """Sets an algorithm's input statistics, reward scales and actor loss scales.

    Attributes:
        largest_return: [T], largest absolute discounted return seen.
        possible_return: [T], see `possible_return`.
    """

    def __init__(self, algorithm: ActorCritic) -> None:
        """Set the reward scales of tasks without statistics."""
        self._algorithm = algorithm
        self.largest_return = torch.zeros(len(algorithm.specs), device=algorithm.device)
        self.possible_return = torch.zeros(len(algorithm.specs), device=algorithm.device)
        algorithm.reward_scale.copy_(self._scale_of(self.possible_return))

    def set_statistics(self, statistics: Mapping[str, TaskStatistics]) -> None:
        """Set every scale from each task's statistics.

        When a reward scale changes, the critic's heads are rescaled so that values in rewards are preserved (van
        Hasselt et al. 2016, "Learning values across many orders of magnitude", PopArt, here for a categorical head).
        """
        algorithm = self._algorithm
        for index, spec in enumerate(algorithm.specs):
            seen = statistics.get(spec.name)
            if seen is None or seen.count < 2:
                continue
            width, policy = spec.observation_size, algorithm.policy
            deviation = torch.from_numpy((seen.square / (seen.count - 1) + 1e-6) ** 0.5)
            policy.mean[index, :width] = torch.from_numpy(seen.mean).to(policy.mean)
            policy.scale[index, :width] = (1 / deviation).to(policy.scale)
            self.largest_return[index] = seen.largest_return
            self.possible_return[index] = possible_return(
                seen.largest_return, seen.largest_reward, spec.discount, algorithm.config.headroom
            )
        scale = self._scale_of(self.possible_return)
        algorithm.actor_loss_scale.copy_(scale / self._scale_of(self.largest_return))
        if not algorithm.updates:
            algorithm.reward_scale.copy_(scale)
            return
        ratio = scale / algorithm.reward_scale
        moved = (ratio.log().abs() > _SCALE_STEP).nonzero().squeeze(1)
        if len(moved):
            for critic in (algorithm.critic, algorithm.target):
                critic.rescale(moved, ratio[moved], algorithm.value_kind.rescale)
            algorithm.reward_scale[moved] = scale[moved]

    def _scale_of(self, returns: Tensor) -> Tensor:
        algorithm = self._algorithm
        return reward_scale(
            returns,
            algorithm.temperature,
            algorithm.target_entropy,
            algorithm.discount,
            algorithm.config.value_limit,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the returns that scales follow from."""
        return {"largest_return": self.largest_return, "possible_return": self.possible_return}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.largest_return.copy_(state["largest_return"])
        self.possible_return.copy_(state["possible_return"])
