"""How an agent tries things: schedules, and behaviour policies that draw from a generator of their own."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rl_lab.core.settings import Natural, Unit


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` over `steps`, then flat. (An object, because Hydra's partials cost 0.2 ms a call.)"""

    start: Unit
    end: Unit
    steps: Natural = 0

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0) if self.steps else self.end


def epsilon_greedy(q: Tensor, epsilon: float, rng: Generator) -> Tensor:
    """q [N, A] -> action [N]: uniform with probability epsilon, else the best; ties at random.

    Without random ties a table of zeros would walk in direction 0 for ever.
    """
    noise = torch.rand(q.shape, generator=rng, device=q.device)
    best = torch.where(q == q.max(-1, keepdim=True).values, noise, -1.0).argmax(-1)
    explore = torch.rand(q.shape[:-1], generator=rng, device=q.device) < epsilon
    return torch.where(explore, noise.argmax(-1), best)


def sample(log_probs: Tensor, rng: Generator) -> Tensor:
    """log_probs [N, A] -> action [N], by the Gumbel-max trick: no host round trip, no validation."""
    noise = torch.rand(log_probs.shape, generator=rng, device=log_probs.device)
    return (log_probs - (-noise.clamp_min(1e-20).log()).log()).argmax(-1)
