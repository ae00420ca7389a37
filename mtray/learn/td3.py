"""Multi-task TD3: a policy of one action, with noise around it.

Fujimoto, van Hoof, Meger 2018, "Addressing function approximation error in actor-critic methods": the critic's targets
are smoothed by noise around the next action, the actor moves less often than the critic, and of two critics
(`--network.critics 2`) the most pessimistic counts. Unlike theirs the next action is the actor's own, not that of a
lagging copy, as in soft actor-critic; and critics are categorical, as in FastTD3 (Seo et al. 2025).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtray.learn.actor_critic import ActorCritic

# Of a target's noise, in its standard deviations: the paper's 0.5 of 0.2.
_NOISE_LIMIT = 2.5


class TD3(ActorCritic):
    """Policy and critic; no entropy, no temperature."""

    @property
    def temperature(self) -> Tensor:
        """[T] zeros: entropy counts nothing."""
        return torch.zeros_like(self.discount)

    @functools.cached_property
    def _outputs_of(self) -> Any:
        return self._compiled(self.policy.outputs)

    def _action(self, observation: Tensor, ids: Tensor | None) -> Tensor:
        """[n, B, act] in (-1, 1), zero where padded."""
        with self._autocast():
            outputs = self._outputs_of(observation, ids)
        action: Tensor = torch.tanh(outputs.float()) * self.policy.pick(self.policy.action_mask, ids)
        return action

    def _next_action(self, observation: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        action = self._action(observation, ids)
        noise = torch.empty_like(action).normal_(generator=self.generator).clamp_(-_NOISE_LIMIT, _NOISE_LIMIT)
        noise.mul_(self.policy.pick(self.policy.action_mask, ids))
        return action.add_(noise, alpha=self.config.action_noise).clamp_(-1, 1), action.new_zeros(action.shape[:-1])

    def _update_actor(self, tasks: Sequence[str], observation: Tensor, ids: Tensor | None) -> None:
        """Move the actor to what the critic values more."""
        outputs, value, gradient = self._value(observation, self._action(observation, ids), ids)
        gradient.mul_(-self._actor_share(value, ids).unsqueeze(-1))
        self._step_actor([outputs], [gradient], -value.mean(-1), value, tasks, ids)
