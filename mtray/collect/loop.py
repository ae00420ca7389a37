"""The acting loop: steps a host with a copy of the policy, without torch.

Enters: weights. Leaves: rollouts, arrays [K, L] per task. Runs in a collector's process; the caller pushes the rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mtray.collect.clock import Clock
from mtray.collect.episodes import EpisodeTracker
from mtray.collect.exploration import HeldNoise, NoiseFactors, RandomEpisodes, normal_noise, random_actions
from mtray.collect.hosts.base import Host
from mtray.collect.hosts.slots import Slot
from mtray.data.messages import Episode
from mtray.data.rollout import TaskRollout
from mtray.data.rows import NEXT_BITS, TRANSITION
from mtray.data.specs import FloatArray, TaskSpec, action_width, observation_width
from mtray.engines.base import BoolArray
from mtray.engines.states import State, nested, part
from mtray.errors import TaskError
from mtray.policy.acting import Acting
from mtray.policy.layout import PolicyLayout, Weights

if TYPE_CHECKING:
    from tensordict import LazyStackedTensorDict


@dataclass(frozen=True)
class Rollout:
    """The data of one call of `ActingLoop.collect`.

    Attributes:
        tasks: task to its arrays [K, L]: the loop's buffers, which the next call overwrites.
        specs: all tasks of the policy.
        episodes: episodes that ended in the rollout.
        largest_returns: task to the largest absolute discounted return of any step of its episodes so far.
        weights_version: version of the policy that acted; 0 before the first weights.
        broken: task to its steps that failed in the rollout; they are no transitions.
        failures: the error of each simulator that failed in the rollout and was built anew.
    """

    tasks: Mapping[str, TaskRollout]
    specs: Sequence[TaskSpec]
    episodes: tuple[Episode, ...]
    largest_returns: Mapping[str, float]
    weights_version: int
    broken: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[TaskError, ...] = ()

    @property
    def data(self) -> LazyStackedTensorDict:
        """A copy as a lazy stack over tasks of dense TensorDicts [K, L]; every access makes a new one."""
        from mtray.data.tensordicts import to_stack

        return to_stack(self.tasks, self.specs)


class ActingLoop:
    """Steps a host with a policy; writes the transitions into buffers that are allocated once."""

    def __init__(
        self,
        host: Host,
        layout: PolicyLayout,
        *,
        rollout_steps: int,
        discounts: Mapping[str, float],
        noise_steps: int = 1,
        noise_factors: tuple[float, float] = (1.0, 1.0),
        random_share: float = 0.0,
        random_steps: int = 64,
        seed: int = 0,
    ) -> None:
        """Allocate the buffers.

        Args:
            host: the host to step, every copy at an episode's start; its tasks are all or some of the policy's.
            layout: the policy's.
            rollout_steps: L.
            discounts: task to the discount of `Rollout.largest_returns`.
            noise_steps: longest time that noise is held, in agent steps (see `mtray.collect.exploration`).
            noise_factors: limits of what an episode's noise is multiplied by.
            random_share: share of episodes with random actions until the policy is better.
            random_steps: longest time that a random action is held, in agent steps.
            seed: seed of noise and random actions.
        """
        self.host = host
        self.layout = layout
        self.rollout_steps = rollout_steps
        self.weights_version = 0
        self.clock = Clock()
        names = [spec.name for spec in host.specs]
        self._ids = None if tuple(names) == layout.names else np.array([layout.names.index(n) for n in names])
        self._acting = Acting(layout, layout.initial_arrays(), self._ids)
        # The policy acts on equally many rows of every task; tasks with fewer copies leave rows unused.
        copies = [len(slot.reward) for slot in host.slots]
        size = (len(names), max(copies))
        self._observation = np.zeros((*size, observation_width(layout.specs)), np.float32)
        self._ended = np.zeros(size, np.bool_)
        actions = (*size, action_width(layout.specs))
        generators = np.random.default_rng(seed).spawn(5)
        self._noise = normal_noise(actions, noise_steps, generators[0])
        self._random = random_actions(actions, random_steps, generators[1])
        self._random_episodes = RandomEpisodes(*size, random_share, generators[2])
        # Actions before the first weights.
        self._initial = random_actions(actions, 1, generators[3])
        self._factors = NoiseFactors(*size, *noise_factors, generators[4])
        self._was_random = np.zeros((rollout_steps, *size), np.bool_)
        self._buffers = [_Buffer(spec, slot, rollout_steps) for spec, slot in zip(host.specs, host.slots, strict=True)]
        self._trackers = [
            EpisodeTracker(spec.name, count, discounts[spec.name], spec.info)
            for spec, count in zip(host.specs, copies, strict=True)
        ]
        self._reports = [index for index, spec in enumerate(host.specs) if spec.info]

    def load(self, weights: Weights) -> None:
        """Act with these weights from the next step on.

        Raises:
            SchemaError: they are those of a policy of another layout.
        """
        self._acting = Acting(self.layout, self.layout.arrays(weights), self._ids)
        self.weights_version = weights.version

    def state(self) -> State | None:
        """Return what the next rollouts depend on besides the weights; None if a task's engine has no states."""
        sims = {f"sim{index}": state for index, state in enumerate(self.host.states()) if state is not None}
        if len(sims) < len(self.host.slots):
            return None
        slots = {"observations": {str(index): slot.observation for index, slot in enumerate(self.host.slots)}}
        return nested({**sims, **slots, **{name: each.state() for name, each in self._stateful().items()}})

    def load_state(self, state: State) -> None:
        """Go on, bit for bit, where the loop was that gave this `state`."""
        self.host.load_states([part(state, f"sim{index}") for index in range(len(self.host.slots))])
        for index, slot in enumerate(self.host.slots):
            slot.observation[:] = state[f"observations.{index}"]
        for name, each in self._stateful().items():
            saved = part(state, name)
            # Earlier versions had no factors.
            if saved or name != "factors":
                each.load_state(saved)

    def _stateful(self) -> dict[str, HeldNoise | NoiseFactors | RandomEpisodes | EpisodeTracker]:
        trackers = {f"tracker{index}": tracker for index, tracker in enumerate(self._trackers)}
        noise = {"noise": self._noise, "random": self._random, "initial": self._initial}
        return {**trackers, **noise, "factors": self._factors, "random_episodes": self._random_episodes}

    def collect(self) -> Rollout:
        """Step every copy ``rollout_steps`` times; actions are random before the first weights."""
        clock = self.clock
        for step in range(self.rollout_steps):
            action = self._act(step)
            clock.lap("policy")
            for slot, buffer, actions in zip(self.host.slots, self._buffers, action, strict=True):
                slot.action[:] = actions[: len(slot.action), : slot.action.shape[1]]
                buffer.write_start(step)
            clock.lap("copy")
            self.host.step()
            clock.lap("simulate")
            for slot, buffer, ended in zip(self.host.slots, self._buffers, self._ended, strict=True):
                buffer.write_end(step)
                np.logical_or(slot.terminated, slot.truncated, out=ended[: len(slot.reward)])
            for index in self._reports:
                slot = self.host.slots[index]
                self._trackers[index].see(slot.info, self._ended[index, : len(slot.reward)])
            for explorer in (self._noise, self._factors, self._random, self._random_episodes):
                explorer.restart(self._ended)
            clock.lap("copy")
        episodes: list[Episode] = []
        broken: dict[str, int] = {}
        for index, (tracker, buffer) in enumerate(zip(self._trackers, self._buffers, strict=True)):
            done = buffer.finish()
            finished = tracker.add(buffer.rollout.reward, done, self._was_random[:, index].T, buffer.broken)
            if buffer.broken is not None:
                broken[tracker.task] = int(buffer.broken.sum())
            for episode in finished:
                # An episode in which the first weights arrived has actions of both kinds and is not compared.
                if episode.random_steps in (0, episode.steps):
                    self._random_episodes.add(index, episode.episode_return, episode.of_policy)
            episodes += finished
        return Rollout(
            {tracker.task: buffer.rollout for tracker, buffer in zip(self._trackers, self._buffers, strict=True)},
            self.layout.specs,
            tuple(episodes),
            {tracker.task: tracker.largest_return for tracker in self._trackers},
            self.weights_version,
            broken,
            self.host.take_failures(),
        )

    def _act(self, step: int) -> FloatArray:
        is_random = self._random_episodes.draw()
        if self.weights_version == 0:
            action = self._acting.to_bounds(self._initial.draw())
            self._was_random[step] = True
        else:
            for slot, padded in zip(self.host.slots, self._observation, strict=True):
                padded[: len(slot.observation), : slot.observation.shape[1]] = slot.observation
            factors = self._factors.draw(self._random_episodes.is_beaten)
            action = self._acting(self._observation, self._noise.draw() * factors)
            self._was_random[step] = is_random
        if is_random.any():
            np.copyto(action, self._acting.to_bounds(self._random.draw().copy()), where=is_random[..., None])
        return action


