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
    from mtray.config.settings import CollectorConfig as CollectorConfig
    from mtray.config.settings import Config as Config
    from mtray.config.settings import LearnerConfig as LearnerConfig
    from mtray.config.settings import NetworkConfig as NetworkConfig
    from mtray.config.settings import ReplayConfig as ReplayConfig
    from mtray.config.settings import RunConfig as RunConfig
    from mtray.errors import MtrayError as MtrayError
    from mtray.errors import RunError as RunError
    from mtray.errors import SchemaError as SchemaError
    from mtray.errors import TaskError as TaskError
    from mtray.errors import UsageError as UsageError
    from mtray.rundir.checkpoint import read_config as read_config
    from mtray.rundir.policies import load_policy as load_policy
    from mtray.tasks.env import make_task_env as make_task_env
    from mtray.tasks.parallel import MultiTaskEnv as MultiTaskEnv
    from mtray.tasks.parallel import make_multi_task_env as make_multi_task_env
    from mtray.tasks.registry import register_task as register_task
    from mtray.tasks.registry import task_names as task_names
    from mtray.tasks.registry import task_sets as task_sets

__version__: str

# Name to module, imported on first access, so that `import mtray` is fast.
_PUBLIC = {
    "CollectorConfig": "config.settings",
    "Config": "config.settings",
    "LearnerConfig": "config.settings",
    "MtrayError": "errors",
    "MultiTaskEnv": "tasks.parallel",
    "NetworkConfig": "config.settings",
    "ReplayConfig": "config.settings",
    "RunConfig": "config.settings",
    "RunError": "errors",
    "SchemaError": "errors",
    "TaskError": "errors",
    "UsageError": "errors",
    "evaluate_policy": "collect.evaluation",
    "load_policy": "rundir.policies",
    "make_multi_task_env": "tasks.parallel",
    "make_task_env": "tasks.env",
    "read_config": "rundir.checkpoint",
    "register_task": "tasks.registry",
    "task_names": "tasks.registry",
    "task_sets": "tasks.registry",
    "train": "cluster.train",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("mtray")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mtray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mtray.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
