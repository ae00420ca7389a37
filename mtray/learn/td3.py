"""Multi-task TD3: a deterministic policy with Gaussian noise added to its actions.

Fujimoto, van Hoof, Meger 2018, "Addressing function approximation error in actor-critic methods": noise on the next
action smooths the critic's targets, the actor is updated less often than the critic, and the lower value of two critics
(`--network.critics 2`) is used. Two differences: the next action is the actor's, not that of a target actor, as in soft
actor-critic; and critics are categorical, as in FastTD3 (Seo et al. 2025).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mtray.learn.actor_critic import ActorCritic, Gradient
from mtray.policy.layers import select_for_rows

# Limit of the noise in targets, in standard deviations: the paper clips noise of deviation 0.2 at 0.5.
_NOISE_LIMIT = 2.5


class TD3(ActorCritic):
    """Policy and critic, without entropy or temperature."""

    @property
    def temperature(self) -> Tensor:
        """[T] zeros: there is no entropy bonus."""
        return torch.zeros_like(self.discount)

    @functools.cached_property
    def _outputs_of(self) -> Any:
        return self._compile(self.policy.outputs)

    def _action(self, observation: Tensor, ids: Tensor | None) -> Tensor:
        """Return actions [n, B, act] in (-1, 1), zero where padded."""
        with self._autocast():
            outputs = self._outputs_of(observation, ids)
        action: Tensor = torch.tanh(outputs.float()) * select_for_rows(self.policy.action_mask, ids)
        return action

    def _next_action(self, observation: Tensor, noise: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        action = self._action(observation, ids)
        noise = noise.clamp(-_NOISE_LIMIT, _NOISE_LIMIT)
        noise.mul_(select_for_rows(self.policy.action_mask, ids))
        return action.add_(noise, alpha=self.config.action_noise).clamp_(-1, 1), action.new_zeros(action.shape[:-1])

    def actor_gradient(self, observation: Tensor, noise: Tensor, ids: Tensor | None, rows: int) -> Gradient:
        """See `ActorCritic`; the actions have no noise."""
        outputs, value, gradient = self._value(observation, self._action(observation, ids), ids)
        gradient.mul_(-self._actor_share(rows, ids).unsqueeze(-1))
        mean = value.sum(-1) / rows
        return Gradient(self.actor_group.differentiate([outputs], [gradient]), {"actor_loss": -mean, "value": mean})