class _Buffer:
    """A task's rollout, written step by step.

    Attributes:
        broken: [K, L], which steps of a finished rollout failed; None if none did.
    """

    broken: BoolArray | None = None

    def __init__(self, spec: TaskSpec, slot: Slot, steps: int) -> None:
        size = (len(slot.reward), steps)
        self.rollout = TaskRollout.zeros(spec, *size)
        self._slot = slot
        self._terminated, self._truncated = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        self._broken = np.zeros(size, np.bool_)

    def write_start(self, step: int) -> None:
        self.rollout.observation[:, step] = self._slot.observation
        self.rollout.action[:, step] = self._slot.action

    def write_end(self, step: int) -> None:
        self.rollout.next_observation[:, step] = self._slot.next_observation
        self.rollout.reward[:, step] = self._slot.reward
        self._terminated[:, step] = self._slot.terminated
        self._truncated[:, step] = self._slot.truncated
        self._broken[:, step] = self._slot.broken

    def finish(self) -> BoolArray:
        """Write the flags; return [K, L], which steps ended an episode."""
        done = self._terminated | self._truncated
        flags = self.rollout.flags
        flags[:] = TRANSITION
        for key, values in (("done", done), ("terminated", self._terminated), ("truncated", self._truncated)):
            flags |= values * np.int32(NEXT_BITS[key])
        self.broken = self._broken.copy() if self._broken.any() else None
        if self.broken is not None:
            # What a failed step reached is unknown. Its row holds the state before it, as after a rollout's last step.
            self.rollout.next_observation[self.broken] = self.rollout.observation[self.broken]
            self.rollout.reward[self.broken] = 0
            flags[self.broken] &= ~TRANSITION
        return done
