"""Tasks as plain data: what travels to the process that steps them."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mtray.data.specs import TaskSpec, check_specs
from mtray.engines.base import BatchSim
from mtray.errors import TaskError, UsageError

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


# Engines that a bare installation lacks; each is an extra of that name.
EXTRAS = ("envpool",)

# Copies that a user's maker builds where its spec is read: with two it shows whether they are two.
_PROBED_COPIES = 2


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
            TaskError: the user's maker raised.
            UsageError: it built something that can't be used, or that differs from the spec read before.
        """
        if num_envs < 1:
            raise UsageError(f"task {self.name!r}: {num_envs} copies requested, at least 1 is needed")
        if self.maker is None:
            sim: BatchSim = load_engine(self.engine).make_sim(self.spec, num_envs, seed)
            return sim
        sim = importlib.import_module(TORCHRL_MODULE).TorchrlSim(self.name, self.maker, num_envs, seed)
        try:
            if "spec" in self.__dict__:
                check_specs([self.spec], [sim.spec], "when the task was resolved")
        except UsageError:
            sim.close()
            raise
        return sim

    @property
    def has_threads(self) -> bool:
        """The simulators step in threads of their own."""
        return self.engine == "envpool"

    @functools.cached_property
    def spec(self) -> TaskSpec:
        """What the task's data looks like; read once, then it travels with the task.

        A user's environment is built, reset and stepped once for it, so that what can't work is refused here.

        Raises:
            UsageError: the user's maker or environment raised, or can't be used.
        """
        if self.maker is None:
            spec: TaskSpec = load_engine(self.engine).spec_of(self.name, self.action_repeat)
            return spec
        try:
            sim: Any = self.make_sim(_PROBED_COPIES)
            try:
                sim.probe()
            finally:
                sim.close()
        except TaskError as error:
            raise UsageError(str(error)) from error
        read: TaskSpec = sim.spec
        return read


def load_engine(name: str) -> ModuleType:
    """Import an engine's module; a UsageError if there is none or it can't be imported."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}: choose from {', '.join(ENGINES)}")
    try:
        return importlib.import_module(ENGINES[name])
    except ImportError as error:
        remedy = f'pip install -e ".[{name}]"' if name in EXTRAS else "pip install -e . brings what it needs"
        raise UsageError(f"engine {name!r} can't be loaded here ({error}): {remedy}") from error
