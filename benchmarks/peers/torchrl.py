"""How TorchRL alone collects humanoid-stand and humanoid-walk: the environments of its multi-task tutorial.

Each function runs in a process of its own and gives frames per second. Everything is set in TorchRL's favour where
there is a choice: random actions cost less than a network's, and of the layouts tried the fastest is measured.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

_TASKS = ("stand", "walk")
# A round trip through Ray costs as much as hundreds of frames: 32 frames per batch give half of this one's rate.
_RAY_BATCH_FRAMES = 256
_REPLAY_ROWS = 1_000_000


def make_env(task: str) -> EnvBase:
    """The tutorial's environment of one humanoid task."""
    from torchrl.envs import CatTensors, Compose, DoubleToFloat, TransformedEnv
    from torchrl.envs.libs.dm_control import DMControlEnv

    env = DMControlEnv("humanoid", task)
    keys = list(env.observation_spec.keys())
    common, own = "observation", f"observation_{task}"
    return TransformedEnv(
        env,
        Compose(
            CatTensors(keys, own, del_keys=False),
            CatTensors(keys, common),
            DoubleToFloat(in_keys=[own, common], in_keys_inv=["action"]),
        ),
    )


def _makers(count: int) -> list[functools.partial[EnvBase]]:
    return [functools.partial(make_env, _TASKS[index % len(_TASKS)]) for index in range(count)]


def parallel_env(processes: int, warmup_seconds: float, seconds: float) -> float:
    """ParallelEnv, a process per environment, no replay."""
    from torchrl.envs import ParallelEnv

    env = ParallelEnv(processes, _makers(processes))
    try:
        data = env.reset()
        begin = time.perf_counter() + warmup_seconds
        while time.perf_counter() < begin:
            _, data = env.step_and_maybe_reset(env.rand_action(data))
        steps, begin = 0, time.perf_counter()
        while time.perf_counter() < begin + seconds:
            _, data = env.step_and_maybe_reset(env.rand_action(data))
            steps += 1
        return steps * processes / (time.perf_counter() - begin)
    finally:
        env.close()


def ray_collector(processes: int, warmup_seconds: float, seconds: float) -> float:
    """RayCollector, first come first served; a frame counts when it is in its task's replay buffer.

    One plain environment per collector: with a ParallelEnv of both tasks in each, half the rate is lost to lazy
    stacks, and exclusive keys need ``use_buffers=False``.
    """
    import ray
    from torchrl.collectors import Collector
    from torchrl.collectors.distributed import RayCollector
    from torchrl.data import LazyTensorStorage, ReplayBuffer

    warnings.simplefilter("ignore")  # It has no policy weights to send, and says so.
    # Ray's workers find the modules of the script's folder only, and the script may be another one.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    replays = {f"observation_{task}": ReplayBuffer(storage=LazyTensorStorage(_REPLAY_ROWS)) for task in _TASKS}
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    with ray.init(address="local", num_cpus=processes, **quiet):
        collector = RayCollector(
            _makers(processes),
            policy=None,
            collector_class=Collector,
            frames_per_batch=_RAY_BATCH_FRAMES,
            total_frames=2**62,
            sync=False,
            num_collectors=processes,
            remote_configs={"num_cpus": 1},
        )
        times: list[float] = []
        begin = 0.0
        for batch in collector:
            replays[next(key for key in replays if key in batch.keys())].extend(batch)  # noqa: SIM118
            now = time.perf_counter()
            begin = begin or now + warmup_seconds
            if now >= begin:
                times.append(now)
            if now >= begin + seconds:
                break
        collector.shutdown()
    return (len(times) - 1) * _RAY_BATCH_FRAMES / (times[-1] - times[0])
