"""Discounts, and returns over trajectories, where time comes first: every argument is [T, ...]."""

import torch
from torch import Tensor

from rl_lab.core.devices import double


def discounts(gamma: float, discount: Tensor, duration: Tensor) -> Tensor:
    """gamma^duration where there is a future, else 0: what the value of a step's successor counts for, [...].

    See Sutton, Precup and Singh (1999), section 3. The power is taken in float64, the last factor in the dtype of
    `discount`: for a duration of 1 that is gamma itself.
    """
    if duration.is_cpu and (duration == 1).all():  # on a CPU looking costs less than the power
        return gamma * discount
    return gamma * ((gamma ** (double(duration) - 1)).to(discount) * discount)


def lambda_returns(r_t: Tensor, discount_t: Tensor, last_t: Tensor, v_t: Tensor, lambda_: float) -> Tensor:
    """G_t = r_t + discount_t ((1 - lambda) v_t + lambda G_{t+1}), the episode being cut where `last_t`.

    r_t, discount_t, v_t [T, ...] and last_t [T, ...] bool all belong to the *successor* of step t; v_t stands in
    for the rest of a cut trajectory. Returns [T, ...]. See Sutton and Barto (2018), eq. 12.18; advantages are
    G_t - v_{t-1}: generalised advantage estimation (Schulman et al., 2016, eq. 16).
    """
    returns, future = torch.empty_like(r_t), v_t[-1]
    for t in reversed(range(len(r_t))):
        future = torch.where(last_t[t], v_t[t], torch.lerp(v_t[t], future, lambda_))
        future = returns[t] = r_t[t] + discount_t[t] * future
    return returns


def discounted_returns(r_t: Tensor, discount_t: Tensor, last_t: Tensor, v_t: Tensor) -> Tensor:
    """The Monte Carlo return [T, ...], closed by v_t where the trajectory is cut."""
    return lambda_returns(r_t, discount_t, last_t, v_t, lambda_=1.0)
