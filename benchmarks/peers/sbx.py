"""SBX's soft actor-critic on one task of dm_control, with its documented settings.

    python -m peers.sbx --task walker-walk --minutes 15 --target 761

Prints a line of JSON for each episode: the minute since the imports ended, frames, and the mean return of the newest
episodes. It ends when that reaches the target, or after the minutes.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
from typing import Any

import gymnasium
import numpy as np
from dm_control import suite
from sbx import SAC
from stable_baselines3.common.callbacks import BaseCallback

_BEGAN = time.monotonic()
# As the published curves have it, and mtray by default.
_ACTION_REPEAT = 2
# An episode takes minutes where mtray has copies: fewer are averaged, in favour of the peer.
_NEWEST = 3


class Task(gymnasium.Env[Any, Any]):
    """A task of the suite, observations concatenated in dm_control's order."""

    def __init__(self, name: str, seed: int) -> None:
        """Load it."""
        domain, _, task = name.partition("-")
        self._env = suite.load(domain, task, task_kwargs={"random": seed})
        width = sum(int(np.prod(spec.shape)) for spec in self._env.observation_spec().values())
        action = self._env.action_spec()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = gymnasium.spaces.Box(
            action.minimum.astype(np.float32), action.maximum.astype(np.float32), dtype=np.float32
        )

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        return self._flat(self._env.reset()), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Repeat an action; the end of an episode is a time limit."""
        reward = 0.0
        for _ in range(_ACTION_REPEAT):
            step = self._env.step(action)
            reward += step.reward
            if step.last():
                break
        return self._flat(step), reward, False, step.last(), {}

    def _flat(self, step: Any) -> Any:
        return np.concatenate([np.ravel(part) for part in step.observation.values()]).astype(np.float32)


class Until(BaseCallback):
    """Ends learning at a return or after a time, and prints each episode's return."""

    def __init__(self, target: float, minutes: float) -> None:
        """End at this mean return or after these minutes."""
        super().__init__()
        self._target, self._minutes = target, minutes
        self._newest: collections.deque[float] = collections.deque(maxlen=_NEWEST)

    def _on_step(self) -> bool:
        minute = (time.monotonic() - _BEGAN) / 60
        for info in self.locals["infos"]:
            if "episode" in info:
                self._newest.append(float(info["episode"]["r"]))
                mean = sum(self._newest) / len(self._newest)
                line = {"minute": minute, "frames": _ACTION_REPEAT * self.num_timesteps, "return": mean}
                print(json.dumps(line), flush=True)
                if mean >= self._target and len(self._newest) == _NEWEST:
                    return False
        return minute < self._minutes


def main() -> None:
    """Learn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="cartpole-balance")
    parser.add_argument("--minutes", type=float, default=0.2)
    parser.add_argument("--target", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = SAC("MlpPolicy", Task(options.task, options.seed), seed=options.seed)
    model.learn(10**9, callback=Until(options.target, options.minutes))
    sys.stdout.write(json.dumps({"minute": (time.monotonic() - _BEGAN) / 60}) + "\n")


if __name__ == "__main__":
    main()
