"""Errors and losses per item, on tensors with free leading dimensions: [...] and, for action values, [..., A].

Each function stops the gradient of its own target.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pick(x: Tensor, index: Tensor) -> Tensor:
    """x [..., A] at index [...] -> [...]."""
    return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def huber(error: Tensor, delta: float = 1.0) -> Tensor:
    """Quadratic within `delta`, linear beyond: its gradient is the clipped error (Mnih et al., 2015, methods)."""
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)


def half_square(error: Tensor) -> Tensor:
    """Its gradient is the error itself."""
    return error.square() / 2


def project(z: Tensor, probability: Tensor, support: Tensor) -> Tensor:
    """Mass `probability` [..., Z] at places z [..., Z], moved to the evenly spaced `support` [K] -> [..., K].

    Each mass is shared by the two atoms beside it, the nearer the more; what lies beyond the ends goes there.
    See Bellemare et al. (2017), eq. 7.
    """
    step = support[1] - support[0]
    away = (z.clamp(support[0], support[-1]).unsqueeze(-1) - support).abs() / step  # [..., Z, K], in atoms
    return (probability.unsqueeze(-1) * (1 - away).clamp(min=0)).sum(-2)


def quantile_huber(quantiles: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """quantiles [..., Z] against samples of the target [..., K] -> [...], summed over Z, averaged over K.

    The quantile tau = (i + 1/2) / Z weighs an error by tau where the target is above it and by 1 - tau where below.
    See Dabney et al. (2018), eq. 10.
    """
    count = quantiles.shape[-1]
    tau = (torch.arange(count, device=quantiles.device) + 0.5) / count
    error = target.unsqueeze(-2) - quantiles.unsqueeze(-1)  # [..., Z, K]
    weight = (tau.unsqueeze(-1) - (error.detach() < 0).to(error.dtype)).abs()
    return (weight * huber(error, delta) / delta).mean(-1).sum(-1)


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-log pi(a|s) A [...]: its gradient is the policy gradient's, downhill (Sutton and Barto, 2018, eq. 13.11)."""
    return -log_prob * advantage.detach()


def clipped_policy_gradient(log_prob: Tensor, acting_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) [...], where ratio = pi(a|s) / pi_acting(a|s).

    See Schulman et al. (2017; https://arxiv.org/abs/1707.06347), eq. 7.
    """
    ratio, advantage = (log_prob - acting_log_prob.detach()).exp(), advantage.detach()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value(value: Tensor, acting_value: Tensor, target: Tensor, clip: float) -> Tensor:
    """The larger squared error [...] of `value` and of `value` held within `clip` of what it was when it acted.

    In the released code of PPO, not in its paper.
    """
    held = acting_value.detach() + (value - acting_value.detach()).clamp(-clip, clip)
    return torch.maximum((target.detach() - value).square(), (target.detach() - held).square())


def entropy(log_probs: Tensor) -> Tensor:
    """Of a categorical distribution given as log-probabilities [..., A], in nats [...]."""
    return -(log_probs.exp() * log_probs).sum(-1)
