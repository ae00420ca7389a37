"""The slow, plain way to do what mtray does fast: kept beside it as oracles."""

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.nn import functional

from mtray.data.specs import task_key


def project(probabilities, values, atoms):
    """Probabilities [..., n] of values [..., n] put onto fixed atoms [m], each value's share to its two neighbours.

    Bellemare, Dabney, Munos 2017, algorithm 1, as a sum over all pairs: an atom takes a share of each value that falls
    from one to zero with their distance in steps.
    """
    clipped = values.clamp(atoms[0], atoms[-1]).unsqueeze(-2)
    distance = (clipped - atoms.unsqueeze(-1)).abs() / (atoms[1] - atoms[0])
    return ((1 - distance).clamp(min=0) * probabilities.unsqueeze(-2)).sum(-1)


def cross_entropy(logits, target):
    """[...] cross-entropy of logits [..., atoms] to target probabilities [..., atoms]."""
    return -(target * functional.log_softmax(logits, -1)).sum(-1)


def expected_value(logits, atoms):
    """[...] mean of the distribution of logits [..., atoms]."""
    return (functional.softmax(logits, -1) * atoms).sum(-1)


def temperature_loss(log_temperature, log_density, target_entropy):
    """[T] loss of log temperatures [T] for log densities [T, B] (Haarnoja et al. 2018, equation 18)."""
    return -log_temperature.exp() * (log_density.detach() + target_entropy.unsqueeze(-1)).mean(-1)


def sequential_policy(policy):
    """A MultiTaskPolicy's numbers as the tutorial would write them: modules per task, run with partial_tolerant.

    Per task an input module (its statistics, adapter and embedding) and a head that reads its exclusive key; one
    backbone for all, which reads what the input modules wrote.
    """
    modules = []
    for index, spec in enumerate(policy.specs):
        modules.append(
            TensorDictModule(_Input(policy, index), in_keys=[task_key(spec.name)], out_keys=["normalised", "input"])
        )
    modules.append(TensorDictModule(policy.backbone, in_keys=["input"], out_keys=["hidden"]))
    for index, spec in enumerate(policy.specs):
        keys = [task_key(spec.name), "normalised", "hidden"]
        modules.append(TensorDictModule(_Head(policy, index), in_keys=keys, out_keys=["action"]))
    return TensorDictSequential(*modules, partial_tolerant=True)


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
