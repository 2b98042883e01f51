"""What an expert did in a known world, as numbers of states, and an expert who can be asked."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.recording import Episode
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning.soft import Dynamics


class Walks(NamedTuple):
    """E episodes of T steps together, one after the other."""

    state: Tensor  # [T] int64
    action: Tensor  # [T] int64
    successor: Tensor  # [T] int64
    time: Tensor  # [T] int64, steps since its episode began

    @property
    def episodes(self) -> int:
        return int((self.time == 0).sum())

    @property
    def final(self) -> Tensor:
        """[T] bool, the last step of its episode."""
        return torch.cat([self.time[1:] == 0, torch.ones(1, dtype=torch.bool)])

    def counts(self, mdp: MDP) -> Tensor:
        """[S, A], how often each action was taken in each state."""
        states, actions = mdp.next_state.shape[:2]
        return torch.bincount(self.state * actions + self.action, minlength=states * actions).view(states, actions)


class Expert(NamedTuple):
    """An expert's demonstrations, and how to ask for more."""

    walks: Walks
    policy: Tensor | None  # [S, A] probabilities; None: only its demonstrations are known
    play: Callable[[Tensor, int, int], Walks]  # of a policy [S, A], this many episodes from a seed
    seed: int

    def asked(self) -> Tensor:
        """[S], the action it would take in each state. Raises UserError where there is nobody to ask."""
        if self.policy is None:
            raise UserError("planner=dagger asks the expert about states of its own choice, and a recording answers "
                            "nothing; leave loop.data out, or choose planner=behaviour_cloning")  # fmt: skip
        return self.policy.argmax(-1)


class Found(NamedTuple):
    """What was learned from demonstrations: a policy, or a reward to plan for."""

    policy: Tensor | None  # [S, A] probabilities; None: the best one for the reward
    reward: MDP | None  # the world as it would be if it paid by what was inferred
    metrics: dict[str, float]


def walks_of(episodes: Iterable[Episode], states: Callable[[Tensor], Tensor], device: torch.device) -> Walks:
    """The episodes as walks; `states` reads state numbers off observations. Raises UserError without episodes."""
    rows = []
    for episode in episodes:
        seen = states(torch.from_numpy(np.asarray(episode.obs)).to(device)).cpu()
        rows.append((seen[:-1], torch.from_numpy(episode.action), seen[1:], torch.arange(len(episode.action))))
    if not rows:
        raise UserError("there are no demonstrations; record some, or set loop.demonstrations")
    return Walks(*map(torch.cat, zip(*rows, strict=True)))


def first_states(walks: Walks, states: int) -> Tensor:
    """[S], the share of the episodes that began in each state."""
    return torch.bincount(walks.state[walks.time == 0], minlength=states).double() / walks.episodes


def left_off(walks: Walks, world: Dynamics) -> Tensor:
    """[S], gamma^T by the state that an episode of T steps led to, a mean over episodes.

    A time limit is no end: what would have followed is worth v there. Where an episode did end, v is 0.
    """
    last = walks.final
    weight = world.gamma ** (walks.time[last] + 1).double() / walks.episodes
    return torch.zeros_like(world.start).index_add_(0, walks.successor[last], weight)


def features(walks: Walks, world: Dynamics, form: str) -> Tensor:
    """[S], how often the tables' entries are paid in an episode on average, discounted (mu of Ziebart, 2008)."""
    weight = world.gamma ** walks.time.double() / walks.episodes
    empty = torch.zeros_like(world.start)
    here, there = (empty.index_add(0, x, weight) for x in (walks.state, walks.successor))
    return {"state": here, "entered": there, "change": there - here}[form]
