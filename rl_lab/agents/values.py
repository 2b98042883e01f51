"""What a Q-network predicts of the return: its mean, or its whole distribution (Bellemare, Dabney and Rowland, 2023).

Each says how many numbers an action has (`outputs`), what their mean is, and how wrong they are about a target:
`loss(now [B, Z], reward [B], discount [B], then [B, Z]) -> (loss [B], error [B])`, where `then` belongs to the action
that is bootstrapped from, and the error sets the priorities of a prioritised replay.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from rl_lab import losses
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, finite

Loss = tuple[Tensor, Tensor]


class Mean:
    """One number, the expected return (Mnih et al., 2015)."""

    outputs = 1

    def __init__(self, *, loss: Literal["huber", "squared"]):
        self.of_error = losses.huber if loss == "huber" else losses.half_square

    def mean(self, x: Tensor) -> Tensor:
        """[..., 1] -> [...]."""
        return x.squeeze(-1)

    def loss(self, now: Tensor, reward: Tensor, discount: Tensor, then: Tensor) -> Loss:
        error = (reward + discount * then.squeeze(-1)).detach() - now.squeeze(-1)
        return self.of_error(error), error.detach().abs()


class Categorical:
    """C51: the probabilities of `atoms` returns evenly spaced from `low` to `high` (Bellemare et al., 2017)."""

    def __init__(self, *, atoms: Count, low: Annotated[float, finite], high: Annotated[float, finite]):
        if atoms < 2 or low >= high:
            raise UserError(
                f"agent.value: {atoms} atoms from {low:g} to {high:g} must be at least two, and low below high"
            )
        self.outputs, self.support = atoms, torch.linspace(low, high, atoms)

    def mean(self, x: Tensor) -> Tensor:
        """Logits [..., Z] -> [...]."""
        return (x.softmax(-1) * self.on(x.device)).sum(-1)

    def on(self, device: torch.device) -> Tensor:
        """The returns [Z] that the atoms stand for, taken to a device but once: a copy waits for it."""
        if self.support.device != device:
            self.support = self.support.to(device)
        return self.support

    def loss(self, now: Tensor, reward: Tensor, discount: Tensor, then: Tensor) -> Loss:
        """The error is the divergence KL(target || now), as in Rainbow."""
        support = self.on(now.device)
        moved = reward.unsqueeze(-1) + discount.unsqueeze(-1) * support
        target = losses.project(moved, then.softmax(-1), support).detach()
        cross_entropy = -(target * now.log_softmax(-1)).sum(-1)
        return cross_entropy, (cross_entropy.detach() + torch.xlogy(target, target).sum(-1)).clamp(min=0)


class Quantiles:
    """QR-DQN: `count` quantiles of the return, each as likely as the others (Dabney et al., 2018)."""

    def __init__(self, *, count: Count):
        self.outputs = count

    def mean(self, x: Tensor) -> Tensor:
        """[..., Z] -> [...]."""
        return x.mean(-1)

    def loss(self, now: Tensor, reward: Tensor, discount: Tensor, then: Tensor) -> Loss:
        target = reward.unsqueeze(-1) + discount.unsqueeze(-1) * then
        return losses.quantile_huber(now, target.detach()), (target.mean(-1) - now.mean(-1)).detach().abs()


Value = Mean | Categorical | Quantiles
