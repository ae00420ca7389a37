"""The networks of an actor-critic: policy and critic, their moving averages, and their optimisers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtray.config.learner import LearnerConfig, NetworkConfig
from mtray.data.specs import TaskSpec
from mtray.learn.execution.parameters import ParameterGroup, load_moments, merge_shared
from mtray.policy.critic import MultiTaskCritic
from mtray.policy.policy import MultiTaskPolicy

_MODULES = ("policy", "average", "critic", "target")
# Least step size of the actor's average: much smaller changes are lost in float32's rounding.
_LEAST_STEP = 5e-5


class Networks:
    """Policy and critic, each with a moving average of its parameters.

    Attributes:
        policy: the actor. Collectors act with it, so that the data show the critic the actor's mistakes.
        average: slow moving average of the policy, which varies less between updates; it is evaluated and saved.
        critic: the critics.
        target: moving average of the critics, used in targets.
        critic_group, actor_group: parameters and optimisers of critic and policy.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        network: NetworkConfig,
        config: LearnerConfig,
        device: torch.device,
        seed: int,
        skip: Tensor,
    ) -> None:
        """Create the networks; equal seeds give equal weights; ``skip`` as in `make_adamw`."""
        self._config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = MultiTaskPolicy(specs, network, action_noise=config.policy_noise).to(device)
            self.critic = MultiTaskCritic(specs, network, config.atoms).to(device)
        self.average = copy.deepcopy(self.policy).requires_grad_(False)
        for name, buffer in self.policy.named_buffers():
            setattr(self.average, name, buffer)  # Shared memory: only parameters are averaged.
        self.policy.requires_grad_(True)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_group = ParameterGroup(self.critic.shared_parameters(), self.critic.heads, config, skip)
        self.actor_group = ParameterGroup(self.policy.shared_parameters(), self.policy.heads, config, skip)
        self._target_tensors = merge_shared(self.target.shared_parameters(), self.target.heads)
        self._average_tensors = merge_shared(self.average.shared_parameters(), self.average.heads)
        self._share_embedding()

    def step_critic(self) -> None:
        """Make an optimiser step of the critic; move the target towards it."""
        self.critic_group.step()
        torch._foreach_lerp_(self._target_tensors, self.critic_group.tensors, self._config.polyak)
        self._share_embedding()

    def step_actor(self) -> None:
        """Make an optimiser step of the actor; move the average towards it."""
        self.actor_group.step()
        weight = self._average_weight()
        for average, tensor in zip(self._average_tensors, self.actor_group.tensors, strict=True):
            average.lerp_(tensor, weight)

    def _average_weight(self) -> Tensor | float:
        """Return the step size of the average, which falls as updates are made if it spans a share of them."""
        most, share = self._config.actor_polyak, self._config.actor_average
        if not share:
            return most
        # Counted by the optimiser, so that a recorded update reads it and a resumed run goes on with it.
        made: Tensor = self.actor_group.optimiser.state[self.actor_group.tensors[0]]["step"]
        return (1 / (share * made)).clamp(min=min(_LEAST_STEP, most), max=most)

    @torch.no_grad()
    def _share_embedding(self) -> None:
        # The task embedding is learned by the critic only: the policy reads a copy, without a gradient.
        self.policy.embedding.copy_(self.critic.embedding)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all networks and optimisers."""
        return {
            **{name: getattr(self, name).state_dict() for name in _MODULES},
            "critic_optimiser": self.critic_group.optimiser.state_dict(),
            "actor_optimiser": self.actor_group.optimiser.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for name in _MODULES:
            getattr(self, name).load_state_dict(state[name])
        load_moments(self.critic_group.optimiser, state["critic_optimiser"])
        load_moments(self.actor_group.optimiser, state["actor_optimiser"])
