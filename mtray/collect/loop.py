"""The collector: a host, a copy of the policy, and the acting loop.

Enters: weights. Leaves: rollouts, plain arrays [K, L] per task. Runs in a process of its own (or in a plain test);
pushing the rollout is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtray.collect.clock import Clock
from mtray.collect.episodes import EpisodeTracker
from mtray.collect.exploration import RandomEpisodes, normal_noise, random_actions
from mtray.collect.host import Host
from mtray.collect.slots import Slot
from mtray.data.messages import Episode
from mtray.data.rollout import TaskRollout
from mtray.data.rows import NEXT_BITS, TRANSITION
from mtray.data.specs import FloatArray, TaskSpec, observation_width
from mtray.data.tensordicts import to_stack
from mtray.engines.base import BoolArray
from mtray.policy import weights as weights_module
from mtray.policy.acting import Acting
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import Weights

if TYPE_CHECKING:
    from tensordict import LazyStackedTensorDict


@dataclass(frozen=True)
class Rollout:
    """The data of one call of `ActingLoop.collect`.

    Attributes:
        tasks: task to its arrays [K, L]: the collector's buffers, which the next call overwrites.
        specs: all tasks of the policy.
        episodes: those that ended in it.
        largest_returns: task to the largest absolute discounted return its copies have ever seen.
        weights_version: of the policy that acted.
    """

    tasks: Mapping[str, TaskRollout]
    specs: Sequence[TaskSpec]
    episodes: tuple[Episode, ...]
    largest_returns: Mapping[str, float]
    weights_version: int

    @property
    def data(self) -> LazyStackedTensorDict:
        """A copy as a lazy stack over tasks of dense TensorDicts [K, L], made anew at each access."""
        return to_stack(self.tasks, self.specs)


class ActingLoop:
    """Steps a host with a policy and writes the transitions into buffers that are allocated once."""

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
        """Allocate the buffers; every copy of the host must stand at an episode's start.

        Args:
            host: what to step; its tasks are the policy's or some of them.
            policy: this collector's copy of it.
            rollout_steps: L.
            discounts: task to the discount of `Rollout.largest_returns`.
            noise_steps: most steps for which a copy's noise is held (see `mtray.collect.exploration`).
            random_share: share of episodes with random actions while the policy is no better.
            random_steps: most steps for which a random action is held.
            seed: of the actions.
        """
        self.host = host
        self.policy = policy
        self.rollout_steps = rollout_steps
        self.weights_version = 0
        self.clock = Clock()
        names = [spec.name for spec in host.specs]
        self._ids = None if tuple(names) == policy.names else np.array([policy.names.index(n) for n in names])
        self._acting = Acting(policy, self._ids)
        # Tasks may have different numbers of copies; the policy acts on as many rows of each.
        copies = [len(slot.reward) for slot in host.slots]
        size = (len(names), max(copies))
        self._observation = np.zeros((*size, observation_width(policy.specs)), np.float32)
        self._ended = np.zeros(size, np.bool_)
        actions = (*size, self.policy.action_mask.shape[-1])
        generators = np.random.default_rng(seed).spawn(4)
        self._noise = normal_noise(actions, noise_steps, generators[0])
        self._random = random_actions(actions, random_steps, generators[1])
        self._random_episodes = RandomEpisodes(*size, random_share, generators[2])
        # Until the first weights arrive.
        self._first = random_actions(actions, 1, generators[3])
        self._was_random = np.zeros((rollout_steps, *size), np.bool_)
        self._buffers = [_Buffer(spec, count, rollout_steps) for spec, count in zip(host.specs, copies, strict=True)]
        self._trackers = [
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
            for index, (slot, buffer) in enumerate(zip(self.host.slots, self._buffers, strict=True)):
                slot.action[:] = action[index, : len(slot.action), : slot.action.shape[1]]
                buffer.write_start(step, slot)
            clock.lap("copy")
            self.host.step()
            clock.lap("simulate")
            for index, (slot, buffer) in enumerate(zip(self.host.slots, self._buffers, strict=True)):
                buffer.write_end(step, slot)
                np.logical_or(slot.terminated, slot.truncated, out=self._ended[index, : len(slot.reward)])
            for explorer in (self._noise, self._random, self._random_episodes):
                explorer.restart(self._ended)
            clock.lap("copy")
        episodes: list[Episode] = []
        for index, (tracker, buffer) in enumerate(zip(self._trackers, self._buffers, strict=True)):
            done = buffer.finish()
            ended = tracker.add(buffer.rollout.reward, done, self._was_random[:, index].T)
            for episode in ended:
                # An episode of both kinds, as when weights arrive in the middle of it, speaks for neither.
                if episode.random_steps in (0, episode.steps):
                    self._random_episodes.add(index, episode.episode_return, episode.of_policy)
            episodes += ended
        return Rollout(
            {tracker.task: buffer.rollout for tracker, buffer in zip(self._trackers, self._buffers, strict=True)},
            self.policy.specs,
            tuple(episodes),
            {tracker.task: tracker.largest_return for tracker in self._trackers},
            self.weights_version,
        )

    def _act(self, step: int) -> FloatArray:
        is_random = self._random_episodes.draw()
        if self.weights_version == 0:
            action = self._acting.to_bounds(self._first.draw())
            self._was_random[step] = True
        else:
            for index, slot in enumerate(self.host.slots):
                self._observation[index, : len(slot.observation), : slot.observation.shape[1]] = slot.observation
            action = self._acting(self._observation, self._noise.draw())
            self._was_random[step] = is_random
        if is_random.any():
            np.copyto(action, self._acting.to_bounds(self._random.draw().copy()), where=is_random[..., None])
        return action


class _Buffer:
    """A task's rollout, written step by step."""

    def __init__(self, spec: TaskSpec, copies: int, steps: int) -> None:
        self.rollout = TaskRollout.zeros(spec, copies, steps)
        self._terminated = np.zeros((copies, steps), np.bool_)
        self._truncated = np.zeros((copies, steps), np.bool_)

    def write_start(self, step: int, slot: Slot) -> None:
        self.rollout.observation[:, step] = slot.observation
        self.rollout.action[:, step] = slot.action

    def write_end(self, step: int, slot: Slot) -> None:
        self.rollout.next_observation[:, step] = slot.next_observation
        self.rollout.reward[:, step] = slot.reward
        self._terminated[:, step] = slot.terminated
        self._truncated[:, step] = slot.truncated

    def finish(self) -> BoolArray:
        """Write the flags; return which steps ended an episode [K, L]."""
        done = self._terminated | self._truncated
        flags = self.rollout.flags
        flags[:] = TRANSITION
        for key, values in (("done", done), ("terminated", self._terminated), ("truncated", self._truncated)):
            flags |= values * np.int32(NEXT_BITS[key])
        return done
