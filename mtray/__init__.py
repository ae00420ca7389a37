"""mtray: one policy, many simulator tasks, one Ray cluster or one laptop.

policy = mtray.load_policy("runs/a")           # a TensorDictModule: policy(env.reset()) has an action
env = mtray.make_task_env("humanoid-walk", like=policy)  # one task as a TorchRL environment, with the tutorial's keys
mtray.register_task("my-task", maker)          # a user's own task
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtray.cluster.train import train as train
    from mtray.collect.evaluation import evaluate_policy as evaluate_policy
    from mtray.config.learner import LearnerConfig as LearnerConfig
    from mtray.config.learner import NetworkConfig as NetworkConfig
    from mtray.config.settings import CollectorConfig as CollectorConfig
    from mtray.config.settings import Config as Config
    from mtray.config.settings import ReplayConfig as ReplayConfig
    from mtray.config.settings import RunConfig as RunConfig
    from mtray.errors import MtrayError as MtrayError
    from mtray.errors import RunError as RunError
    from mtray.errors import SchemaError as SchemaError
    from mtray.errors import TaskError as TaskError
    from mtray.errors import UsageError as UsageError
    from mtray.rundir.checkpoints.checkpoint import read_config as read_config
    from mtray.rundir.checkpoints.policies import load_policy as load_policy
    from mtray.tasks.env import make_task_env as make_task_env
    from mtray.tasks.parallel import MultiTaskEnv as MultiTaskEnv
    from mtray.tasks.parallel import make_multi_task_env as make_multi_task_env
    from mtray.tasks.registry import register_task as register_task
    from mtray.tasks.registry import task_names as task_names
    from mtray.tasks.registry import task_sets as task_sets

__version__: str

# Module to names, imported on first access, so that `import mtray` is fast.
_NAMES = {
    "cluster.train": ("train",),
    "collect.evaluation": ("evaluate_policy",),
    "config.learner": ("LearnerConfig", "NetworkConfig"),
    "config.settings": ("CollectorConfig", "Config", "ReplayConfig", "RunConfig"),
    "errors": ("MtrayError", "RunError", "SchemaError", "TaskError", "UsageError"),
    "rundir.checkpoints.checkpoint": ("read_config",),
    "rundir.checkpoints.policies": ("load_policy",),
    "tasks.env": ("make_task_env",),
    "tasks.parallel": ("MultiTaskEnv", "make_multi_task_env"),
    "tasks.registry": ("register_task", "task_names", "task_sets"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("mtray")
    if name not in _MODULES:
        raise AttributeError(f"module 'mtray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mtray.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
