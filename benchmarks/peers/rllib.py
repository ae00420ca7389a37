"""How RLlib's env runners collect humanoid-stand and humanoid-walk: sampling only, no learning.

    python -m peers.rllib

As IMPALA does it: each runner acts with its own copy of the policy and puts its episodes into Ray's object store, and
whoever has sampled is asked again.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
import plain_ray
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from peers.humanoids import Array, Humanoids, make_parser, measure

_HIDDEN = [256, 256]
# A runner need not wait for the next request.
_REQUESTS_IN_FLIGHT = 2


class HumanoidsEnv(VectorEnv):
    """A runner's copies. One vector environment costs less than gymnasium's vector of single ones."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, config: dict[str, Any]) -> None:
        """Load as many copies as RLlib adds to its config under ``num_envs``."""
        self.num_envs = config["num_envs"]
        self._humanoids = Humanoids(self.num_envs, config["folder"])
        self.single_observation_space = self._humanoids.observation_space
        self.single_action_space = self._humanoids.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._over = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        """New episodes everywhere."""
        self._over = np.zeros(self.num_envs, bool)
        return self._humanoids.reset(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """A step of each copy, or the reset of one that was over."""
        observation, reward = self._humanoids.empty(), np.zeros(self.num_envs, np.float32)
        over = np.zeros(self.num_envs, bool)
        for copy, row in enumerate(observation):
            if self._over[copy]:
                self._humanoids.reset_one(copy, row)
            else:
                reward[copy], over[copy] = self._humanoids.step_one(copy, actions[copy], row)
        self._over = over
        return observation, reward, np.zeros(self.num_envs, bool), over, {}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--runners", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--envs-per-runner", type=int, default=64)
    parser.add_argument("--rollout", type=int, default=32, help="steps of each environment per request")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        plain_ray.start(options.runners),
    ):
        config = (
            IMPALAConfig()
            .environment(HumanoidsEnv, env_config={"folder": folder})
            .env_runners(
                num_env_runners=options.runners,
                num_envs_per_env_runner=options.envs_per_runner,
                gym_env_vectorize_mode="vector_entry_point",
                rollout_fragment_length=options.rollout,
                max_requests_in_flight_per_env_runner=_REQUESTS_IN_FLIGHT,
            )
            .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=_HIDDEN))
        )
        group = EnvRunnerGroup(config=config, local_env_runner=False)
        sample = "sample_get_state_and_metrics"

        def ask() -> None:
            group.foreach_env_runner_async_fetch_ready(sample, tag=sample, timeout_seconds=0.1)

        measure(folder, options.runners, options, ask)


if __name__ == "__main__":
    main()
