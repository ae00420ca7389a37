"""Multi-task soft actor-critic: maximise return plus entropy, weighted by a temperature per task.

Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", with the additions listed in `docs/learning.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.data.specs import TaskSpec
from mtray.learn import losses
from mtray.learn.actor_critic import ActorCritic, Gradient
from mtray.learn.execution.failures import mean_by_task
from mtray.learn.execution.parameters import load_moments, make_adamw, step
from mtray.policy.layers import select_for_rows, select_tasks


class SoftActorCritic(ActorCritic):
    """Policy, critic and a learned temperature per task.

    Attributes:
        log_temperature: [T].
    """

    _OF_ACTOR = (*ActorCritic._OF_ACTOR, "entropy")

    def __init__(
        self, specs: Sequence[TaskSpec], network: NetworkConfig, config: LearnerConfig, device: str, seed: int
    ) -> None:
        """Create everything on the device; equal seeds give equal numbers."""
        super().__init__(specs, network, config, device, seed)
        self.log_temperature = torch.full((len(specs),), float(config.initial_temperature), device=self.device).log()
        self._temperature_optimiser = make_adamw(
            [self.log_temperature], config.temperature_learning_rate, betas=(0.5, 0.999), skip=self.failures.skip
        )
        self._distribution = self._compile(self.policy.distribution)
        self._tanh_gaussian_sample = self._compile(losses.tanh_gaussian_sample)

    @property
    def temperature(self) -> Tensor:
        """[T], weight of the entropy bonus in units of each task's reward."""
        return self.log_temperature.exp()

    def _entropy_weight(self, ids: Tensor | None) -> Tensor:
        """Return the temperatures [n, 1], divided by the reward scales."""
        return select_for_rows(self.temperature, ids) / select_for_rows(self.reward_scale, ids)

    def _sample(self, observation: Tensor, noise: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return actions [n, B, act] in (-1, 1) and their log densities [n, B]."""
        with self._autocast():
            mean, log_std = self._distribution(observation, ids)
        mean, log_std = mean.float(), log_std.float()
        mask = select_for_rows(self.policy.action_mask, ids)
        action, log_density = self._tanh_gaussian_sample(mean, log_std, noise, mask)
        return action, log_density

    def _next_action(self, observation: Tensor, noise: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        action, log_density = self._sample(observation, noise, ids)
        return action, -self._entropy_weight(ids) * log_density

    def actor_gradient(self, observation: Tensor, noise: Tensor, ids: Tensor | None, rows: int) -> Gradient:
        """See `ActorCritic`."""
        action, log_density = self._sample(observation, noise, ids)
        outputs, value, gradient = self._value(observation, action, ids)
        entropy_weight = self._entropy_weight(ids).expand_as(log_density)
        share = self._actor_share(rows, ids)
        gradients = [gradient.mul_(-share.unsqueeze(-1)), entropy_weight * share]
        tensors = self.actor_group.differentiate([outputs, log_density], gradients)
        log_density = log_density.detach()
        sums = {"actor_loss": entropy_weight * log_density - value, "value": value, "entropy": -log_density}
        return Gradient(tensors, {name: each.sum(-1) / rows for name, each in sums.items()})

    @torch.no_grad()
    def optimise_actor(self, gradient: Gradient, ids: Tensor | None) -> None:
        """See `ActorCritic`; then make the step of the temperatures."""
        super().optimise_actor(gradient, ids)
        rise = losses.temperature_gradient(
            select_tasks(self.log_temperature, ids), gradient.means["entropy"], select_tasks(self.target_entropy, ids)
        )
        rise, _ = mean_by_task(rise, ids, len(self.specs))
        step(self._temperature_optimiser, [self.log_temperature], [rise])

    def metrics(self) -> dict[str, Tensor]:
        """Return the metrics of `ActorCritic`, entropy and temperature."""
        return {**super().metrics(), "temperature": self.temperature}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `ActorCritic` and of the temperatures."""
        return {
            **super().state_dict(),
            "log_temperature": self.log_temperature,
            "temperature_optimiser": self._temperature_optimiser.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(state)
        self.log_temperature.copy_(state["log_temperature"])
        load_moments(self._temperature_optimiser, state["temperature_optimiser"])
