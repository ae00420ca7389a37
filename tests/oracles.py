"""Slow, simple implementations that mtray's fast ones are compared with."""

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.nn import functional

from mtray.data.specs import task_key
from mtray.policy.layout import check_layout, cut
from mtray.policy.weights import layout_of


def project(probabilities, values, atoms):
    """Project probabilities [..., n] of values [..., n] onto fixed atoms [m].

    Bellemare, Dabney, Munos 2017, algorithm 1, as a sum over all pairs: an atom's share of a value falls linearly from
    1 to 0 with their distance in steps.
    """
    clipped = values.clamp(atoms[0], atoms[-1]).unsqueeze(-2)
    distance = (clipped - atoms.unsqueeze(-1)).abs() / (atoms[1] - atoms[0])
    return ((1 - distance).clamp(min=0) * probabilities.unsqueeze(-2)).sum(-1)


def cross_entropy(logits, target):
    """Return the cross-entropy [...] of logits [..., atoms] and target probabilities [..., atoms]."""
    return -(target * functional.log_softmax(logits, -1)).sum(-1)


def expected_value(logits, atoms):
    """Return the mean [...] of the distribution with logits [..., atoms]."""
    return (functional.softmax(logits, -1) * atoms).sum(-1)


def temperature_loss(log_temperature, log_density, target_entropy):
    """Return the losses [T] of log temperatures [T] for log densities [T, B] (Haarnoja et al. 2018, equation 18)."""
    return -log_temperature.exp() * (log_density.detach() + target_entropy.unsqueeze(-1)).mean(-1)


def sequential_policy(policy):
    """Return a MultiTaskPolicy's weights in the tutorial's form: modules per task, run with partial_tolerant.

    Each task has an input module (its statistics, adapter and embedding) and a head, which read its exclusive key. All
    share one backbone, which reads the output of the input modules.
    """
    keys = [task_key(spec.name) for spec in policy.specs]
    return TensorDictSequential(
        *(TensorDictModule(_Input(policy, i), [key], ["normalised", "input"]) for i, key in enumerate(keys)),
        TensorDictModule(policy.backbone, ["input"], ["hidden"]),
        *(TensorDictModule(_Head(policy, i), [key, "normalised", "hidden"], ["action"]) for i, key in enumerate(keys)),
        partial_tolerant=True,
    )


class _Input(nn.Module):
    def __init__(self, policy, index):
        super().__init__()
        self.policy, self.index = policy, index

    def forward(self, observation):
        policy, index = self.policy, self.index
        width = policy.specs[index].observation_size
        normalised = (observation - policy.mean[index, :width]) * policy.scale[index, :width]
        normalised = functional.pad(normalised.clamp(-10, 10), (0, policy.mean.shape[1] - width))
        adapted = normalised @ policy.adapters.weight[index] + policy.adapters.bias[index]
        embedding = policy.embedding[index].expand(*observation.shape[:-1], -1)
        return normalised, torch.cat([normalised, adapted, embedding], -1)


class _Head(nn.Module):
    def __init__(self, policy, index):
        super().__init__()
        self.policy, self.index = policy, index
        self.layers = nn.ModuleList(self._linear(layer) for layer in [*policy.heads.hidden, policy.heads.output])

    def _linear(self, grouped):
        weight, bias = grouped.weight[self.index], grouped.bias[self.index]
        layer = nn.Linear(*weight.shape)
        layer.weight.data, layer.bias.data = weight.detach().T.clone(), bias.detach().clone()
        return layer

    def forward(self, observation, normalised, hidden):
        policy, size = self.policy, self.policy.specs[self.index].action_size
        features = torch.cat([normalised, hidden], -1) if policy.config.head_reads_observation else hidden
        for layer in self.layers[:-1]:
            features = torch.relu(layer(features))
        mean = self.layers[-1](features).chunk(2, -1)[0][..., :size]
        return policy.action_middle[self.index, :size] + torch.tanh(mean) * policy.action_reach[self.index, :size]


@torch.no_grad()
def load(module, weights):
    """Copy a snapshot of weights into a module of the same layout; in a run no process needs it."""
    check_layout(weights, layout_of(module))
    state = module.state_dict()
    parts = cut(weights, {name: tensor.shape for name, tensor in state.items()})
    for name, tensor in state.items():
        tensor.copy_(torch.from_numpy(parts[name].copy()))
