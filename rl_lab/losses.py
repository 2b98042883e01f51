"""Errors and losses per item, on tensors with free leading dimensions: [...] and, for action values, [..., A].

Names carry time: x_tm1 before the action, x_t after it. Each function stops the gradient of its own target.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pick(x: Tensor, index: Tensor) -> Tensor:
    """x [..., A] at index [...] -> [...]."""
    return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def q_learning(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor) -> Tensor:
    """The error r + discount max_a q_t - q_tm1[a] [...]. See Mnih et al. (2015), algorithm 1."""
    return double_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t)


def double_q_learning(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor, selector_t: Tensor
) -> Tensor:
    """As `q_learning`, but `selector_t` [..., A] chooses the action that q_t values (van Hasselt et al., 2016)."""
    target = r_t + discount_t * pick(q_t, selector_t.argmax(-1))
    return target.detach() - pick(q_tm1, a_tm1)


def huber(error: Tensor, delta: float = 1.0) -> Tensor:
    """Quadratic within `delta`, linear beyond: its gradient is the clipped error (Mnih et al., 2015, methods)."""
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-log pi(a|s) A [...]: its gradient is the policy gradient's, downhill (Sutton and Barto, 2018, eq. 13.11)."""
    return -log_prob * advantage.detach()


def entropy(log_probs: Tensor) -> Tensor:
    """Of a categorical distribution given as log-probabilities [..., A], in nats [...]."""
    return -(log_probs.exp() * log_probs).sum(-1)
