"""The laws of the data path on dm_control tasks, under both hosts, from simulator to batch.

Each law's test fails on TorchRL's plain path; `test_assumptions.py` shows where.
"""

import numpy as np
import psutil
import pytest
import torch
from tensordict import LazyStackedTensorDict

from mtray.collect.exploration import normal_noise
from mtray.collect.hosts.make import make_host
from mtray.collect.loop import ActingLoop
from mtray.config.learner import NetworkConfig
from mtray.config.settings import ReplayConfig
from mtray.data.schema import by_task, validate
from mtray.errors import TaskError
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import snapshot
from mtray.replay.buffer import ReplayBuffer
from mtray.tasks.env import TaskEnv
from mtray.tasks.makers import make_makers
from mtray.tasks.parallel import MultiTaskEnv

COPIES, STEPS, SEEDS = 2, 48, (1, 2, 3)


class Rollouts:
    """Rollouts of different tasks, long enough that every copy ends an episode."""

    def __init__(self, tasks, host, rollouts=22):
        self.tasks = tasks
        self.specs = tuple(task.spec for task in tasks)
        self.host = make_host(host, make_makers(tasks, COPIES, SEEDS))
        torch.manual_seed(0)
        self.policy = MultiTaskPolicy(self.specs, NetworkConfig(actor_width=32)).requires_grad_(False)
        self.collector = ActingLoop(
            self.host,
            self.policy.layout,
            rollout_steps=STEPS,
            discounts={spec.name: spec.discount for spec in self.specs},
            seed=9,
        )
        self.collector.load(snapshot(self.policy, version=1))
        self.rollouts, self.episodes = [], []
        for _ in range(rollouts):
            rollout = self.collector.collect()
            self.rollouts.append(rollout.data.clone())
            self.episodes += rollout.episodes
        self.host.close()
        self.names = [spec.name for spec in self.specs]

    def task(self, name):
        """Return all rollouts of a task, concatenated: [K, L x rollouts]."""
        return torch.cat([by_task(data, self.names)[name] for data in self.rollouts], 1)


@pytest.fixture(scope="module", params=["parallel", "inline"])
def made(request, mixed):
    return Rollouts(mixed, request.param)


def test_a_rollout_is_a_lazy_stack_of_one_dense_tensordict_per_task(made):
    for data in made.rollouts:
        assert isinstance(data, LazyStackedTensorDict)
        assert len(data.tensordicts) == 3
        for part, spec in zip(data.tensordicts, made.specs, strict=True):
            assert not isinstance(part, LazyStackedTensorDict)
            assert part.batch_size == torch.Size([COPIES, STEPS])
            validate(part, spec, width=67)


def test_law_1_an_observation_is_the_previous_next_observation_unless_an_episode_ended(made):
    for spec in made.specs:
        data = made.task(spec.name)
        observation, reached = data[spec.key][:, 1:], data["next", spec.key][:, :-1]
        ended = data["next", "done"][:, :-1, 0]
        same = (observation.view(torch.int32) == reached.contiguous().view(torch.int32)).all(-1)
        assert torch.equal(same, ~ended)
        # It advances: consecutive states differ.
        assert (observation[:, 1:] != observation[:, :-1]).any(-1).all()


def test_law_1_actions_are_computed_from_the_observation_of_the_same_step(made):
    # With the policy's noise drawn again from its seed, every action follows from the observation of its step.
    policy = made.policy
    width = policy.action_mask.shape[-1]
    noise = normal_noise((3, COPIES, width), 1, np.random.default_rng(9).spawn(3)[0])
    for data in made.rollouts[:3]:
        for step in range(STEPS):
            observation = torch.stack([part["observation"][:, step] for part in data.tensordicts])
            action = policy.act(observation, noise=torch.from_numpy(noise.draw()))
            for index, part in enumerate(data.tensordicts):
                size = part["action"].shape[-1]
                torch.testing.assert_close(part["action"][:, step], action[index, :, :size], atol=1e-6, rtol=0)


def test_law_2_a_time_limit_truncates_and_next_is_the_true_last_observation(made):
    for spec, seed, task in zip(made.specs, SEEDS, made.tasks, strict=True):
        data = made.task(spec.name)
        truncated = data["next", "truncated"][..., 0]
        assert truncated.sum() == COPIES
        assert truncated[:, 999].all()
        assert not data["next", "terminated"].any()
        assert torch.equal(data["next", "done"][..., 0], truncated)
        # Replay the first copy's actions in a single environment with the same seed.
        env = TaskEnv(task, num_envs=1, seed=seed)
        state = env.reset()
        for step in range(1000):
            state["action"] = data["action"][:1, step]
            reached = env.step(state)["next"]
            state = reached.clone()
        assert torch.equal(reached[spec.key], data["next", spec.key][:1, 999])
        assert not torch.equal(data[spec.key][:1, 1000], reached[spec.key])


