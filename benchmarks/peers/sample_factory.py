"""How Sample Factory collects humanoid-stand and humanoid-walk: its sampler without a learner.

    python -m peers.sample_factory

Rollout workers step, an inference worker acts for them all, and trajectories arrive in this process.
"""

from __future__ import annotations

import functools
import os
import tempfile
from typing import Any

import gymnasium
import numpy as np
from sample_factory.algo.sampling.simplified_sampling_api import SyncSamplingAPI
from sample_factory.algo.utils.env_info import obtain_env_info_in_a_separate_process
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env

from peers.humanoids import Array, Humanoids, make_parser, measure

_ENV = "humanoids"
_HIDDEN = ("256", "256")


class HumanoidsEnv(gymnasium.Env):
    """Copies that a rollout worker steps together, to Sample Factory so many agents of one environment."""

    is_multiagent = True

    def __init__(self, count: int, folder: str) -> None:
        """Load the copies."""
        self.num_agents = count
        self._humanoids = Humanoids(count, folder)
        self.observation_space = self._humanoids.observation_space
        self.action_space = self._humanoids.action_space
        self._infos: list[dict[str, Any]] = [{} for _ in range(count)]

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, list[dict[str, Any]]]:
        """New episodes everywhere."""
        return self._humanoids.reset(), self._infos

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, list[dict[str, Any]]]:
        """A step of each copy, and the reset of one that is over."""
        observation, reward = self._humanoids.empty(), np.zeros(self.num_agents, np.float32)
        over = np.zeros(self.num_agents, bool)
        for copy, row in enumerate(observation):
            reward[copy], over[copy] = self._humanoids.step_one(copy, actions[copy], row)
            if over[copy]:
                self._humanoids.reset_one(copy, row)
        return observation, reward, np.zeros(self.num_agents, bool), over, self._infos


def _make_env(folder: str, copies: int, name: str, cfg: Any, env_config: Any, render_mode: Any = None) -> HumanoidsEnv:
    # The one that is made without a config, to look at, never steps: it is not waited for.
    return HumanoidsEnv(copies, folder)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--envs-per-worker", type=int, default=64)
    parser.add_argument("--splits", type=int, default=2, help="parts of a worker's environments that take turns")
    parser.add_argument("--rollout", type=int, default=32, help="steps of a trajectory")
    options = parser.parse_args()
    copies = options.envs_per_worker // options.splits
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as runs:
        register_env(_ENV, functools.partial(_make_env, folder, copies))
        settings = {
            "env": _ENV,
            "train_dir": runs,
            "log_to_file": False,
            "device": "cpu",
            "num_workers": options.workers,
            # An environment per split, with so many agents.
            "num_envs_per_worker": options.splits,
            "worker_num_splits": options.splits,
            "batched_sampling": True,
            "rollout": options.rollout,
            # Nobody learns, but the size of the buffers follows from it.
            "batch_size": copies * options.rollout,
            # Rollout workers run at 10 more than this, and starve on a machine that has anything else to do.
            "default_niceness": -10,
            # A plain network, which costs less to act with.
            "use_rnn": False,
            "normalize_input": False,
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        arguments += ["--encoder_mlp_layers", *_HIDDEN]
        config = parse_full_cfg(parse_sf_args(arguments)[0], arguments)
        sampler = SyncSamplingAPI(config, obtain_env_info_in_a_separate_process(config))
        try:
            sampler.start()
            measure(folder, options.workers * options.splits, options, sampler.get_trajectories_sync)
        finally:
            sampler.stop()


if __name__ == "__main__":
    main()
