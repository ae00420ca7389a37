"""Scales of each task's observations and rewards, computed from the replay's statistics.

Observations are normalised by their running mean and deviation. Rewards are divided by a scale that brings a task's
returns into the critic's support. Both are applied when a batch is used, so that rows in the replay stay valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtray.data.statistics import TaskStatistics
from mtray.learn.actor_critic import ActorCritic

# Change of a reward scale's logarithm at which the scale is replaced. Rescaling a head blurs its distribution a little,
# so small changes are collected.
_SCALE_STEP = 0.02


def possible_return(largest_return: float, largest_reward: float, discount: float, headroom: float) -> float:
    """Return a bound on a task's absolute discounted return, from the largest return and reward seen.

    That is ``headroom`` (at least 1) times the largest return, at most the return of the largest reward at every step.
    With a support that ends at the largest return seen, all better returns would be clipped to the same value.
    """
    return max(largest_return, min(headroom * largest_return, largest_reward / (1 - discount)))


def reward_scale(
    possible_return: Tensor, temperature: Tensor, target_entropy: Tensor, discount: Tensor, value_limit: float
) -> Tensor:
    """Return the divisor [T] that brings each task's soft returns into the critic's support.

    It is (possible return + temperature * |target entropy| / (2 (1 - discount))) / value limit; Nauman et al. 2025,
    "Bigger, regularized, categorical" (BRC). Tensors are [T]; the value limit is the upper end of the support.
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
        """Set the reward scales for tasks without statistics."""
        self._algorithm = algorithm
        self.largest_return = torch.zeros(len(algorithm.specs), device=algorithm.device)
        self.possible_return = torch.zeros(len(algorithm.specs), device=algorithm.device)
        algorithm.reward_scale.copy_(self._scale_of(self.possible_return))

    def set_statistics(self, statistics: Mapping[str, TaskStatistics], *, is_trained: bool) -> None:
        """Set every scale from the tasks' statistics.

        If the critic has been trained, its heads are rescaled with the reward scale, so that unnormalised values are
        preserved (van Hasselt et al. 2016, "Learning values across many orders of magnitude", PopArt; here for
        categorical heads too).
        """
        algorithm = self._algorithm
        for index, spec in enumerate(algorithm.specs):
            task = statistics.get(spec.name)
            if task is None or task.count < 2:
                continue
            width, policy = spec.observation_size, algorithm.policy
            deviation = torch.from_numpy((task.square / (task.count - 1) + 1e-6) ** 0.5)
            policy.mean[index, :width] = torch.from_numpy(task.mean).to(policy.mean)
            policy.scale[index, :width] = (1 / deviation).to(policy.scale)
            self.largest_return[index] = task.largest_return
            self.possible_return[index] = possible_return(
                task.largest_return, task.largest_reward, spec.discount, algorithm.config.headroom
            )
        scale = self._scale_of(self.possible_return)
        algorithm.actor_loss_scale.copy_(scale / self._scale_of(self.largest_return))
        if not is_trained:
            algorithm.reward_scale.copy_(scale)
            return
        ratio = scale / algorithm.reward_scale
        changed = (ratio.log().abs() > _SCALE_STEP).nonzero().squeeze(1)
        if len(changed):
            for critic in (algorithm.critic, algorithm.target):
                critic.rescale(changed, ratio[changed], algorithm.value_kind.rescale)
            algorithm.reward_scale[changed] = scale[changed]

    def _scale_of(self, returns: Tensor) -> Tensor:
        algorithm = self._algorithm
        temperature, target_entropy, discount = algorithm.temperature, algorithm.target_entropy, algorithm.discount
        return reward_scale(returns, temperature, target_entropy, discount, algorithm.config.value_limit)

    def state_dict(self) -> dict[str, Any]:
        """Return the returns that the scales are computed from."""
        return {"largest_return": self.largest_return, "possible_return": self.possible_return}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.largest_return.copy_(state["largest_return"])
        self.possible_return.copy_(state["possible_return"])
