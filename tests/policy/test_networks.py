"""Policy and critic: one backbone call, grouped heads equal to a module per task, zero gradient across tasks."""

from dataclasses import replace

import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict
from tensordict.nn import InteractionType, set_interaction_type

from mtray.config.learner import NetworkConfig
from mtray.data.specs import TaskSpec, observation_width
from mtray.errors import SchemaError
from mtray.policy.critic import MultiTaskCritic
from mtray.policy.layers import Backbone
from mtray.policy.policy import MultiTaskPolicy
from mtray.tasks.env import TaskEnv
from tests.oracles import sequential_policy

WIDTHS = {"a": (3, 1), "b": (7, 4), "c": (5, 2)}
SPECS = [
    TaskSpec(
        name=name,
        engine="test",
        observation=(("x", obs),),
        action_low=tuple(-0.5 * (i + 1) for i in range(act)),
        action_high=tuple(1.0 + i for i in range(act)),
        horizon=10,
        time_step_seconds=0.1,
    )
    for name, (obs, act) in WIDTHS.items()
]
NETWORKS = [
    NetworkConfig(actor_width=16, critic_width=16),
    NetworkConfig(actor_width=16, critic_width=16, head_layers=2, head_reads_observation=True),
    NetworkConfig(actor_width=16, critic_width=16, actor_blocks=0, embedding_size=0),
]


def make_policy(network=NETWORKS[0], specs=SPECS):
    torch.manual_seed(0)
    policy = MultiTaskPolicy(specs, network, deterministic=True)
    for index, spec in enumerate(specs):
        width = spec.observation_size
        policy.mean[index, :width] = torch.randn(width)
        policy.scale[index, :width] = torch.rand(width) + 0.5
    policy.embedding.normal_()
    # Heads start near zero: make them differ.
    for parameter in policy.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy


def state(name, *batch):
    width = WIDTHS[name][0]
    observation = torch.zeros(*batch, 7)
    observation[..., :width] = torch.randn(*batch, width)
    fields = {"observation": observation, f"observation_{name}": observation[..., :width].clone()}
    return TensorDict(fields, list(batch))


