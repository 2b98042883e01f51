"""Transitions by hand."""

import torch
from torch import Tensor

from rl_lab.types import Transition


def transition(
    obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, last: Tensor, next_obs: Tensor
) -> Transition:
    """Of steps that last one primitive step each."""
    return Transition(obs, action, reward, discount, last, next_obs, torch.ones_like(reward))
