"""The policy gradient of a small MDP without sampling: by automatic differentiation, and by every trajectory there is.

A policy is a table of log-probabilities [S, A], or of preferences [S, A] whose softmax it is; all in float64.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transitions import transition

from rl_lab.envs.tabular.mdp import MDP
from rl_lab.types import Transition


class Path(NamedTuple):
    """A whole episode: how likely it is, and its steps."""

    probability: float
    states: list[int]
    actions: list[int]
    rewards: list[float]
    successors: list[int]
    terminated: bool  # else the time limit cut it off

    def transitions(self, observe: Callable[[Tensor], Tensor]) -> Iterator[Transition]:
        """Its steps as one env would give them; `observe` makes observations [1, ...] of states [1]."""
        for t, (s, a, r, s2) in enumerate(zip(self.states, self.actions, self.rewards, self.successors, strict=True)):
            last = t == len(self.states) - 1
            yield transition(
                observe(torch.tensor([s])), torch.tensor([a]), torch.tensor([r], dtype=torch.float64),
                torch.tensor([float(not (last and self.terminated))], dtype=torch.float64), torch.tensor([last]),
                observe(torch.tensor([s2])),
            )  # fmt: skip


def model(mdp: MDP) -> tuple[Tensor, Tensor]:
    """P [S, A, S], with no way out of a terminal state, and the expected reward [S, A]."""
    states = len(mdp.start)
    p = torch.zeros(*mdp.next_state.shape[:2], states, dtype=torch.float64)
    p.scatter_add_(-1, mdp.next_state, mdp.probability)
    return p.where(~mdp.terminal[:, None, None], 0.0), (mdp.probability * mdp.reward).sum(-1)


def value(mdp: MDP, preferences: Tensor, gamma: float) -> Tensor:
    """J of the softmax policy, without a time limit: start . (I - gamma P_pi)^-1 r_pi, differentiable."""
    p, r = model(mdp)
    policy = preferences.softmax(-1)
    chain, reward = torch.einsum("sa,sat->st", policy, p), (policy * r).sum(-1)
    return mdp.start @ torch.linalg.solve(torch.eye(len(p), dtype=torch.float64) - gamma * chain, reward)


def action_values(mdp: MDP, policy: Tensor, gamma: float, horizon: int) -> Tensor:
    """Q [horizon, S, A] of probabilities [S, A], with so many steps to live: first those of step 0."""
    (p, r), v, q = model(mdp), torch.zeros_like(mdp.start), []
    for _ in range(horizon):
        q.append(r + gamma * p @ v)
        v = (policy * q[-1]).sum(-1)
    return torch.stack(q[::-1])


def visits(mdp: MDP, policy: Tensor, horizon: int) -> Tensor:
    """How likely the walk is in each state [horizon, S] at each step, the episode not being over."""
    p, at, found = model(mdp)[0], mdp.start, []
    for _ in range(horizon):
        found.append(at)
        at = torch.einsum("s,sa,sat->t", at, policy, p)
    return torch.stack(found)


def gradient(of: Callable[[Tensor], Tensor], preferences: Tensor) -> Tensor:
    preferences = preferences.detach().clone().requires_grad_()
    return torch.autograd.grad(of(preferences), preferences)[0]


def finite_gradient(mdp: MDP, preferences: Tensor, gamma: float, horizon: int) -> Tensor:
    """[S, A], of the discounted return within the time limit, by differentiating the recursion."""

    def objective(x: Tensor) -> Tensor:
        policy = x.softmax(-1)
        return mdp.start @ (policy * action_values(mdp, policy, gamma, horizon)[0]).sum(-1)

    return gradient(objective, preferences)


def undiscounted_visits_gradient(mdp: MDP, preferences: Tensor, gamma: float, horizon: int) -> Tensor:
    """[S, A]: sum_t E[ sum_a grad pi(a|s_t) Q(s_t, a) ], the gradient theorem's sum without its gamma^t.

    No objective has it for a gradient (Nota and Thomas, 2020), but it is what most implementations follow.
    """
    policy = preferences.softmax(-1)
    weight = visits(mdp, policy, horizon)[..., None] * action_values(mdp, policy, gamma, horizon)
    return gradient(lambda x: (weight * x.softmax(-1)).sum(), preferences)


def paths(mdp: MDP, policy: Tensor, horizon: int) -> Iterator[Path]:
    """Every trajectory of positive probability."""
    for s in mdp.start.nonzero().flatten().tolist():
        yield from _onward(mdp, policy, horizon, Path(mdp.start[s].item(), [s], [], [], [], False))


def _onward(mdp: MDP, policy: Tensor, horizon: int, path: Path) -> Iterator[Path]:
    s = path.states[-1]
    for a, k in (mdp.probability[s] * policy[s, :, None]).nonzero().tolist():
        s2 = mdp.next_state[s, a, k].item()
        chance = path.probability * (policy[s, a] * mdp.probability[s, a, k]).item()
        actions, successors = [*path.actions, a], [*path.successors, s2]
        rewards, over = [*path.rewards, mdp.reward[s, a, k].item()], mdp.terminal[s2].item()
        if over or len(actions) == horizon:
            yield Path(chance, path.states, actions, rewards, successors, over)
        else:
            yield from _onward(
                mdp, policy, horizon, Path(chance, [*path.states, s2], actions, rewards, successors, False)
            )
