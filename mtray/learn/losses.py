"""The mathematics of learning: pure functions of tensors.

Shapes: [...] stands for any leading axes, usually [T, B]. Time is in the names: ``_t`` is the state acted on,
``_tp1`` the one reached.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


_LOG_2 = math.log(2.0)


def support(atoms: int, limit: float, device: torch.device | str = "cpu") -> Tensor:
    """Return the atoms' values [atoms], evenly spaced on [-limit, limit]."""
    return torch.linspace(-limit, limit, atoms, device=device)


def tanh_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return a squashed sample and its log density.

    Haarnoja et al. 2018, "Soft actor-critic", appendix C, with log(1 - tanh(u)^2) in its stable form
    2 (log 2 - u - softplus(-2u)).

    Args:
        mean: [..., act].
        log_std: [..., act].
        noise: [..., act], standard normal.
        mask: [..., act], one for a task's real action dimensions, zero for padding.

    Returns:
        action [..., act] in (-1, 1), zero where padded; log density [...] over the real dimensions.
    """
    pre_tanh = torch.addcmul(mean, noise, log_std.exp())
    # As few sums as possible: each costs a kernel in the forward and one in the backward pass.
    constant = _LOG_SQRT_2PI + 2 * _LOG_2
    log_jacobian = -2 * (pre_tanh + functional.softplus(-2 * pre_tanh))
    log_normal = -0.5 * noise.square() - log_std
    return torch.tanh(pre_tanh) * mask, ((log_normal - log_jacobian - constant) * mask).sum(-1)


def _step(atoms: Tensor) -> Tensor:
    return (atoms[-1] - atoms[0]) / (atoms.numel() - 1)


def _neighbours(position: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Return the index of the atom below each position, at most the last but one, and the share of the atom above.

    Positions are in steps from the first atom; they are clipped to the ends, in place.
    """
    position.clamp_(0, atoms - 1)
    # Clamped as integers: a NaN must not become an index out of range; the shares keep it.
    index = position.long().clamp_(0, atoms - 2)
    return index, position.sub_(index)


def _put(probabilities: Tensor, position: Tensor) -> Tensor:
    """Project probabilities [..., atoms] at these positions onto the atoms; the positions are overwritten."""
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
    """Return the distribution that the critic is trained towards.

    Each atom z moves to r + discount * (z + entropy bonus), or to r where the episode terminated; a time limit is not a
    termination and is bootstrapped. Bellemare, Dabney, Munos 2017, "A distributional perspective on reinforcement
    learning", algorithm 1.

    Args:
        probabilities_tp1: [..., atoms], the target critic's at the next state and action.
        reward: [...], scaled.
        terminated: [...], bool.
        discount: [...] or broadcastable.
        entropy_bonus_tp1: [...], minus temperature times log density of the next action, scaled as the reward.
        atoms: [atoms].

    Returns:
        [..., atoms].
    """
    bootstrap = discount.expand_as(reward).masked_fill(terminated, 0)
    # The moved atoms are evenly spaced as well: the position of the first one gives all others.
    low, step = atoms[0], _step(atoms)
    first = (reward + bootstrap * (entropy_bonus_tp1 + low) - low) / step
    return _put(
        probabilities_tp1,
        torch.addcmul(first.unsqueeze(-1), bootstrap.unsqueeze(-1), torch.arange(atoms.numel(), device=atoms.device)),
    )


def cross_entropy_gradient(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy [...] of logits [..., atoms] to target [..., atoms], and its gradient by the logits.

    The gradient of a row is softmax(logits) - target, where the target sums to one.
    """
    log_probabilities = functional.log_softmax(logits, -1)
    loss = -torch.linalg.vecdot(target, log_probabilities)
    return loss, log_probabilities.exp_().sub_(target)


def expected_value_gradient(logits: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [...] of the distribution of logits [..., atoms], and its gradient by the logits.

    The gradient of a row is softmax(logits) * (atoms - mean).
    """
    probabilities = functional.softmax(logits, -1)
    value = probabilities @ atoms
    return value, probabilities.mul_(atoms - value.unsqueeze(-1))


def most_pessimistic(value: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    """Select the critic of least value, row by row.

    Fujimoto, van Hoof, Meger 2018, "Addressing function approximation error in actor-critic methods" (clipped double
    Q-learning), for distributions: the whole distribution of least mean.

    Args:
        value: [C, ...].
        tables: [C, ..., n] each.

    Returns:
        value [...], and the same critic's rows of each table [..., n].
    """
    least, index = value.min(0)
    return least, *(table.gather(0, index[None, ..., None].expand(1, *table.shape[1:])).squeeze(0) for table in tables)


def temperature_gradient(log_temperature: Tensor, entropy: Tensor, target_entropy: Tensor) -> Tensor:
    """Return the gradient [T] of the temperature's loss by the log temperature.

    Its descent brings each task's entropy to its target.

    Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", equation 18:
    temperature * (entropy - target entropy), averaged over a task's rows.

    Args:
        log_temperature: [T].
        entropy: [T], mean over each task's rows.
        target_entropy: [T].
    """
    return log_temperature.exp() * (entropy - target_entropy)


def stretch_logits(logits: Tensor, ratio: Tensor, atoms: Tensor) -> Tensor:
    """Return logits over the same atoms of the distribution with its values divided by a ratio.

    Logits between two atoms are interpolated. Beyond the old support they fall by one per atom.

    Args:
        logits: [..., atoms].
        ratio: [...] or broadcastable, positive.
        atoms: [atoms], ascending and evenly spaced.

    Returns:
        [..., atoms].
    """
    values = atoms * ratio.unsqueeze(-1)
    index, upper_share = _neighbours((values - atoms[0]) / _step(atoms), atoms.numel())
    low, high = (logits.gather(-1, part.expand(logits.shape)) for part in (index, index + 1))
    beyond = (values - values.clamp(atoms[0], atoms[-1])).abs() / (atoms[1] - atoms[0])
    # At 10 atoms the probability is negligible; a larger penalty would only make the logits large.
    return torch.lerp(low, high, upper_share) - beyond.clamp_(max=10)