def stack(*names, batch=(4,)):
    return LazyStackedTensorDict.lazy_stack([state(name, *batch) for name in names], 0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("names", ["abc", "cab", "b", "ca"])
def test_actions_equal_a_partial_tolerant_sequence_of_the_same_weights(network, names):
    policy = make_policy(network)
    data = stack(*names)
    expected = sequential_policy(policy)(data.clone())
    policy(data)
    for index, name in enumerate(names):
        action = data[index]["action"]
        assert action.shape == (4, WIDTHS[name][1])
        torch.testing.assert_close(action, expected[index]["action"], atol=1e-6, rtol=0)


def assert_equals_sequence_on(tasks):
    specs = [task.spec for task in tasks]
    policy = make_policy(NetworkConfig(), specs)
    states = [TaskEnv(task, num_envs=3, observation_width=observation_width(specs)).reset() for task in tasks]
    data = LazyStackedTensorDict.lazy_stack(states, 0)
    expected = sequential_policy(policy)(data.clone())
    policy(data)
    for index in range(len(tasks)):
        torch.testing.assert_close(data[index]["action"], expected[index]["action"], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_actions_equal_the_sequence_on_the_whole_benchmarking_suite():
    from mtray.tasks.registry import resolve

    assert_equals_sequence_on(resolve(["dmc"]))


def test_actions_equal_the_sequence_on_real_tasks_of_different_widths(mixed):
    assert_equals_sequence_on(mixed)


@pytest.mark.parametrize("names", ["a", "abc", "cb"])
def test_one_backbone_call_and_one_product_per_head_layer(names):
    policy = make_policy(NETWORKS[1])
    calls = []
    for module in (policy.backbone, *policy.heads.hidden, policy.heads.output):
        module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    policy(stack(*names))
    assert calls == [policy.backbone, *policy.heads.hidden, policy.heads.output]


def test_the_argument_is_returned():
    policy = make_policy()
    for data in (state("b"), state("b", 5), state("b", 2, 3), stack("b", "a"), stack("c", batch=(2, 3))):
        assert policy(data) is data
        parts = data.tensordicts if isinstance(data, LazyStackedTensorDict) else [data]
        for part in parts:
            name = next(key for key in part.keys() if key.startswith("observation_"))[-1]
            assert part["action"].shape == (*part.batch_size, WIDTHS[name][1])


def test_a_stack_of_rows_and_a_stack_of_steps_give_the_same_actions():
    policy = make_policy()
    data = state("b", 3, 4)
    policy(data)
    rows = LazyStackedTensorDict.lazy_stack([data.select("observation", "observation_b")[:, t] for t in range(4)], 1)
    policy(rows)
    for t in range(4):
        torch.testing.assert_close(rows[:, t]["action"], data["action"][:, t], atol=1e-6, rtol=0)


def test_actions_are_within_each_tasks_bounds():
    policy = make_policy()
    with set_interaction_type(InteractionType.RANDOM):
        data = policy(stack("a", "b", "c", batch=(500,)))
    for index, spec in enumerate(SPECS):
        action = data[index]["action"]
        assert (action >= torch.tensor(spec.action_low) - 1e-6).all()
        assert (action <= torch.tensor(spec.action_high) + 1e-6).all()
        assert (action.max(0).values - action.min(0).values > 0.1).all()


def test_interaction_type_decides_between_mean_and_sample():
    policy = make_policy()
    data = state("b", 6)
    mean = policy(data.clone())["action"]
    with set_interaction_type(InteractionType.DETERMINISTIC):
        assert torch.equal(policy(data.clone())["action"], mean)
    with set_interaction_type(InteractionType.RANDOM):
        first, second = policy(data.clone())["action"], policy(data.clone())["action"]
    assert not torch.equal(first, second)
    policy.deterministic = False
    assert not torch.equal(policy(data.clone())["action"], policy(data.clone())["action"])


def test_bounds_round_trip_and_padding_becomes_zero():
    policy = make_policy()
    action = torch.rand(3, 5, 4) * 2 - 1
    back = policy.from_bounds(policy.to_bounds(action))
    torch.testing.assert_close(back, action * policy.action_mask.unsqueeze(1), atol=1e-6, rtol=0)


def test_a_deterministic_policy_adds_noise_within_the_bounds():
    torch.manual_seed(0)
    policy = MultiTaskPolicy(SPECS, NETWORKS[0], action_noise=0.5)
    observation = torch.randn(3, 1000, 7)
    mean = policy.from_bounds(policy.act(observation, deterministic=True))
    noisy = policy.from_bounds(policy.act(observation))
    for index, spec in enumerate(SPECS):
        real = noisy[index, :, : spec.action_size]
        assert real.abs().max() <= 1 + 1e-5
        noise = (real - mean[index, :, : spec.action_size])[real.abs() < 1 - 1e-5]
        # Means are near zero, so noise of deviation 0.5 is clipped at about two deviations.
        assert 0.38 < noise.std() < 0.5
    assert torch.equal(
        policy.act(observation, noise=torch.zeros(3, 1000, 4)), policy.act(observation, deterministic=True)
    )


def test_the_width_of_the_common_key_does_not_matter():
    policy = make_policy()
    padded = state("a", 4)
    unpadded = padded.clone().set("observation", padded["observation_a"])
    assert torch.equal(policy(padded)["action"], policy(unpadded)["action"])


def test_data_without_an_exclusive_key_is_an_error():
    policy = make_policy()
    with pytest.raises(SchemaError, match="exactly one task"):
        policy(TensorDict({"observation": torch.zeros(7)}, []))


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_of_other_tasks_heads_and_adapters_are_exactly_zero(network):
    policy = make_policy(network)
    critic = MultiTaskCritic(SPECS, network, outputs=11)
    observation, action = torch.randn(3, 6, 7), torch.randn(3, 6, 4)
    for task in range(3):
        policy.zero_grad()
        critic.zero_grad()
        policy.distribution(observation)[0][task].square().sum().backward()
        critic(observation, action)[:, task].square().sum().backward()
        for part in (policy.heads, critic.heads, policy.adapters, critic.adapters):
            for parameter in part.parameters():
                assert parameter.grad[task].any()
                assert not parameter.grad[[other for other in range(3) if other != task]].any()


def test_a_subset_of_tasks_gives_the_same_numbers_as_all():
    network = NETWORKS[1]
    policy, critic = make_policy(network), MultiTaskCritic(SPECS, network, outputs=11)
    observation, action = torch.randn(3, 6, 7), torch.randn(3, 6, 4)
    ids = torch.tensor([2, 0])
    torch.testing.assert_close(policy.distribution(observation)[0][ids], policy.distribution(observation[ids], ids)[0])
    torch.testing.assert_close(critic(observation, action)[:, ids], critic(observation[ids], action[ids], ids))


def test_several_critics_equal_single_critics_of_their_weights():
    torch.manual_seed(0)
    pair = MultiTaskCritic(SPECS, replace(NETWORKS[1], critics=2), outputs=11)
    observation, action = torch.randn(3, 6, 7), torch.randn(3, 6, 4)
    logits = pair(observation, action)
    assert logits.shape == (2, 3, 6, 11)
    for index in range(2):
        single = MultiTaskCritic(SPECS, NETWORKS[1], outputs=11)
        single.raw_embedding.data = pair.raw_embedding.data
        single.adapters[0].load_state_dict(pair.adapters[index].state_dict())
        single.backbones[0].load_state_dict(pair.backbones[index].state_dict())
        single.heads.load_state_dict({name: part.chunk(2)[index] for name, part in pair.heads.state_dict().items()})
        torch.testing.assert_close(single(observation, action)[0], logits[index])
    ids = torch.tensor([2, 0])
    torch.testing.assert_close(logits[:, ids], pair(observation[ids], action[ids], ids))


def test_padding_stays_zero_after_normalisation():
    policy = make_policy()
    normalised = policy.normalise(torch.zeros(3, 2, 7))
    assert not normalised[0, :, 3:].any()
    assert normalised[0, :, :3].any()


def test_an_embedding_per_task_equals_the_embedding_in_every_row():
    torch.manual_seed(0)
    backbone = Backbone(7 + 3, 16, 1, output_norm=True)
    inputs, embedding = torch.randn(4, 5, 7), torch.randn(4, 3)
    whole = torch.cat([inputs, embedding.unsqueeze(1).expand(-1, 5, -1)], -1)
    torch.testing.assert_close(backbone(inputs, embedding), backbone(whole))
    parts = [
        torch.autograd.grad(backbone(*arguments).square().sum(), backbone.parameters())
        for arguments in ((whole,), (inputs, embedding))
    ]
    for expected, found in zip(*parts, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
