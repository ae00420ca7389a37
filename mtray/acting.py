"""A policy laid out for acting: the same actions as `MultiTaskPolicy.act`, in half the time.

A collector's batch is small, so a step costs what its calls cost, not what they compute. Here are half as many: what
depends on a task only is computed once per weights, and nothing is looked up, copied or differentiated.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtray.losses import LOG_STD_HIGH, LOG_STD_LOW
from mtray.networks import INPUT_LIMIT, GroupedLinear, MultiTaskPolicy, ResidualBlock

_LOG_STD_MIDDLE = (LOG_STD_HIGH + LOG_STD_LOW) / 2
_LOG_STD_REACH = (LOG_STD_HIGH - LOG_STD_LOW) / 2


class Acting:
    """Acts for some of a policy's tasks. When the policy's weights change, make another."""

    @torch.inference_mode()
    def __init__(self, policy: MultiTaskPolicy, ids: Tensor | None = None) -> None:
        """Lay the weights out for tasks ``ids`` in this order (None: all)."""

        def pick(table: Tensor) -> Tensor:
            return table.detach() if ids is None else table.detach()[ids]

        self._scale = policy.pick(policy.scale, ids)
        self._shift = -policy.pick(policy.mean, ids) * self._scale
        self._middle, self._reach = policy.pick(policy.action_middle, ids), policy.pick(policy.action_reach, ids)
        first, norm, _, *blocks = policy.backbone
        own, shared = cast(nn.Linear, first).weight.tensor_split([self._scale.shape[-1]], 1)
        # The embedding is the same for every row of a task: its product is part of the bias.
        bias = torch.addmm(cast(nn.Linear, first).bias, pick(policy.embedding), shared.T).unsqueeze(1)
        self._first = bias, own.T.contiguous().expand(len(bias), -1, -1)
        self._norm = _norm(norm)
        self._blocks = [
            (_linear(one), _norm(norm_one), _linear(two), _norm(norm_two))
            for one, norm_one, _, two, norm_two in (cast(ResidualBlock, block).layers for block in blocks)
        ]
        hidden = cast("list[GroupedLinear]", list(policy.heads.hidden))
        self._hidden = [(pick(layer.bias).unsqueeze(1), pick(layer.weight)) for layer in hidden]
        output = policy.heads.output
        self._output = pick(output.bias).unsqueeze(1), pick(output.weight)
        self._reads_observation = policy.config.head_reads_observation

    @torch.inference_mode()
    def __call__(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions [n, B, act] in the tasks' own bounds, of raw observations [n, B, obs] and noise [n, B, act]."""
        observation = torch.addcmul(self._shift, observation, self._scale).clamp_(-INPUT_LIMIT, INPUT_LIMIT)
        bias, weight = self._first
        hidden = torch.layer_norm(torch.baddbmm(bias, observation, weight), *self._norm).relu_()
        for one, norm_one, two, norm_two in self._blocks:
            inner = torch.layer_norm(functional.linear(hidden, *one), *norm_one).relu_()
            hidden = torch.layer_norm(functional.linear(inner, *two), *norm_two).add_(hidden)
        if self._reads_observation:
            hidden = torch.cat([observation, hidden], -1)
        for bias, weight in self._hidden:
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
        bias, weight = self._output
        mean, log_std = torch.baddbmm(bias, hidden, weight).chunk(2, -1)
        deviation = log_std.tanh().mul_(_LOG_STD_REACH).add_(_LOG_STD_MIDDLE).exp_()
        return torch.addcmul(self._middle, torch.addcmul(mean, noise, deviation).tanh_(), self._reach)


def _linear(layer: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach(), layer.bias.detach()


def _norm(layer: nn.Module) -> tuple[list[int], Tensor, Tensor, float]:
    assert isinstance(layer, nn.LayerNorm)
    return list(layer.normalized_shape), layer.weight.detach(), layer.bias.detach(), layer.eps
