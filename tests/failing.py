"""Environments whose own code fails in one way, as tasks: `tests.failing:step_raises`."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mtray.testing import CountingEnv

# In the driver a task is built, reset and stepped up to four times; what shall fail in a collector fails later.
LATER = 5


class TwoArguments(Exception):
    """Its pickle can't be loaded."""

    def __init__(self, code, text):
        super().__init__(f"{text} (code {code})")


class Failing(CountingEnv):
    def __init__(self, num_envs, what):
        super().__init__(num_envs, truncate_after=3)
        self.what, self.steps = what, 0

    def _step(self, data):
        self.steps += 1
        if self.steps == LATER:
            match self.what:
                case "step_raises":
                    raise ValueError("the arm hit\nthe table")
                case "strange":
                    raise TwoArguments(7, "solver diverged")
                case "sys_exit":
                    sys.exit(3)
                case "os_exit":
                    os._exit(4)
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hangs":
                    time.sleep(1e6)
                case "computes":
                    # Holds the interpreter's lock all the while.
                    _ = 7 ** (10**9)
                case "loses":
                    return super()._step(data).exclude("observation")
                case "widens":
                    data = super()._step(data)
                    return data.set("observation", torch.cat([data["observation"]] * 2, -1))
                case "rewards_twice":
                    return super()._step(data).set("reward", torch.zeros(*self.batch_size, 2))
                case "bad_reward":
                    return super()._step(data).set("reward", torch.full((*self.batch_size, 1), torch.nan))
                case "bad_observation":
                    data = super()._step(data)
                    data["observation"][-1] = torch.inf
                    return data
        return super()._step(data)

    def _reset(self, data=None, **kwargs):
        if self.what == "reset_raises" and self.steps > 2:
            raise OSError("no licence left")
        data = super()._reset(data, **kwargs)
        if self.what == "bad_reset" and self.steps > 2:
            data["observation"][:] = torch.nan
        return data

    def close(self, *, raise_if_closed=True):
        if self.what == "close_raises":
            raise RuntimeError("the window is gone")
        super().close(raise_if_closed=raise_if_closed)


@dataclass(frozen=True)
class FailingMaker:
    what: str

    def __call__(self, num_envs, seed):
        return Failing(num_envs, self.what)


@dataclass(frozen=True)
class RaisesElsewhere:
    """Raises in every process but that which made it, as where a file is on one machine only."""

    driver: int

    def __call__(self, num_envs, seed):
        if os.getpid() != self.driver:
            raise FileNotFoundError("arena.xml is not on this machine")
        return CountingEnv(num_envs)


class Closing(CountingEnv):
    def __init__(self, num_envs, file):
        super().__init__(num_envs)
        self.file = file

    def close(self, *, raise_if_closed=True):
        self.file.write_text("closed")


@dataclass(frozen=True)
class ClosingMaker:
    """Its environment writes into a file when it is closed."""

    file: Path

    def __call__(self, num_envs, seed):
        return Closing(num_envs, self.file)


step_raises_maker, bad_reward_maker = FailingMaker("step_raises"), FailingMaker("bad_reward")
