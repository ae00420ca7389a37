"""The acting loop: returns, lengths, random first actions, weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from mtray.collect.episodes import EpisodeTracker, discounted_returns
from mtray.collect.hosts.make import make_host
from mtray.collect.loop import ActingLoop
from mtray.config.learner import NetworkConfig
from mtray.data.rollout import pack
from mtray.data.specs import observation_width
from mtray.data.tensordicts import to_rollout
from mtray.engines import states
from mtray.errors import SchemaError
from mtray.policy.layout import PolicyLayout
from mtray.policy.policy import MultiTaskPolicy
from mtray.policy.weights import snapshot
from mtray.tasks.makers import make_makers
from mtray.tasks.plan import Task
from mtray.tasks.registry import resolve
from mtray.testing import CountingMaker

NETWORK = NetworkConfig(actor_width=8, embedding_size=2)
TASKS = [
    Task("short", "torchrl", CountingMaker(truncate_after=5)),
    Task("long", "torchrl", CountingMaker(terminate_after=12, action_size=3)),
]
SPECS = tuple(task.spec for task in TASKS)
LAYOUT = PolicyLayout(SPECS, NETWORK)
# Tasks of different widths, of an engine without TensorDicts.
PLAIN = ("cartpole-balance", "walker-walk")


def make_collector(steps=8, seed=0, **settings):
    host = make_host("inline", make_makers(TASKS, 2, [0, 1]))
    discounts = {"short": 0.9, "long": 0.5}
    return ActingLoop(host, LAYOUT, rollout_steps=steps, discounts=discounts, seed=seed, **settings)


def certain_policy():
    """Return a policy with means of 2 before the tanh and a tiny standard deviation."""
    policy = MultiTaskPolicy(SPECS, NETWORK)
    with torch.no_grad():
        policy.heads.output.weight.zero_()
        policy.heads.output.bias[:, :3] = 2.0
        policy.heads.output.bias[:, 3:] = -20.0
    return policy


@pytest.mark.parametrize("discount", [0.5, 0.95, 0.995])
def test_discounted_returns_equal_the_plain_recursion(discount):
    rewards = np.random.default_rng(0).normal(size=int(8 / (1 - discount)) + 1).astype(np.float32)
    expected, running = [], 0.0
    for reward in rewards[::-1].astype(np.float64):
        running = reward + discount * running
        expected.append(running)
    np.testing.assert_allclose(discounted_returns(rewards, discount), expected[::-1], rtol=1e-9, atol=1e-9)


def test_episodes_across_rollouts_keep_their_return_and_length():
    collector = make_collector()
    rewards, episodes = {"short": [], "long": []}, []
    for _ in range(6):
        rollout = collector.collect()
        for name, part in zip(rewards, rollout.data.tensordicts, strict=True):
            rewards[name].append(part["next", "reward"][..., 0].clone())
        episodes += rollout.episodes
    for name, length in (("short", 5), ("long", 12)):
        together = torch.cat(rewards[name], 1).double()
        found = sorted(e.episode_return for e in episodes if e.task == name)
        assert {e.steps for e in episodes if e.task == name} == {length}
        expected = [
            together[copy, start : start + length].sum().item()
            for copy in range(2)
            for start in range(0, 48 - length + 1, length)
        ]
        np.testing.assert_allclose(found, sorted(expected), rtol=1e-6)


def test_the_largest_return_is_that_of_any_step_of_a_rollouts_episodes():
    collector = make_collector(steps=4)
    rollout = collector.collect()
    for name, part, discount in zip(("short", "long"), rollout.data.tensordicts, (0.9, 0.5), strict=True):
        rewards = part["next", "reward"][..., 0].numpy()
        expected = max(np.abs(discounted_returns(row, discount)).max() for row in rewards)
        assert rollout.largest_returns[name] == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 100, 500, 1000])
def test_the_largest_return_does_not_depend_on_the_length_of_rollouts(steps):
    tracker, rewards, largest = EpisodeTracker("a", 1, 0.95), np.zeros((1, 1000), np.float32), 0.0
    rewards[0, :50] = 1
    done = np.zeros((1, 1000), bool)
    done[0, -1] = True
    for begin in range(0, 1000, steps):
        part = slice(begin, begin + steps)
        tracker.add(rewards[:, part], done[:, part], np.zeros((1, steps), bool))
        largest = max(largest, tracker.largest_return)
    assert largest == pytest.approx((1 - 0.95**50) / 0.05)


def test_a_tracker_goes_on_from_a_state_within_an_episode():
    done, is_random = np.zeros((1, 3), bool), np.zeros((1, 3), bool)
    whole, first, second = (EpisodeTracker("a", 1, 0.9) for _ in range(3))
    for rewards in ([1, 1, 1], [2, 2, 2]):
        whole.add(np.array([rewards], np.float32), done, is_random)
    first.add(np.ones((1, 3), np.float32), done, is_random)
    second.load_state(first.state())
    second.add(np.full((1, 3), 2, np.float32), done, is_random)
    # The largest is that of the first step, which the rewards of both rollouts make.
    assert whole.largest_return == second.largest_return > discounted_returns(np.full(3, 2.0), 0.9).max()


def test_first_actions_are_uniform_then_the_policys():
    collector = make_collector(steps=200)
    random = collector.collect().data[1]["action"].reshape(-1)
    assert random.min() < -0.97
    assert random.max() > 0.97
    assert abs(random.mean()) < 0.06
    collector.load(snapshot(certain_policy(), version=4))
    rollout = collector.collect()
    assert rollout.weights_version == 4
    np.testing.assert_allclose(rollout.data[1]["action"], np.tanh(2.0), atol=1e-3)


def test_random_episodes_are_random_from_beginning_to_end_and_reported_so():
    collector = make_collector(steps=60, random_share=0.5, random_steps=1)
    collector.load(snapshot(certain_policy(), version=1))
    rollout = collector.collect()
    counts = set()
    for name, length, part in zip(("short", "long"), (5, 12), rollout.data.tensordicts, strict=True):
        of_policy = [e.of_policy for e in rollout.episodes if e.task == name]
        # All episodes of each copy; random actions are smaller than the policy's.
        actions = part["action"][..., 0].reshape(2 * 60 // length, length)
        is_policys = (actions - np.tanh(2.0)).abs() < 1e-3
        assert (is_policys.all(1) | ~is_policys.any(1)).all()
        assert is_policys.all(1).tolist() == of_policy
        counts |= set(of_policy)
    assert counts == {True, False}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("load_at", [0, 1, 2, 99], ids="weights before rollout {}".format)
def test_an_episode_is_the_policys_only_if_the_policy_chose_every_action(share, load_at, monkeypatch):
    # With 8 steps per rollout, weights arrive within episodes of both tasks (5 and 12 steps).
    collector = make_collector(steps=8, random_share=share, random_steps=1)
    compared = {0: [], 1: []}
    monkeypatch.setattr(collector._random_episodes, "add", lambda task, _, of_policy: compared[task].append(of_policy))
    actions, episodes = {"short": [], "long": []}, []
    for index in range(15):
        if index == load_at:
            collector.load(snapshot(certain_policy(), version=1))
        rollout = collector.collect()
        episodes += rollout.episodes
        for name, arrays in rollout.tasks.items():
            actions[name].append(arrays.action[..., 0].copy())
    for task, (name, length) in enumerate((("short", 5), ("long", 12))):
        # The policy's actions are within 3e-5 of their mean; random ones are not.
        is_random = np.abs(np.concatenate(actions[name], 1) - np.tanh(2.0)) > 3e-5
        random_steps = is_random.reshape(2, -1, length).sum(-1).T.reshape(-1).tolist()
        found = [episode for episode in episodes if episode.task == name]
        assert sorted(episode.random_steps for episode in found) == sorted(random_steps)
        assert all(episode.of_policy == (episode.random_steps == 0) for episode in found)
        assert sum(episode.of_policy for episode in found) == random_steps.count(0)
        # Only episodes of one kind are compared.
        assert sorted(compared[task]) == sorted(count == 0 for count in random_steps if count in (0, length))
        mixed = sum(0 < count < length for count in random_steps)
        if share == 0 and load_at in (1, 2):
            assert mixed == 2
        elif share == 1 or load_at in (0, 99):
            assert mixed == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_episodes_are_the_same_however_they_are_cut_into_rollouts(copies, cuts, seed):
    generator, steps = np.random.default_rng(seed), sum(cuts)
    reward = generator.normal(size=(copies, steps)).astype(np.float32)
    done, is_random = generator.random((2, copies, steps)) < 0.2
    tracker, found, begin = EpisodeTracker("left", copies, 0.9), [[] for _ in range(copies)], 0
    for length in cuts:
        part = np.s_[:, begin : begin + length]
        ended = iter(tracker.add(reward[part], done[part], is_random[part]))
        for copy in range(copies):
            found[copy] += [next(ended) for _ in range(done[part][copy].sum())]
        assert next(ended, None) is None
        begin += length
    for copy in range(copies):
        ends = (np.flatnonzero(done[copy]) + 1).tolist()
        for episode, start, end in zip(found[copy], [0, *ends], ends, strict=False):
            assert (episode.steps, episode.random_steps) == (end - start, is_random[copy, start:end].sum())
            assert episode.episode_return == pytest.approx(reward[copy, start:end].sum(dtype=np.float64))
            assert episode.of_policy == (not is_random[copy, start:end].any())
        assert len(found[copy]) == len(ends)


def test_buffers_have_each_tasks_own_widths_and_are_allocated_once():
    specs = [task.spec for task in resolve(PLAIN)]
    assert len({(spec.observation_size, spec.action_size) for spec in specs}) == len(specs)
    host = make_host("inline", make_makers(resolve(PLAIN), [2, 3], [0, 1]))
    layout = PolicyLayout(tuple(specs), NETWORK)
    collector = ActingLoop(host, layout, rollout_steps=4, discounts=dict.fromkeys(PLAIN, 0.9))
    first, second = collector.collect().tasks, collector.collect().tasks
    assert tuple(first) == PLAIN
    for spec, copies in zip(specs, (2, 3), strict=True):
        arrays = vars(first[spec.name])
        assert {name: array.shape for name, array in arrays.items()} == {
            "observation": (copies, 4, spec.observation_size),
            "action": (copies, 4, spec.action_size),
            "reward": (copies, 4),
            "next_observation": (copies, 4, spec.observation_size),
            "flags": (copies, 4),
        }
        assert all(array is vars(second[spec.name])[name] for name, array in arrays.items())
    host.close()


def test_no_tensordict_is_made_between_simulator_and_rows(monkeypatch):
    tasks = resolve(PLAIN)
    host = make_host("inline", make_makers(tasks, 2, [0, 1]))
    policy = MultiTaskPolicy([task.spec for task in tasks], NETWORK).requires_grad_(False)
    collector = ActingLoop(host, policy.layout, rollout_steps=4, discounts=dict.fromkeys(PLAIN, 0.9))
    collector.load(snapshot(policy, version=1))

    def refuse(*args, **kwargs):
        raise AssertionError("a TensorDict was made")

    monkeypatch.setattr(TensorDict, "__init__", refuse)
    rollout = collector.collect()
    assert [len(pack(arrays)) for arrays in rollout.tasks.values()] == [2 * 5, 2 * 5]
    with pytest.raises(AssertionError, match="a TensorDict was made"):
        assert rollout.data
    host.close()


def test_the_lazy_stack_of_a_rollout_copies_its_arrays_and_flags():
    collector = make_collector(steps=30)
    rollout = collector.collect()
    for data, spec in zip(rollout.data.tensordicts, SPECS, strict=True):
        arrays = vars(rollout.tasks[spec.name])
        for name, field in vars(to_rollout(data, spec, observation_width(SPECS))).items():
            np.testing.assert_array_equal(field, arrays[name])
        before = data.clone()
        for array in arrays.values():
            array.view(np.int32)[:] = -1
        assert (data == before).all()
        step = torch.arange(1, 31).expand(2, -1)
        ended = {"short": {"truncated": step % 5 == 0}, "long": {"terminated": step % 12 == 0}}[spec.name]
        for key in ("terminated", "truncated"):
            assert torch.equal(data["next", key][..., 0], ended.get(key, torch.zeros(2, 30, dtype=torch.bool)))
        assert torch.equal(data["next", "done"], data["next", "terminated"] | data["next", "truncated"])
        assert not any(data[key].any() for key in ("done", "terminated", "truncated"))


def test_weights_of_another_network_are_refused():
    collector = make_collector()
    other = MultiTaskPolicy(SPECS, NetworkConfig(actor_width=9, embedding_size=2))
    with pytest.raises(SchemaError, match="layout"):
        collector.load(snapshot(other, version=1))
    assert collector.weights_version == 0


WITHOUT_TORCH = """
import sys
import numpy as np
import mtray.cluster.actors.collector
from mtray.collect.hosts.make import make_host
from mtray.collect.loop import ActingLoop
from mtray.config.learner import NetworkConfig
from mtray.policy.layout import PolicyLayout, Weights
from mtray.tasks.makers import make_makers
from mtray.tasks.registry import resolve

