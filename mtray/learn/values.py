"""Encodings of values in a critic's outputs: a distribution over atoms, or the value itself.

Both compute the outputs' target, the loss and the value with their gradients d/doutputs, and the output layer after a
change of the reward scale. All values are scaled.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mtray.learn import losses


class ValueKind(Protocol):
    """An encoding of values in outputs [C, n, B, size] of C critics."""

    def target(
        self, outputs_tp1: Tensor, reward: Tensor, terminated: Tensor, discount: Tensor, entropy_bonus_tp1: Tensor
    ) -> Tensor:
        """Return the target of the outputs, [n, B, size].

        Args:
            outputs_tp1: [C, n, B, size], outputs of the target critics for the next state and action; each row uses the
                critic of least value.
            reward: [n, B].
            terminated: [n, B] bool.
            discount: [n, 1] or [n, B].
            entropy_bonus_tp1: [n, B], -temperature * log density of the next action.
        """
        ...

    def loss(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss [C, n, B] of outputs [C, n, B, size], and its gradient d/doutputs."""
        ...

    def value(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value [C, n, B] of outputs [C, n, B, size], and its gradient d/doutputs."""
        ...

    def rescale(self, weight: Tensor, bias: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return an output layer's weight [k, in, size] and bias [k, size] with values divided by ratio [k]."""
        ...


class Categorical:
    """A distribution over atoms, trained by cross-entropy (Bellemare, Dabney, Munos 2017, C51)."""

    def __init__(self, atoms: Tensor) -> None:
        """Use atoms of these values [atoms], ascending and evenly spaced."""
        self.atoms = atoms

    def target(
        self, outputs_tp1: Tensor, reward: Tensor, terminated: Tensor, discount: Tensor, entropy_bonus_tp1: Tensor
    ) -> Tensor:
        """See `ValueKind`."""
        probabilities = outputs_tp1.softmax(-1)
        if len(probabilities) == 1:
            probabilities_tp1 = probabilities[0]
        else:
            probabilities_tp1 = losses.most_pessimistic(probabilities @ self.atoms, probabilities)
        return losses.soft_target(probabilities_tp1, reward, terminated, discount, entropy_bonus_tp1, self.atoms)

    def loss(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `ValueKind`."""
        return losses.cross_entropy_gradient(outputs, target)

    def value(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """See `ValueKind`."""
        return losses.expected_value_gradient(outputs, self.atoms)

    def rescale(self, weight: Tensor, bias: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """See `ValueKind`."""
        # A stretched logit is a weighted mean of logits minus a constant. The constant belongs in the bias only.
        constant = losses.stretch_logits(torch.zeros_like(bias), ratio, self.atoms)
        stretched = losses.stretch_logits(weight, ratio.unsqueeze(-1), self.atoms) - constant.unsqueeze(1)
        return stretched, losses.stretch_logits(bias, ratio, self.atoms)


class Scalar:
    """The value itself, trained by half the squared error (Haarnoja et al. 2018, "Soft actor-critic", equation 5)."""

    def target(
        self, outputs_tp1: Tensor, reward: Tensor, terminated: Tensor, discount: Tensor, entropy_bonus_tp1: Tensor
    ) -> Tensor:
        """See `ValueKind`."""
        value_tp1 = (outputs_tp1.amin(0).squeeze(-1) + entropy_bonus_tp1) * discount
        return (reward + torch.where(terminated, torch.zeros_like(reward), value_tp1)).unsqueeze(-1)

    def loss(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `ValueKind`."""
        error = outputs - target
        return 0.5 * error.squeeze(-1).square(), error

    def value(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """See `ValueKind`."""
        return outputs.squeeze(-1), torch.ones_like(outputs)

    def rescale(self, weight: Tensor, bias: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """See `ValueKind`."""
        return weight / ratio[:, None, None], bias / ratio[:, None]
