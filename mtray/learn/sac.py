"""Multi-task soft actor-critic: the policy maximises return plus entropy, at a temperature per task.

Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", with what `docs/learning.md` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtray.config.settings import LearnerConfig, NetworkConfig
from mtray.data.specs import TaskSpec
from mtray.learn import losses
from mtray.learn.actor_critic import ActorCritic
from mtray.learn.execution.failures import mean_by_task
from mtray.learn.execution.parameters import load_moments, make_adamw, step
from mtray.policy.layers import select_for_rows


class SoftActorCritic(ActorCritic):
    """Learns a temperature per task beside policy and critic.

    Attributes:
        log_temperature: [T].
    """

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
        super().__init__(specs, network, config, device=device, seed=seed)
        self.log_temperature = torch.full((len(specs),), float(config.initial_temperature), device=self.device).log()
        self._temperature_optimiser = make_adamw(
            [self.log_temperature], config.temperature_learning_rate, betas=(0.5, 0.999), skip=self._failures.skip
        )
        self._distribution = self._compiled(self.policy.distribution)
        self._tanh_gaussian_sample = self._compiled(losses.tanh_gaussian_sample)

    @property
    def temperature(self) -> Tensor:
        """[T], weight of entropy, in units of each task's reward."""
        return self.log_temperature.exp()

    def _entropy_weight(self, ids: Tensor | None) -> Tensor:
        """Return the temperatures [n, 1], scaled as rewards are."""
        return self._column(self.temperature, ids) / self._column(self.reward_scale, ids)

    def _sample(self, observation: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        with self._autocast():
            mean, log_std = self._distribution(observation, ids)
        mean, log_std = mean.float(), log_std.float()
        noise = torch.empty_like(mean).normal_(generator=self.generator)
        mask = select_for_rows(self.policy.action_mask, ids)
        action, log_density = self._tanh_gaussian_sample(mean, log_std, noise, mask)
        return action, log_density

    def _next_action(self, observation: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        action, log_density = self._sample(observation, ids)
        return action, -self._entropy_weight(ids) * log_density

    def update_actor(self, observation: Tensor, ids: Tensor | None) -> None:
        """Move the actor, then the temperatures."""
        action, log_density = self._sample(observation, ids)
        outputs, value, gradient = self._value(observation, action, ids)
        entropy_weight = self._entropy_weight(ids).expand_as(log_density)
        loss = (entropy_weight * log_density.detach() - value).mean(-1)
        share = self._actor_share(value, ids)
        gradients = [gradient.mul_(-share.unsqueeze(-1)), entropy_weight * share]
        self._step_actor([outputs, log_density], gradients, loss, value, ids)
        with torch.no_grad():
            entropy = -log_density.mean(-1)
            target = self.target_entropy if ids is None else self.target_entropy[ids]
            log_temperature = self.log_temperature if ids is None else self.log_temperature[ids]
            gradient = losses.temperature_gradient(log_temperature, entropy, target)
            gradient, _ = mean_by_task(gradient, ids, len(self.specs))
        step(self._temperature_optimiser, [self.log_temperature], [gradient])
        self._note(ids, entropy=entropy)

    def metrics(self) -> dict[str, Tensor]:
        """Return the figures of every algorithm, and entropy and temperature."""
        return {**super().metrics(), "temperature": self.temperature}

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next update depends on."""
        return {
            **super().state_dict(),
            "log_temperature": self.log_temperature,
            "temperature_optimiser": self._temperature_optimiser.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        super().load_state_dict(state)
        self.log_temperature.copy_(state["log_temperature"])
        load_moments(self._temperature_optimiser, state["temperature_optimiser"])
