"""What agents that learn on-policy make of T steps of N envs."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rl_lab import returns
from rl_lab.core.errors import UserError
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
    reward, discount, last = (
        torch.stack([getattr(t, name) for t in transitions]) for name in ("reward", "discount", "last")
    )
    if not bootstrap:
        discount = discount * ~last
    next_value = _next_values(transitions, value.detach(), value_of, discount, last)
    reward = reward.clamp(-max_abs_reward, max_abs_reward)
    return returns.lambda_returns(reward, gamma * discount, last, next_value, lambda_)


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
    if truncated.any():
        next_value[truncated] = value_of(torch.stack([t.next_obs for t in transitions])[truncated])
    return next_value


def minibatches(size: int, count: int, epochs: int, rng: torch.Generator) -> Iterator[Tensor | slice]:
    """Which of `size` samples make each of `count` minibatches, drawn anew in each epoch."""
    for _ in range(epochs):
        if count == 1:
            yield slice(None)
        else:
            yield from torch.randperm(size, generator=rng, device=rng.device).tensor_split(count)


def check_minibatches(count: int, rollout_length: int, num_envs: int) -> None:
    """Raises UserError where a rollout cannot fill its minibatches."""
    if count > (samples := rollout_length * num_envs):
        raise UserError(f"agent.minibatches={count} is impossible: a rollout holds {samples} samples, "
                        "agent.rollout_length x env.num_envs")  # fmt: skip
