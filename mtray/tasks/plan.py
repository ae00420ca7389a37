"""Tasks as plain data: what travels to the process that steps them."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from mtray.data.specs import TaskSpec
from mtray.engines.base import BatchSim
from mtray.errors import UsageError

if TYPE_CHECKING:
    from mtray.engines.torchrl import Maker


# What steps the makers of users; imported when one is built, since it needs torch and the rest does not.
TORCHRL = "torchrl"


TORCHRL_MODULE = "mtray.engines.torchrl"


# Engine name to the one file that imports the simulator; a file is loaded when a task of it is asked for.
ENGINES = {
    "mujoco": "mtray.engines.mujoco",
    "dm_control": "mtray.engines.dm_control",
    "envpool": "mtray.engines.envpool",
}


DEFAULT_ENGINE = "mujoco"


@dataclass(frozen=True)
class Task:
    """A task that can be built anywhere: its name, its engine and, for a user's own, its maker.

    Attributes:
        name: as in its exclusive key.
        engine: what simulates it.
        maker: a user's own, which repeats actions itself if it shall.
        action_repeat: control steps per agent step, of an engine's task.
    """

    name: str
    engine: str
    maker: Maker | None = None
    action_repeat: int = 1

    def make_sim(self, num_envs: int, seed: int = 0) -> BatchSim:
        """Build K copies in this process.

        Raises:
            UsageError: the user's maker raised or built something that can't be used.
        """
        if num_envs < 1:
            raise UsageError(f"task {self.name!r}: {num_envs} copies asked for, at least 1 is needed")
        if self.maker is not None:
            module = importlib.import_module(TORCHRL_MODULE)
            sim: BatchSim = module.TorchrlSim(self.name, self.maker, num_envs, seed)
            return sim
        sim = load_engine(self.engine).make_sim(self.spec, num_envs, seed)
        return sim

    @property
    def has_threads(self) -> bool:
        """The simulators step in threads of their own."""
        return self.engine == "envpool"

    @functools.cached_property
    def spec(self) -> TaskSpec:
        """What the task's data looks like. It travels with the task, so it is found out once."""
        if self.maker is None:
            spec: TaskSpec = load_engine(self.engine).spec_of(self.name, self.action_repeat)
            return spec
        sim = self.make_sim(1)
        try:
            return sim.spec
        finally:
            sim.close()


def load_engine(name: str) -> ModuleType:
    """Import an engine's module; a UsageError if there is none or it can't be imported."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}: choose from {', '.join(ENGINES)}")
    try:
        return importlib.import_module(ENGINES[name])
    except ImportError as error:
        raise UsageError(f"engine {name!r} can't be loaded here ({error}): pip install 'mtray[{name}]'") from error
