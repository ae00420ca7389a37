"""The mathematics of learning: pure functions of tensors.

Shapes: [...] stands for any leading axes, usually [T, B]. The suffix ``_tp1`` marks values of the next state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_LOG_2 = math.log(2.0)


def tanh_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return a squashed sample and its log density.

    Haarnoja et al. 2018, "Soft actor-critic", appendix C, with log(1 - tanh(u)^2) in its stable form
    2 (log 2 - u - softplus(-2u)).

    Args:
        mean: [..., act].
        log_std: [..., act].
        noise: [..., act], standard normal.
        mask: [..., act], 1 for the dimensions that the policy chooses, 0 for padding and fixed entries.

    Returns:
        action [..., act] in (-1, 1), 0 where masked; log density [...] of the other dimensions.
    """
    pre_tanh = torch.addcmul(mean, noise, log_std.exp())
    # Few operations: each takes a kernel in the forward and one in the backward pass.
    constant = _LOG_SQRT_2PI + 2 * _LOG_2
    log_jacobian = -2 * (pre_tanh + functional.softplus(-2 * pre_tanh))
    log_normal = -0.5 * noise.square() - log_std
    return torch.tanh(pre_tanh) * mask, ((log_normal - log_jacobian - constant) * mask).sum(-1)


def _spacing(atoms: Tensor) -> Tensor:
    return (atoms[-1] - atoms[0]) / (atoms.numel() - 1)


def _neighbours(position: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Return the index of the atom at or below each position, and the share of the next atom in linear interpolation.

    Positions count atoms from the first; they are clipped to the ends, in place. Indices are at most ``atoms - 2``.
    """
    position.clamp_(0, atoms - 1)
    # The integers are clamped too: a NaN must not become an index out of range. It stays in the shares.
    index = position.long().clamp_(0, atoms - 2)
    return index, position.sub_(index)


def _project(probabilities: Tensor, position: Tensor) -> Tensor:
    """Project probabilities [..., atoms] at positions [..., atoms] onto the atoms; overwrite the positions."""
    index, upper_share = _neighbours(position, position.shape[-1])
    upper_share.mul_(probabilities)
    projected = torch.zeros_like(probabilities).scatter_add_(-1, index, probabilities - upper_share)
    return projected.scatter_add_(-1, index.add_(1), upper_share)


def soft_target(
    probabilities_tp1: Tensor,
    reward: Tensor,
    terminated: Tensor,
    discount: Tensor,
    entropy_bonus_tp1: Tensor,
    atoms: Tensor,
) -> Tensor:
    """Return the critic's target distribution.

    Each atom z moves to r + discount * (z + entropy bonus), or to r where the episode terminated (not where it was
    truncated). Bellemare, Dabney, Munos 2017, "A distributional perspective on reinforcement learning", algorithm 1.

    Args:
        probabilities_tp1: [..., atoms], output of the target critic for the next state and action.
        reward: [...], scaled.
        terminated: [...] bool.
        discount: [...] or broadcastable.
        entropy_bonus_tp1: [...], -temperature * log density of the next action, scaled like the reward.
        atoms: [atoms].

    Returns:
        [..., atoms].
    """
    bootstrap = discount.expand_as(reward).masked_fill(terminated, 0)
    # The moved atoms are evenly spaced too: the position of the first and the spacing give all others.
    low, step = atoms[0], _spacing(atoms)
    first = (reward + bootstrap * (entropy_bonus_tp1 + low) - low) / step
    return _project(
        probabilities_tp1,
        torch.addcmul(first.unsqueeze(-1), bootstrap.unsqueeze(-1), torch.arange(atoms.numel(), device=atoms.device)),
    )


def cross_entropy_gradient(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy [...] of logits [..., atoms] to target [..., atoms], and its gradient d/dlogits.

    The gradient is softmax(logits) - target, if the target sums to one.
    """
    log_probabilities = functional.log_softmax(logits, -1)
    loss = -torch.linalg.vecdot(target, log_probabilities)
    return loss, log_probabilities.exp_().sub_(target)


def expected_value_gradient(logits: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [...] of the distribution of logits [..., atoms], and its gradient d/dlogits.

    The gradient is softmax(logits) * (atoms - mean).
    """
    probabilities = functional.softmax(logits, -1)
    value = probabilities @ atoms
    return value, probabilities.mul_(atoms - value.unsqueeze(-1))


def most_pessimistic(value: Tensor, table: Tensor) -> Tensor:
    """Return the rows [..., m] of a table [C, ..., m], each from the critic with the least value [C, ...].

    Clipped double Q-learning for distributions: Fujimoto, van Hoof, Meger 2018, "Addressing function approximation
    error in actor-critic methods".
    """
    index = value.min(0).indices
    return table.take_along_dim(index[None, ..., None], 0).squeeze(0)


def temperature_gradient(log_temperature: Tensor, entropy: Tensor, target_entropy: Tensor) -> Tensor:
    """Return the gradient [T] of temperature * (entropy - target entropy) with respect to the log temperature.

    Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", equation 18. Arguments are [T]; entropies are
    means over a task's rows.
    """
    return log_temperature.exp() * (entropy - target_entropy)


def stretch_logits(logits: Tensor, ratio: Tensor, atoms: Tensor) -> Tensor:
    """Return the logits of a distribution after its values are divided by a ratio, over the same atoms.

    Logits are interpolated between atoms. Beyond the old support they fall by one per atom.

    Args:
        logits: [..., atoms].
        ratio: [...] or broadcastable, positive.
        atoms: [atoms], ascending and evenly spaced.

    Returns:
        [..., atoms].
    """
    values = atoms * ratio.unsqueeze(-1)
    index, upper_share = _neighbours((values - atoms[0]) / _spacing(atoms), atoms.numel())
    low, high = (logits.gather(-1, part.expand(logits.shape)) for part in (index, index + 1))
    beyond = (values - values.clamp(atoms[0], atoms[-1])).abs() / (atoms[1] - atoms[0])
    # At 10 atoms the probability is negligible; a larger penalty would only make the logits large.
    return torch.lerp(low, high, upper_share) - beyond.clamp_(max=10)
