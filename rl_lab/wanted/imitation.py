"""Imitation: a policy straight from what an expert did, without a reward."""

import torch
from torch import Tensor

from rl_lab.core.settings import Count
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.wanted.demonstrations import Expert, Found


def cloned(counts: Tensor) -> Tensor:
    """[S, A]: in each state the action that the expert took most often; all actions alike where it never was."""
    best = torch.nn.functional.one_hot(counts.argmax(-1), counts.shape[-1]).double()
    return torch.where(counts.sum(-1, keepdim=True) > 0, best, 1 / counts.shape[-1])


def behaviour_cloning(mdp: MDP, expert: Expert) -> Found:
    """The commonest action of each state (Pomerleau, 1991, with a table for a network)."""
    counts = expert.walks.counts(mdp)
    asked = float((counts.sum(-1) > 0).sum())
    return Found(cloned(counts), None, {"wanted/steps": float(counts.sum()), "wanted/states_asked": asked})


def dagger(mdp: MDP, expert: Expert, *, rounds: Count, episodes: Count) -> Found:
    """Plays what it has learned, asks the expert in every state that it met, and learns from all answers so far.

    See Ross, Gordon and Bagnell (2011; https://arxiv.org/abs/1011.0686), algorithm 3.1 with beta = 1, 0, 0, ...: the
    first round is the expert's demonstrations. Raises UserError where there is nobody to ask.
    """
    answer, counts = expert.asked(), torch.zeros(mdp.next_state.shape[:2], dtype=torch.int64)
    for number in range(rounds):
        walks = expert.play(cloned(counts), episodes, expert.seed + number) if number else expert.walks
        counts += walks._replace(action=answer[walks.state]).counts(mdp)
    asked = float((counts.sum(-1) > 0).sum())
    return Found(cloned(counts), None, {"wanted/steps": float(counts.sum()), "wanted/states_asked": asked})
