"""Worlds of Sutton and Barto that no map can show: car rental, the gambler's problem and the short corridor."""

from typing import Annotated

import numpy as np
import torch
from scipy.stats import poisson

from rl_lab.core.settings import Bound, Count, NonNegative, Unit
from rl_lab.envs.tabular.mdp import MDP, Layout


def car_rental(
    *,
    capacity: Count = 20,  # cars at a location
    first_requests: NonNegative = 3.0,  # a day at the first location, on average
    second_requests: NonNegative = 4.0,
    first_returns: NonNegative = 3.0,
    second_returns: NonNegative = 2.0,
    income: float = 10.0,  # a rental
    moving_cost: float = 2.0,  # a car
    max_moved: Count = 5,  # cars a night
    gamma: Unit,
) -> MDP:
    """Jack's car rental (Sutton and Barto, example 4.2), exact: no Poisson tail is cut off.

    A state is the cars at both locations in the evening, an action how many go from the first to the second overnight.
    Asked for more than there are, all of them go, at the price of what was asked; what exceeds the capacity is lost.
    The income is its expectation, given the cars of the next evening. The layout is the book's figure 4.2: cars at
    the first location upwards, at the second to the right.
    """
    count = capacity + 1
    first, second = (x.ravel() for x in np.indices((count, count)))  # [S]
    moved = np.arange(-max_moved, max_moved + 1)
    actual = np.clip(moved, -second[:, None], first[:, None])  # [S, A]
    morning = np.minimum(first[:, None] - actual, capacity), np.minimum(second[:, None] + actual, capacity)
    p_1, rented_1 = _day(capacity, first_requests, first_returns)
    p_2, rented_2 = _day(capacity, second_requests, second_returns)
    shape = count**2, len(moved), count**2
    probability = p_1[morning[0]][..., :, None] * p_2[morning[1]][..., None, :]  # [S, A, first, second]
    rentals = rented_1[morning[0]][..., :, None] + rented_2[morning[1]][..., None, :]
    reward = income * rentals.reshape(shape) - moving_cost * np.abs(moved)[:, None]
    cells = zip((capacity - first).tolist(), second.tolist(), strict=True)
    return MDP(
        torch.arange(count**2).expand(shape),
        torch.from_numpy(probability.reshape(shape)),
        torch.from_numpy(reward),
        torch.zeros(count**2, dtype=torch.bool),
        torch.full((count**2,), 1 / count**2, dtype=torch.float64),
        tuple(f"{m:+d}" if m else "0" for m in moved),
        gamma,
        Layout(("." * count,) * count, tuple(cells), {}),
    )


def _day(capacity: int, requests: float, returns: float) -> tuple[np.ndarray, np.ndarray]:
    """From n cars in the morning to n' in the evening: probabilities [n, n'], and the rentals expected of such a day.

    A car that comes back can be rented on the next day.
    """
    cars = np.arange(capacity + 1)
    asked, back = poisson(requests), poisson(returns)
    p, rentals = np.zeros((2, capacity + 1, capacity + 1))
    for n in cars:
        for rented in range(n + 1):
            chance = asked.sf(n - 1) if rented == n else asked.pmf(rented)
            added = cars - (n - rented)
            evening = chance * np.where(cars == capacity, back.sf(added - 1), back.pmf(added))
            p[n] += evening
            rentals[n] += rented * evening
    return p, rentals / np.where(p > 0, p, 1.0)


def gambler(*, p_heads: Unit, goal: Annotated[int, Bound(2), Bound(high=1_000_000)], gamma: Unit) -> MDP:
    """A gambler bets on heads until he has the goal, which pays 1, or nothing (Sutton and Barto, example 4.3).

    A state is his capital, an action his stake from 1 upwards: no stake of 0, with which a game need never end. More
    than he has, or needs, is as much as is allowed.
    """
    capital = np.arange(goal + 1)
    terminal = (capital == 0) | (capital == goal)
    allowed = np.minimum(capital, goal - capital)
    stakes = np.arange(1, goal // 2 + 1)
    stake = np.minimum(stakes, allowed[:, None])  # [S, A]: 0 where the game is over
    next_state = capital[:, None, None] + stake[..., None] * np.array([1, -1])
    reward = ((next_state == goal) & ~terminal[:, None, None]).astype(np.float64)
    return MDP(
        torch.from_numpy(next_state),
        torch.tensor([p_heads, 1 - p_heads], dtype=torch.float64).expand(next_state.shape),
        torch.from_numpy(reward),
        torch.from_numpy(terminal),
        torch.from_numpy(~terminal / (~terminal).sum()),
        tuple(str(s) for s in stakes),
        gamma,
    )


def short_corridor(*, gamma: Unit) -> MDP:
    """Four cells in a row; in the second, left and right are swapped (Sutton and Barto, example 13.1).

    Each step costs 1 until the last cell is reached; the first has a wall to its left. A policy that cannot tell the
    states apart does best to go right with probability 2 - sqrt 2, which is worth -6 - 4 sqrt 2.
    """
    next_state = torch.tensor([[0, 1], [2, 0], [1, 3], [3, 3]])[..., None]  # by left and right
    terminal = torch.tensor([False, False, False, True])
    reward = torch.where(terminal, 0.0, -1.0).double()[:, None, None].expand(4, 2, 1)
    cells = tuple((0, x) for x in range(4))
    return MDP(
        next_state,
        torch.ones(4, 2, 1, dtype=torch.float64),
        reward.clone(),
        terminal,
        torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64),
        ("left", "right"),
        gamma,
        Layout(("S..G",), cells, {(0, 3): -1.0}, frozenset({(0, 3)})),
    )
