"""Tasks as plain data, which can be sent to the process that steps them."""

from __future__ import annotations

import contextlib
import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from mtray.data.specs import TaskSpec, check_specs
from mtray.engines.base import BatchSim
from mtray.errors import TaskError, UsageError
from mtray.tasks.guarded import limited

if TYPE_CHECKING:
    from mtray.engines.torchrl import Maker

# The engine of users' makers. Its module is imported only when needed, since it imports torch.
TORCHRL = "torchrl"
TORCHRL_MODULE = "mtray.engines.torchrl"

# Modules of the other engines, each imported only when needed, since it imports its simulator. They define
# task_names(), task_sets(), spec_of(name, action_repeat) and make_sim(spec, num_envs, seed).
ENGINES = {
    "mujoco": "mtray.engines.mujoco",
    "dm_control": "mtray.engines.dm_control",
    "envpool": "mtray.engines.envpool",
}
DEFAULT_ENGINE = "mujoco"

# Engines that need an extra of the same name.
EXTRAS = ("envpool",)


@dataclass(frozen=True)
class Task:
    """A task that can be built in any process.

    Attributes:
        name: the task's name, as in its exclusive key.
        engine: the simulator's name.
        maker: a user's maker; None for an engine's task.
        action_repeat: control steps per agent step; 1 for a maker's task.
    """

    name: str
    engine: str
    maker: Maker | None = None
    action_repeat: int = 1

    def make_sim(self, num_envs: int, seed: int = 0) -> BatchSim:
        """Build K copies in this process.

        Raises:
            TaskError: the user's maker raised.
            UsageError: its environment can't be used, or differs from the spec that was read before.
        """
        if num_envs < 1:
            raise UsageError(f"task {self.name!r}: {num_envs} copies requested, at least 1 is needed")
        if self.maker is None:
            return cast(BatchSim, load_engine(self.engine).make_sim(self.spec, num_envs, seed))
        sim: BatchSim = importlib.import_module(TORCHRL_MODULE).TorchrlSim(self.name, self.maker, num_envs, seed)
        try:
            if "spec" in self.__dict__:
                check_specs([self.spec], [sim.spec], "when the task was resolved")
                # Their values travel without names.
                if sim.spec.info != self.spec.info:
                    now, before = (", ".join(spec.info) or "nothing" for spec in (sim.spec, self.spec))
                    raise UsageError(
                        f"task {self.name!r}: it reports {now} beside its reward, but {before} when the task was "
                        "resolved: its maker must report the same in every process"
                    )
        except UsageError:
            sim.close()
            raise
        return sim

    @property
    def has_threads(self) -> bool:
        """Whether the simulators step in their own threads."""
        return self.engine == "envpool"

    @functools.cached_property
    def spec(self) -> TaskSpec:
        """The task's spec, read at the first access and pickled with the task.

        A user's environment is built, reset and stepped a few times, to find errors early.

        Raises:
            UsageError: the user's maker or environment raised, can't be used, or does not return.
        """
        if self.maker is None:
            return cast(TaskSpec, load_engine(self.engine).spec_of(self.name, self.action_repeat))
        try:
            with limited(f"task {self.name!r}: its maker, and the first reset and steps of its environment"):
                # Two copies, to find makers that return the same environment twice.
                sim: Any = self.make_sim(2)
                with contextlib.closing(sim):
                    sim.probe()
        except TaskError as error:
            raise UsageError(str(error)) from error
        return cast(TaskSpec, sim.spec)


def load_engine(name: str) -> ModuleType:
    """Import an engine's module.

    Raises:
        UsageError: no engine has this name, or its module can't be imported.
    """
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}: choose from {', '.join(ENGINES)}")
    try:
        return importlib.import_module(ENGINES[name])
    except ImportError as error:
        remedy = f'pip install -e ".[{name}]"' if name in EXTRAS else "pip install -e ."
        raise UsageError(f"engine {name!r} can't be loaded here ({error}): {remedy}") from error
