"""Behaviour of TorchRL and Ray that mtray relies on, and traps that it works around.

After an upgrade, a failing test of the first kind shows code that must change; one of the second kind shows a
workaround that can be deleted.
"""

import functools
import os

import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import LazyTensorStorage, ListStorage, ReplayBuffer
from torchrl.envs import ParallelEnv, SerialEnv

from mtray.data.specs import task_key
from mtray.tasks.env import TaskEnv
from mtray.tasks.makers import make_makers


def random_actions(td):
    for part in td.tensordicts:
        size = {67: 21, 17: 6, 5: 1}[next(part[k].shape[-1] for k in part.keys() if k.startswith("observation_"))]
        part["action"] = torch.rand(*part.batch_size, size) * 2 - 1
    return td


@pytest.fixture(scope="module")
def plain(mixed):
    """torchrl's own ParallelEnv over three tasks of different widths."""
    env = ParallelEnv(3, make_makers(mixed, 2, [1, 2, 3]), mp_start_method="fork", use_buffers=True)
    yield env
    env.close()


def exclusive(mixed, index):
    return task_key(mixed[index].name)


# Relied on


def test_step_and_maybe_reset_with_buffers_is_correct_with_exclusive_keys(plain, mixed):
    state = plain.reset()
    for _ in range(5):
        stepped, following = plain.step_and_maybe_reset(random_actions(state))
        for index in range(3):
            key = exclusive(mixed, index)
            assert torch.equal(stepped[index]["next", key], following[index][key])
            assert not torch.equal(stepped[index][key], following[index][key])
        state = following


def test_parallel_env_has_the_attributes_that_mtray_uses(plain):
    assert plain._use_buffers
    assert len(plain.shared_tensordicts) == len(plain.parent_channels) == len(plain._workers) == 3
    assert len(plain._shm_done_flags) == 3
    for shared in (plain.shared_tensordicts[index] for index in range(3)):
        for tensor in shared.values(include_nested=True, leaves_only=True):
            assert tensor.is_shared()


def test_shared_tensors_are_written_in_place_by_a_step(plain, mixed):
    state = plain.reset()
    pointers = [plain.shared_tensordicts[index]["next", exclusive(mixed, index)].data_ptr() for index in range(3)]
    stepped, _ = plain.step_and_maybe_reset(random_actions(state))
    for index in range(3):
        shared = plain.shared_tensordicts[index]["next", exclusive(mixed, index)]
        assert shared.data_ptr() == pointers[index]
        assert torch.equal(shared, stepped[index]["next", exclusive(mixed, index)])


def test_a_dead_actor_restarts_nothing_by_default_and_calls_are_not_retried():
    import ray
    from ray.actor import ActorClass

    remote = ray.remote(type("Nothing", (), {}))
    assert isinstance(remote, ActorClass)
    assert not remote._default_options.get("max_restarts", 0)
    assert not remote._default_options.get("max_task_retries", 0)


# Traps that are still there


def test_trap_default_rollout_feeds_stale_exclusive_observations(plain, mixed):
    rollout = plain.rollout(5, random_actions, return_contiguous=False)
    observation = rollout[2][exclusive(mixed, 2)][0]
    reached = rollout[2]["next", exclusive(mixed, 2)][0]
    assert not torch.equal(observation[1:], reached[:-1])
    assert torch.equal(observation[0], observation[4])


def test_trap_serial_env_rollout_is_stale_too(mixed):
    env = SerialEnv(2, make_makers(mixed[:2], 2, [1, 2]))
    rollout = env.rollout(5, random_actions, return_contiguous=False)
    observation = rollout[0][exclusive(mixed, 0)][0]
    assert torch.equal(observation[0], observation[4])
    env.close()


def two_task_stack(order=(0, 1)):
    parts = [
        TensorDict({"observation": torch.ones(4, 3), f"observation_{name}": torch.full((4, 2), float(value))}, [4])
        for name, value in (("a", 1), ("b", 2))
    ]
    return LazyStackedTensorDict.lazy_stack([parts[index] for index in order], 0)


def test_trap_lazy_tensor_storage_loses_exclusive_keys():
    buffer = ReplayBuffer(storage=LazyTensorStorage(10), batch_size=2)
    try:
        buffer.extend(two_task_stack())
        buffer.extend(two_task_stack())
        sampled = buffer[:4]
        parts = sampled.tensordicts if isinstance(sampled, LazyStackedTensorDict) else list(sampled.unbind(0))
        values = [[part.get(key, None) for key in ("observation_a", "observation_b")] for part in parts]
        right = all(
            (a is None) != (b is None) and torch.equal(a if a is not None else b, torch.full((4, 2), 1.0 + (a is None)))
            for a, b in values
        )
    except (KeyError, RuntimeError):
        right = False
    assert not right


def test_list_storage_is_correct_with_exclusive_keys():
    buffer = ReplayBuffer(storage=ListStorage(10), batch_size=2)
    buffer.extend(two_task_stack())
    buffer.extend(two_task_stack(order=(1, 0)))
    values = [buffer[index].get("observation_a", None) is not None for index in range(4)]
    assert values == [True, False, False, True]


def test_trap_partial_tolerant_runs_a_head_once_per_row():
    calls = []

    class Head(nn.Module):
        def forward(self, observation):
            calls.append(observation.shape)
            return observation

    head = TensorDictModule(Head(), in_keys=["observation_a"], out_keys=["action"])
    sequence = TensorDictSequential(head, partial_tolerant=True)
    rows = [part for td in two_task_stack().tensordicts for part in td.unbind(0)]
    sequence(LazyStackedTensorDict.lazy_stack(rows, 0))
    assert len(calls) == 4


def test_trap_a_head_that_reads_only_common_keys_runs_for_every_task():
    calls = []

    def head(observation):
        calls.append(observation.shape[0])
        return observation

    module = TensorDictModule(head, in_keys=["observation"], out_keys=["action"])
    TensorDictSequential(module, partial_tolerant=True)(two_task_stack())
    assert calls == [2]


def test_trap_parallel_env_builds_every_environment_in_the_parent(mixed, tmp_path):
    # MultiTaskEnv's makers build their simulators at the first reset, so that this costs nothing.
    built = tmp_path / "pids"

    def maker(task):
        with built.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return TaskEnv(task, num_envs=1)

    env = ParallelEnv(2, [functools.partial(maker, task) for task in mixed[:2]], mp_start_method="fork")
    env.reset()
    env.close()
    assert str(os.getpid()) in built.read_text().split()
