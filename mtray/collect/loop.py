"""The collector: a host, a copy of the policy, and the acting loop.

Enters: weights. Leaves: rollouts, each a lazy stack over tasks of one dense TensorDict [K, L] per task. Runs in a
process of its own (or in a plain test); pushing the rollout is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from tensordict import LazyStackedTensorDict, TensorDict
from torch import Tensor

from mtray.collect.clock import Clock
from mtray.collect.episodes import EpisodeTracker
from mtray.collect.exploration import RandomEpisodes, normal_noise, random_actions
from mtray.collect.host import Host
from mtray.data.messages import Episode
from mtray.data.specs import ACTION, DONE_KEYS, NEXT, OBSERVATION, REWARD, FloatArray, TaskSpec, observation_width
from mtray.policy import weights as weights_module
from mtray.policy.acting import Acting
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import Weights


@dataclass(frozen=True)
class Rollout:
    """What one call of `Collector.collect` made.

    Attributes:
        data: lazy stack over tasks of dense TensorDicts [K, L]; views of the collector's buffers, which the next
            call overwrites.
        episodes: those that ended in it.
        largest_returns: task to the largest absolute discounted return its copies have seen, ever.
        weights_version: of the policy that acted.
    """

    data: LazyStackedTensorDict
    episodes: tuple[Episode, ...]
    largest_returns: Mapping[str, float]
    weights_version: int


class ActingLoop:
    """Steps a host with a policy and writes what happens into buffers that are allocated once."""

    def __init__(
        self,
        host: Host,
        policy: MultiTaskPolicy,
        *,
        rollout_steps: int,
        discounts: Mapping[str, float],
        noise_steps: int = 1,
        random_share: float = 0.0,
        random_steps: int = 64,
        seed: int = 0,
    ) -> None:
        """Take a host whose copies all stand at an episode's start.

        Args:
            host: what to step; its tasks are the policy's or some of them.
            policy: this collector's own copy.
            rollout_steps: L.
            discounts: task to the discount of `Rollout.largest_returns`.
            noise_steps: most steps that a copy's noise is held (see `mtray.collect.exploration`).
            random_share: share of episodes that are stepped with random actions while the policy is no better.
            random_steps: most steps that a random action is held.
            seed: of the actions.
        """
        self.host = host
        self.policy = policy
        self.rollout_steps = rollout_steps
        self.weights_version = 0
        self.clock = Clock()
        width = observation_width(policy.specs)
        names = [spec.name for spec in host.specs]
        self._ids = None if tuple(names) == policy.names else np.array([policy.names.index(n) for n in names])
        self._acting = Acting(policy, self._ids)
        # Tasks may have different numbers of copies; the policy acts on as many rows of each.
        copies = [len(slot.reward) for slot in host.slots]
        size = (len(names), max(copies))
        self._observation = np.zeros((*size, width), np.float32)
        self._ended = np.zeros(size, np.bool_)
        actions = (*size, self.policy.action_mask.shape[-1])
        generators = np.random.default_rng(seed).spawn(4)
        self._noise = normal_noise(actions, noise_steps, generators[0])
        self._random = random_actions(actions, random_steps, generators[1])
        self._chosen = RandomEpisodes(*size, random_share, generators[2])
        self._first = random_actions(actions, 1, generators[3])
        self._was_random = np.zeros((rollout_steps, *size), np.bool_)
        self._buffers = [
            _buffer(spec, count, rollout_steps, width) for spec, count in zip(host.specs, copies, strict=True)
        ]
        self._arrays = [_Arrays(buffer, spec) for buffer, spec in zip(self._buffers, host.specs, strict=True)]
        self._tracks = [
            EpisodeTracker(spec.name, count, discounts[spec.name])
            for spec, count in zip(host.specs, copies, strict=True)
        ]

    def load(self, weights: Weights) -> None:
        """Act with these weights from now on."""
        weights_module.load(self.policy, weights)
        self._acting = Acting(self.policy, self._ids)
        self.weights_version = weights.version

    def collect(self) -> Rollout:
        """Step every copy ``rollout_steps`` times. Before the first weights of a learner, actions are random."""
        clock = self.clock
        for step in range(self.rollout_steps):
            action = self._act(step)
            clock.lap("policy")
            for index, (slot, arrays) in enumerate(zip(self.host.slots, self._arrays, strict=True)):
                slot.action[:] = action[index, : len(slot.action), : slot.action.shape[1]]
                arrays.write_start(step, slot.observation, slot.action)
            clock.lap("copy")
            self.host.step()
            clock.lap("simulate")
            for index, (slot, arrays) in enumerate(zip(self.host.slots, self._arrays, strict=True)):
                arrays.write_end(step, slot.next_observation, slot.reward, slot.terminated, slot.truncated)
                np.logical_or(slot.terminated, slot.truncated, out=self._ended[index, : len(slot.reward)])
            for held in (self._noise, self._random, self._chosen):
                held.restart(self._ended)
            clock.lap("copy")
        episodes: list[Episode] = []
        for index, (track, arrays) in enumerate(zip(self._tracks, self._arrays, strict=True)):
            arrays.finish()
            ended = track.add(arrays.reward[..., 0], arrays.done[..., 0], self._was_random[:, index].T)
            for episode in ended:
                self._chosen.add(index, episode.episode_return, episode.of_policy)
            episodes += ended
        return Rollout(
            cast(LazyStackedTensorDict, LazyStackedTensorDict.lazy_stack(self._buffers, 0)),
            tuple(episodes),
            {track.task: track.largest_return for track in self._tracks},
            self.weights_version,
        )

    def _act(self, step: int) -> FloatArray:
        if self.weights_version == 0:
            action = self._acting.to_bounds(self._first.draw())
        else:
            for index, slot in enumerate(self.host.slots):
                self._observation[index, : len(slot.observation), : slot.observation.shape[1]] = slot.observation
            action = self._acting(self._observation, self._noise.draw())
        chosen = self._chosen.draw()
        self._was_random[step] = chosen
        if chosen.any():
            np.copyto(action, self._acting.to_bounds(self._random.draw().copy()), where=chosen[..., None])
        return action


def _buffer(spec: TaskSpec, copies: int, steps: int, width: int) -> TensorDict:
    """A task's rollout [K, L]; the exclusive observation is a view of the common one."""
    size = [copies, steps]

    def part(extra: dict[str, Tensor]) -> TensorDict:
        common = torch.zeros(*size, width)
        flags = {key: torch.zeros(*size, 1, dtype=torch.bool) for key in DONE_KEYS}
        fields = {OBSERVATION: common, spec.key: common[..., : spec.observation_size], **flags, **extra}
        return TensorDict(cast(Any, fields), size)

    reached = part({REWARD: torch.zeros(*size, 1)})
    return part({ACTION: torch.zeros(*size, spec.action_size)}).set(NEXT, reached)


class _Arrays:
    """A rollout buffer's fields as numpy arrays, to be written step by step."""

    def __init__(self, buffer: TensorDict, spec: TaskSpec) -> None:
        self.observation = buffer.get(spec.key).numpy()
        self.action = buffer.get(ACTION).numpy()
        self.next_observation = buffer.get((NEXT, spec.key)).numpy()
        self.reward = buffer.get((NEXT, REWARD)).numpy()
        self.done, self.terminated, self.truncated = (buffer.get((NEXT, key)).numpy() for key in DONE_KEYS)

    def write_start(self, step: int, observation: FloatArray, action: FloatArray) -> None:
        self.observation[:, step] = observation
        self.action[:, step] = action

    def write_end(
        self, step: int, observation: FloatArray, reward: FloatArray, terminated: Any, truncated: Any
    ) -> None:
        self.next_observation[:, step] = observation
        self.reward[:, step, 0] = reward
        self.terminated[:, step, 0] = terminated
        self.truncated[:, step, 0] = truncated

    def finish(self) -> None:
        np.logical_or(self.terminated, self.truncated, out=self.done)