def test_law_2_an_environments_own_end_is_terminated_under_both_hosts():
    from mtray.tasks.plan import Task
    from mtray.testing import CountingMaker

    task = Task("short", "torchrl", CountingMaker(terminate_after=5))
    for name in ("parallel", "inline"):
        host = make_host(name, make_makers([task], 2, [0]))
        ends = []
        for _ in range(11):
            host.slots[0].action[:] = 0
            host.step()
            slot = host.slots[0]
            ends.append((slot.terminated.tolist(), slot.truncated.tolist(), slot.next_observation[0, 0].item()))
        host.close()
        assert [step for step, (terminated, _, _) in enumerate(ends) if terminated[0]] == [4, 9]
        assert not any(truncated[0] for _, truncated, _ in ends)
        assert ends[4][2] == 5.0
        assert ends[5][2] == 1.0


def test_law_3_what_goes_into_the_replay_comes_out_bit_for_bit_in_any_order_and_subset(made):
    replay = ReplayBuffer(made.specs, ReplayConfig(capacity_rows=10_000))
    sent = {name: set() for name in made.names}
    orders = [(0, 1, 2), (2, 0, 1), (1,), (2, 1), (0,)]
    for index, data in enumerate(made.rollouts):
        parts = [data.tensordicts[position] for position in orders[index % len(orders)]]
        replay.extend(LazyStackedTensorDict.lazy_stack(parts, 0))
        for part in parts:
            spec = next(spec for spec in made.specs if spec.key in part.keys())
            sent[spec.name] |= transitions_of(part.reshape(-1), spec)
    assert replay.frames() == {name: len(sent[name]) for name in made.names}
    for _ in range(5):
        batch = replay.sample(256)
        for part, spec in zip(batch.tensordicts, made.specs, strict=True):
            validate(part, spec, width=67)
            assert not part["observation"][:, spec.observation_size :].any()
            assert transitions_of(part, spec) <= sent[spec.name]


def transitions_of(data, spec):
    """Return every row of dense data as bytes."""
    fields = [data[spec.key], data["action"], data["next", "reward"], data["next", spec.key]]
    flags = [data[key] for key in ("done", "terminated", "truncated")]
    flags += [data["next", key] for key in ("done", "terminated", "truncated")]
    rows = torch.cat([*fields, *(flag.float() for flag in flags)], -1)
    return {row.tobytes() for row in np.ascontiguousarray(rows.numpy())}


def test_episodes_are_reported_with_their_return_and_length(made):
    for spec in made.specs:
        data = made.task(spec.name)
        episodes = [episode for episode in made.episodes if episode.task == spec.name]
        assert [episode.steps for episode in episodes] == [1000] * COPIES
        expected = data["next", "reward"][:, :1000, 0].double().sum(1)
        assert np.allclose(sorted(e.episode_return for e in episodes), sorted(expected.tolist()), rtol=1e-6)


def test_both_hosts_give_the_same_data_bit_for_bit(mixed):
    first, second = (Rollouts(mixed, host, rollouts=3) for host in ("parallel", "inline"))
    for ours, theirs in zip(first.rollouts, second.rollouts, strict=True):
        for a, b in zip(ours.tensordicts, theirs.tensordicts, strict=True):
            assert (a == b).all()


def test_a_parallel_hosts_step_equals_torchrls_step_and_maybe_reset(mixed):
    host = make_host("parallel", make_makers(mixed, COPIES, SEEDS))
    oracle = MultiTaskEnv(make_makers(mixed, COPIES, SEEDS))
    random = np.random.default_rng(0)
    state = oracle.reset()
    for _ in range(20):
        for index, slot in enumerate(host.slots):
            slot.action[:] = random.uniform(-1, 1, slot.action.shape)
            state[index]["action"] = torch.from_numpy(slot.action.copy())
        host.step()
        stepped, state = oracle.step_and_maybe_reset(state)
        for index, (slot, spec) in enumerate(zip(host.slots, host.specs, strict=True)):
            reached = stepped[index]["next"]
            assert np.array_equal(slot.next_observation, reached[spec.key].numpy())
            assert np.array_equal(slot.reward, reached["reward"][:, 0].numpy())
            assert np.array_equal(slot.observation, state[index][spec.key].numpy())
    host.close()
    oracle.close()


def test_a_simulator_process_that_dies_is_named_and_the_others_end(mixed):
    host = make_host("parallel", make_makers(mixed, 1, SEEDS))
    processes = [psutil.Process(pid) for pid in host.processes]
    processes[1].kill()
    with pytest.raises(TaskError, match="'cheetah-run': the process that steps it was killed by SIGKILL"):
        host.step()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    host.close()
