"""The simulators that RLlib and Sample Factory collect from: dm_control's own, with as little Python as possible.

Runs in the peers' environments: knows nothing of mtray. Every process that simulates counts its steps in a file, which
the peer's program reads: all peers are counted alike, whatever they report themselves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from dm_control import suite

_TASKS = ("stand", "walk")
_START_SECONDS = 120.0

Array = np.ndarray[Any, Any]


class Humanoids:
    """Copies of humanoid-stand and humanoid-walk in turns, stepped by one process.

    Args:
        count: copies.
        folder: where their steps are counted.

    Attributes:
        observation_space: of one copy, float32, entries in dm_control's order.
        action_space: of one copy, float32.
    """

    def __init__(self, count: int, folder: str) -> None:
        """Load them."""
        self._envs = [suite.load("humanoid", _TASKS[copy % len(_TASKS)]) for copy in range(count)]
        self._slices, width = [], 0
        for key, spec in self._envs[0].observation_spec().items():
            size = int(np.prod(spec.shape))
            self._slices.append((key, slice(width, width + size)))
            width += size
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self._envs[0].action_spec().shape, np.float32)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(bytes(8))
        self._steps = np.memmap(file.name, np.int64)

    def reset(self) -> Array:
        """Start an episode of every copy; gives observations [copies, entries] that are the caller's to keep."""
        observation = self.empty()
        for copy, row in enumerate(observation):
            self.reset_one(copy, row)
        return observation

    def empty(self) -> Array:
        """Room for the observations of all copies."""
        return np.empty((len(self._envs), *self.observation_space.shape), np.float32)

    def reset_one(self, copy: int, row: Array) -> None:
        """Start an episode of one copy; its observation goes to a row."""
        self._write(self._envs[copy].reset().observation, row)

    def step_one(self, copy: int, action: Array, row: Array) -> tuple[float, bool]:
        """One control step of one copy; gives the reward and whether its time is over, the only end it has."""
        step = self._envs[copy].step(action)
        self._write(step.observation, row)
        self._steps[0] += 1
        return step.reward, step.last()

    def _write(self, observation: Mapping[str, Any], row: Array) -> None:
        for key, where in self._slices:
            row[where] = observation[key]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every peer's program takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--warmup-seconds", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    return parser


def measure(folder: str, counters: int, options: argparse.Namespace, work: Callable[[], Any]) -> None:
    """Print frames per second in a window that begins when everything has stepped for the warm-up's seconds.

    Args:
        folder: where the steps are counted.
        counters: how many `Humanoids` there will be.
        options: of `make_parser`.
        work: what the calling process does meanwhile, again and again; takes a fraction of a second.

    Raises:
        TimeoutError: not all of them have begun to step.
    """

    def steps() -> list[int]:
        return [sum(np.fromfile(path, np.int64).tolist()) for path in Path(folder).iterdir()]

    def work_for(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            work()

    begin = time.perf_counter()
    while sum(map(bool, steps())) < counters:
        if time.perf_counter() > begin + _START_SECONDS:
            raise TimeoutError(f"after {_START_SECONDS:g} seconds, {steps()} steps of {counters} simulators")
        work()
    work_for(options.warmup_seconds)
    before, begin = sum(steps()), time.perf_counter()
    work_for(options.seconds)
    rate = (sum(steps()) - before) / (time.perf_counter() - begin)
    print(json.dumps({"frames_per_second": rate}), flush=True)
