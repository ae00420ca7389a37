"""All that TorchRL's tutorial on task-specific policies shows, with mtray's parts, and right.

Two humanoid tasks together: exclusive keys, lazy stacks, a backbone run once for both, a head per task, a
ParallelEnv over both, and a rollout in which the exclusive observations really advance.
"""

import pytest
import torch
from tensordict import LazyStackedTensorDict

import mtray
from mtray.config.learner import NetworkConfig
from mtray.policy.policy import MultiTaskPolicy
from mtray.tasks.makers import make_makers
from mtray.tasks.parallel import MultiTaskEnv

STAND, WALK = "observation_humanoid-stand", "observation_humanoid-walk"


@pytest.fixture
def states():
    return mtray.make_task_env("humanoid-stand").reset(), mtray.make_task_env("humanoid-walk").reset()


@pytest.fixture
def policy(humanoids):
    torch.manual_seed(0)
    # As in the tutorial: heads with two hidden layers that read their task's observation and the shared features.
    network = NetworkConfig(actor_width=64, head_layers=2, head_reads_observation=True)
    return MultiTaskPolicy([task.spec for task in humanoids], network, deterministic=True)


@pytest.fixture
def env(humanoids):
    env = MultiTaskEnv(make_makers(humanoids, None, [1, 2]))
    yield env
    if not env.is_closed:
        env.close()


def test_each_task_has_the_common_key_and_its_own(states):
    stand, walk = states
    assert set(stand.keys()) == {"observation", STAND, "done", "terminated", "truncated"}
    assert set(walk.keys()) == {"observation", WALK, "done", "terminated", "truncated"}
    for state, key in ((stand, STAND), (walk, WALK)):
        assert state.batch_size == torch.Size([])
        assert state["observation"].shape == state[key].shape == (67,)
        assert state["observation"].dtype == torch.float32
        assert torch.equal(state["observation"], state[key])


def test_indexing_a_lazy_stack_returns_the_originals(states):
    stack = LazyStackedTensorDict.lazy_stack(states, 0)
    assert stack[0] is states[0]
    assert stack[1] is states[1]
    assert STAND not in stack.keys()
    assert WALK not in stack.keys()
    assert stack["observation"].shape == (2, 67)


@pytest.mark.parametrize("index", [0, 1])
def test_the_policy_acts_in_a_single_task(policy, states, index):
    state = states[index]
    assert policy(state) is state
    assert state["action"].shape == (21,)
    assert state["action"].abs().max() <= 1


def test_the_policy_acts_on_the_stack_as_on_each_task(policy, states):
    alone = [policy(state.clone())["action"] for state in states]
    stack = LazyStackedTensorDict.lazy_stack(list(states), 0)
    assert policy(stack) is stack
    assert stack["action"].shape == (2, 21)
    for index, action in enumerate(alone):
        torch.testing.assert_close(stack[index]["action"], action, atol=1e-6, rtol=0)
    assert not torch.equal(*alone)


def test_the_backbone_runs_once_for_the_whole_stack(policy, states):
    calls = []
    policy.backbone.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape))
    policy(LazyStackedTensorDict.lazy_stack(list(states), 0))
    assert len(calls) == 1


def test_a_heterogeneous_parallel_env_resets_to_a_lazy_stack(env):
    state = env.reset()
    assert isinstance(state, LazyStackedTensorDict)
    assert state.batch_size == torch.Size([2])
    assert STAND in state[0].keys()
    assert STAND not in state[1].keys()
    assert WALK in state[1].keys()
    assert not torch.equal(state[0][STAND], state[1][WALK])


def test_a_step_writes_next_for_each_task(env, policy):
    state = policy(env.reset())
    env.step(state)
    for index, key in enumerate((STAND, WALK)):
        reached = state[index]["next"]
        assert set(reached.keys()) == {"observation", key, "reward", "done", "terminated", "truncated"}
        assert not torch.equal(reached[key], state[index][key])
        assert reached["reward"].dtype == torch.float32


def test_a_rollout_of_100_steps_advances(env, policy):
    rollout = env.rollout(100, policy, return_contiguous=False)
    assert rollout.batch_size == torch.Size([2, 100])
    first = rollout[:, 0]
    assert first["observation"].shape == (2, 67)
    assert STAND not in first.keys()
    for index, key in enumerate((STAND, WALK)):
        task = rollout[index]
        observation, reached = task[key], task["next", key]
        assert observation.shape == (100, 67)
        assert torch.equal(observation[1:], reached[:-1])
        assert len(torch.unique(observation, dim=0)) == 100
        assert torch.equal(observation, task["observation"])
        assert task["action"].shape == (100, 21)


def test_actions_of_a_rollout_are_computed_from_the_states_of_the_same_step(env, policy):
    # torchrl's own rollout computes every action from the reset's exclusive observation.
    rollout = env.rollout(20, policy, return_contiguous=False)
    for index in range(2):
        for step in (0, 7, 19):
            state = rollout[index][step].select("observation", (STAND, WALK)[index]).clone()
            torch.testing.assert_close(policy(state)["action"], rollout[index][step]["action"], atol=1e-5, rtol=0)
