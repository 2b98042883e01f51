"""What on-policy agents compute from T steps of N envs."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rl_lab import returns
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import Stream, permutation
from rl_lab.types import Transition


@torch.no_grad()
def value_targets(
    transitions: Sequence[Transition],  # T of [N, ...]
    value: Tensor,  # [T, N] of the observations acted on
    value_of: Callable[[Tensor], Tensor],  # obs [B, ...] -> [B]
    gamma: float,
    lambda_: float,
    *,
    bootstrap: bool = True,
    max_abs_reward: float = math.inf,
) -> Tensor:
    """The lambda returns [T, N] from each step to the end of its episode or of the rollout.

    What `value` lacks of them is the advantage (see `returns.lambda_returns`). bootstrap: where a time limit cut an
    episode short its last successor's value stands for the rest; without it the episode counts as over, as in
    OpenAI Baselines.
    """
    reward, discount, last, duration = (
        torch.stack([getattr(t, name) for t in transitions]) for name in ("reward", "discount", "last", "duration")
    )
    if not bootstrap:
        discount = discount * ~last
    next_value = _next_values(transitions, value.detach(), value_of, discount, last)
    reward = reward.clamp(-max_abs_reward, max_abs_reward)
    return returns.lambda_returns(reward, returns.discounts(gamma, discount, duration), last, next_value, lambda_)


def _next_values(
    transitions: Sequence[Transition],
    value: Tensor,
    value_of: Callable[[Tensor], Tensor],
    discount: Tensor,
    last: Tensor,
) -> Tensor:
    """[T, N] of the true successors: within an episode the value of the next step, already computed.

    Where an episode was truncated the next step belongs to another one, and its successor is valued anew; the
    question whether there is any such step is the one place where a rollout waits for the device.
    """
    next_value = torch.cat([value[1:], value_of(transitions[-1].next_obs)[None]])
    truncated = last & (discount > 0)
    truncated[-1] = False
    if not truncated.any():
        return next_value
    next_obs = torch.stack([t.next_obs for t in transitions])
    if last.ndim == 2:
        next_value[truncated] = value_of(next_obs[truncated])
        return next_value
    lengths, seeds = last.shape[::2], last.ndim - 2
    mask = samples(truncated, seeds)  # [S, T * N]
    places = mask.int().topk(int(mask.sum(-1).max()), -1).indices  # of each seed its own, filled up with others
    found = samples(next_value, seeds).scatter(-1, places, value_of(take(samples(next_obs, seeds), places)))
    return torch.where(truncated, found.unflatten(-1, lengths).movedim(1, 0), next_value)


def samples(x: Tensor, seeds: int = 0) -> Tensor:
    """A rollout [T, N, ...] -> [T * N, ...]; with `seeds` = 1, [T, S, N, ...] -> [S, T * N, ...]."""
    return x.movedim(0, seeds).flatten(seeds, seeds + 1)


def back(x: Tensor, shape: torch.Size) -> Tensor:
    """Undoes `samples`: a rollout of this shape, [T, N] or [T, S, N]."""
    return x.unflatten(len(shape) - 2, (shape[0], shape[-1])).movedim(len(shape) - 2, 0)


def take(x: Tensor, places: Tensor | slice) -> Tensor:
    """x [B, ...] at places [K] -> [K, ...]; x [S, B, ...] at places [S, K] -> [S, K, ...]."""
    if isinstance(places, slice):
        return x[places]
    if places.ndim == 1:
        return _rows(x, places)
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), places]


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """x[places], each sample copied as one piece of memory, which torch does of matrices alone."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return _rows(x.permute(0, 2, 3, 1), places).permute(0, 3, 1, 2)
    return x.flatten(1).index_select(0, places).unflatten(1, x.shape[1:]) if x.ndim > 1 else x[places]


def minibatches(size: int, count: int, epochs: int, rng: Stream) -> Iterator[Tensor | slice]:
    """Which of `size` samples make each of `count` minibatches, drawn anew in each epoch.

    With several ranks each draws among its own samples, and a joint minibatch takes equally many from each.
    """
    for _ in range(epochs):
        if count == 1:
            yield slice(None)
        else:
            yield from permutation(size, rng).tensor_split(count, -1)


def check_minibatches(count: int, rollout_length: int, num_envs: int) -> None:
    """Raises UserError where a rollout cannot fill its minibatches."""
    if count > (samples := rollout_length * num_envs):
        raise UserError(
            f"agent.minibatches={count} must be at most {samples}, the samples of a rollout: "
            "agent.rollout_length x env.num_envs"
        )