if __name__ == "__main__":
    names, engine, host = sys.argv[1].split(","), *sys.argv[2:]
    tasks = resolve(names, engine)
    layout = PolicyLayout(tuple(task.spec for task in tasks), NetworkConfig())
    host = make_host(host, make_makers(tasks, 2, [0, 1]))
    loop = ActingLoop(host, layout, rollout_steps=4, discounts=dict.fromkeys(names, 0.9))
    values = np.concatenate([array.ravel() for array in layout.initial_arrays().values()])
    for version in (1, 2):
        loop.load(Weights(version, layout.digest, values))
        assert loop.collect().weights_version == version
    host.close()
    print(sorted({"torch", "tensordict", "torchrl"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("host", ["inline", "parallel"])
@pytest.mark.parametrize("engine", ["mujoco", "dm_control"])
def test_a_collector_has_no_torch(tmp_path, engine, host):
    # In a file: those of the host's processes that are spawned import it.
    (tmp_path / "program.py").write_text(WITHOUT_TORCH)
    command = [sys.executable, tmp_path / "program.py", ",".join(PLAIN), engine, host]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_same_seed_same_rollout():
    first, second, third = (make_collector(seed=seed).collect().data for seed in (3, 3, 4))
    assert (first[1] == second[1]).all()
    assert not torch.equal(first[1]["action"], third[1]["action"])


def test_noise_is_held_within_an_episode_and_drawn_again_in_the_next(monkeypatch):
    collector = make_collector(noise_steps=1000)
    drawn, ended = [], []

    def act(observation, noise):
        drawn.append(torch.from_numpy(noise.copy()))
        return np.zeros_like(noise)

    collector.load(snapshot(MultiTaskPolicy(SPECS, NETWORK), 1))
    monkeypatch.setattr(collector, "_acting", act)
    for _ in range(4):
        ended += collector.collect().data.tensordicts[0]["next", "done"][..., 0].clone().unbind(1)
    steps = list(zip(drawn[:-1], drawn[1:], ended, strict=False))
    assert sum(int(over.sum()) for *_, over in steps) >= 10
    for before, after, over in steps:
        assert (before[0] != after[0]).any(-1)[over].all()
    held = [bool((before == after).all(-1).any()) for before, after, _ in steps]
    assert sum(held) > len(held) / 4


def test_noise_is_multiplied_by_a_factor_of_each_episode(monkeypatch):
    one, other = (make_collector(noise_steps=4, noise_factors=factors) for factors in ((1.0, 1.0), (0.5, 4.0)))
    drawn = []
    for collector in (one, other):
        collector.load(snapshot(MultiTaskPolicy(SPECS, NETWORK), 1))
        monkeypatch.setattr(collector, "_acting", lambda _, noise: drawn.append(noise.copy()) or np.zeros_like(noise))
        collector.collect()
    plain, multiplied = np.split(np.stack(drawn), 2)
    factors = multiplied / plain
    assert ((factors > 0.499) & (factors < 4.001)).all()
    assert len(np.unique(np.round(factors[..., 0], 3))) >= 4, "two copies of two tasks, which begin new episodes"
    # The widths of an action have one factor.
    np.testing.assert_allclose(factors, np.broadcast_to(factors[..., :1], factors.shape), rtol=1e-5)


def suite_loop(host, engine, seed, weights=None):
    tasks = resolve(PLAIN, engine, 2)
    settings = {"noise_steps": 16, "noise_factors": (0.5, 4.0), "random_share": 0.5, "random_steps": 16}
    loop = ActingLoop(
        make_host(host, make_makers(tasks, 2, [seed, seed + 1])),
        PolicyLayout(tuple(task.spec for task in tasks), NETWORK),
        rollout_steps=90,
        discounts=dict.fromkeys(PLAIN, 0.9),
        seed=seed,
        **settings,
    )
    if weights is not None:
        loop.load(weights)
    return loop


@pytest.mark.parametrize(("given", "taken"), [("inline", "parallel"), ("parallel", "inline")])
@pytest.mark.parametrize("version", [0, 1])
def test_a_loop_goes_on_from_a_state_within_episodes_whatever_its_host(given, taken, version):
    specs = [task.spec for task in resolve(PLAIN, "mujoco", 2)]
    weights = snapshot(MultiTaskPolicy(specs, NETWORK), 1) if version else None
    one = suite_loop(given, "mujoco", 1, weights)
    # 270 of an episode's 500 steps; then 540, so that the next episodes begin, and are chosen to be random or not.
    for _ in range(3):
        one.collect()
    other = suite_loop(taken, "mujoco", 7, weights)
    other.load_state(states.from_bytes(states.to_bytes(one.state())))
    ended = 0
    for _ in range(6):
        expected, found = one.collect(), other.collect()
        assert (expected.episodes, expected.largest_returns) == (found.episodes, found.largest_returns)
        for task, arrays in expected.tasks.items():
            assert pack(arrays).tobytes() == pack(found.tasks[task]).tobytes()
        ended += len(expected.episodes)
    assert ended == 4
    for loop in (one, other):
        loop.host.close()


@pytest.mark.parametrize("host", ["inline", "parallel"])
def test_a_loop_with_a_task_whose_engine_has_no_states_has_none(host):
    tasks = [TASKS[0], *resolve(PLAIN[:1])]
    loop = ActingLoop(
        make_host(host, make_makers(tasks, 1, [0, 1])),
        PolicyLayout(tuple(task.spec for task in tasks), NETWORK),
        rollout_steps=2,
        discounts={task.name: 0.9 for task in tasks},
    )
    assert loop.state() is None
    loop.collect()
    loop.host.close()
