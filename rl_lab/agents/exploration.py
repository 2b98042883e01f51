"""How an agent explores: schedules, and behaviour policies that draw from a generator of their own."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_lab.core.devices import double
from rl_lab.core.randomness import Stream, uniform
from rl_lab.core.settings import Natural, Unit


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` over `steps` that begin after `delay`, then flat; before `random_steps`, 1.

    (An object, because Hydra's partials cost 0.2 ms a call.)
    """

    start: Unit
    end: Unit
    _: KW_ONLY
    steps: Natural
    delay: Natural
    random_steps: Natural = 0  # taken wholly at random while `steps` run already, as in Stable-Baselines3's DQN

    def __call__(self, step: int) -> float:
        if step < self.random_steps:
            return 1.0
        done = min(max(step - self.delay, 0) / self.steps, 1.0) if self.steps else 1.0
        return self.start + (self.end - self.start) * done


def spread(epsilon: float, exponent: float, q: Tensor) -> Tensor | float:
    """[N]: epsilon^(1 + exponent i / (N - 1)) for env i, so that each explores to its own degree; one number for all
    where the exponent is 0. The values q [..., N, A] say how many envs there are.

    See Horgan et al. (2018), section 4.1: Ape-X takes epsilon .4 and exponent 7.
    """
    if not exponent:
        return epsilon
    share = torch.linspace(0, 1, q.shape[-2], device=q.device)
    return epsilon ** (1 + exponent * share)


def epsilon_greedy(q: Tensor, epsilon: float | Tensor, rng: Stream) -> Tensor:
    """q [..., N, A] -> action [..., N]: uniform with probability epsilon (one, or [N]), else the best;
    ties at random.

    Without random ties a table of zeros would go in direction 0 forever.
    """
    noise = uniform(q.shape, rng)
    best = torch.where(q == q.max(-1, keepdim=True).values, noise, -1.0).argmax(-1)
    explore = uniform(q.shape[:-1], rng) < epsilon
    return torch.where(explore, noise.argmax(-1), best)


def epsilon_greedy_probabilities(q: Tensor, epsilon: float | Tensor) -> Tensor:
    """q [N, A] -> the probabilities [N, A] by which `epsilon_greedy` chooses."""
    best = (q == q.max(-1, keepdim=True).values).to(q.dtype)
    if isinstance(epsilon, Tensor):
        epsilon = epsilon.unsqueeze(-1)
    return epsilon / q.shape[-1] + (1 - epsilon) * best / best.sum(-1, keepdim=True)


def certain(action: Tensor, num_actions: int) -> Tensor:
    """action [..., N] -> the probabilities [..., N, A] of a policy that always takes it."""
    return double(F.one_hot(action, num_actions))


def sample(log_probs: Tensor, rng: Stream) -> Tensor:
    """log_probs [..., N, A] -> action [..., N], by the Gumbel-max trick: no host round trip, no validation."""
    noise = uniform(log_probs.shape, rng)
    return (log_probs - (-noise.clamp_min(1e-20).log()).log()).argmax(-1)
