"""How TorchRL alone collects several tasks of dm_control: the environments of its multi-task tutorial.

Each function runs in a process of its own and gives frames per second. Of the layouts tried the fastest are measured.
With two humanoid tasks on 2 cores, in frames per second of one sitting: a task per collector, one environment 1,700
(256 frames a batch), a SerialEnv of 8 1,400 (256) or 600 (1,024), of 16 2,300 (2,048); both tasks in each collector,
in a SerialEnv 1,500 (64 frames a batch), 500 (256) or 600 (1,024), in a ParallelEnv 270 (256). Exclusive keys need
``use_buffers=False`` where both tasks share a collector.
"""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import plain_ray
from collecting import DEVIATION

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

_REPLAY_ROWS = 1_000_000
_COPIES = 16
_ALONE_BATCH_FRAMES = 2048
_TOGETHER_BATCH_FRAMES = 64


def make_env(task: str) -> EnvBase:
    """The tutorial's environment of one task."""
    from torchrl.envs import CatTensors, Compose, DoubleToFloat, TransformedEnv
    from torchrl.envs.libs.dm_control import DMControlEnv

    env = DMControlEnv(*task.split("-"))
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


def parallel_env(tasks: Sequence[str], processes: int, warmup_seconds: float, seconds: float) -> float:
    """ParallelEnv, a process per environment, random actions, no replay."""
    from torchrl.envs import ParallelEnv

    env = ParallelEnv(processes, [functools.partial(make_env, tasks[i % len(tasks)]) for i in range(processes)])
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


def _copies_of(task: str) -> EnvBase:
    from torchrl.envs import SerialEnv

    return SerialEnv(_COPIES, functools.partial(make_env, task))


def _one_of_each(tasks: Sequence[str]) -> EnvBase:
    from torchrl.envs import SerialEnv

    return SerialEnv(len(tasks), [functools.partial(make_env, task) for task in tasks], use_buffers=False)


def ray_collector_apart(tasks: Sequence[str], cores: int, warmup_seconds: float, seconds: float) -> float:
    """RayCollector with a task per collector, on all cores: what tasks of one width and as many collectors allow."""
    from torchrl.data import LazyTensorStorage, ReplayBuffer

    replays = {f"observation_{task}": ReplayBuffer(storage=LazyTensorStorage(_REPLAY_ROWS)) for task in tasks}

    def store(batch: Any) -> None:
        replays[next(key for key in replays if key in batch.keys())].extend(batch.reshape(-1))  # noqa: SIM118

    makers = [functools.partial(_copies_of, task) for task in tasks] * max(1, cores // len(tasks))
    return _collect(makers, tasks, store, _ALONE_BATCH_FRAMES, warmup_seconds, seconds)


def ray_collector_together(tasks: Sequence[str], collectors: int, warmup_seconds: float, seconds: float) -> float:
    """RayCollector with every task in every collector, as the tutorial has them, and a dense buffer per task."""
    from torchrl.data import LazyTensorStorage, ReplayBuffer

    replays = [ReplayBuffer(storage=LazyTensorStorage(_REPLAY_ROWS)) for _ in tasks]

    def store(batch: Any) -> None:
        for replay, part in zip(replays, batch.unbind(0), strict=True):
            replay.extend(part.contiguous())

    makers = [functools.partial(_one_of_each, tasks)] * collectors
    return _collect(makers, tasks, store, _TOGETHER_BATCH_FRAMES, warmup_seconds, seconds)


def _noise() -> Any:
    """Return a layer that adds noise and bounds the sum."""
    import torch

    class Noise(torch.nn.Module):
        def forward(self, actions: torch.Tensor) -> torch.Tensor:
            return torch.tanh(actions + DEVIATION * torch.randn_like(actions))

    return Noise()


def _collect(
    makers: list[Callable[[], EnvBase]],
    tasks: Sequence[str],
    store: Callable[[Any], None],
    batch_frames: int,
    warmup_seconds: float,
    seconds: float,
) -> float:
    """First come first served, with a network that acts; a frame counts when it is in its task's replay buffer."""
    import ray
    import torch
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.collectors.distributed import RayCollector
    from torchrl.modules import MLP

    warnings.simplefilter("ignore")  # It has no way to send weights, and says so.
    # Ray's workers find the modules of the script's folder only, and the script may be another one.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    env = make_env(tasks[0])
    sizes = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    env.close()
    # Actions as those of everybody here: a new network's alone are near zero, and limp humanoids cost MuJoCo more.
    network = torch.nn.Sequential(MLP(*sizes, num_cells=[128, 128]), _noise())
    policy = TensorDictModule(network, in_keys=["observation"], out_keys=["action"])
    with plain_ray.start(len(makers)):
        collector = RayCollector(
            makers,
            policy=policy,
            collector_class=Collector,
            frames_per_batch=batch_frames,
            total_frames=2**62,
            sync=False,
            num_collectors=len(makers),
            remote_configs={"num_cpus": 1},
        )
        times: list[float] = []
        begin = 0.0
        for batch in collector:
            store(batch)
            now = time.perf_counter()
            begin = begin or now + warmup_seconds
            if now >= begin:
                times.append(now)
            if now >= begin + seconds:
                break
        collector.shutdown()
    return (len(times) - 1) * batch_frames / (times[-1] - times[0])
