"""Worlds of a few states with known values, in which what an agent learns is right or wrong."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl_lab.envs.tabular.mdp import MDP, checked
from rl_lab.envs.tabular.stepper import MDPEnv
from rl_lab.types import Spec

COPIES, ENDLESS = 16, 1_000_000
END = -1  # where an episode is terminated

Outcome = tuple[float, int, float]  # probability, next state, reward


class Problem(NamedTuple):
    """Two actions; `rows[s][a]` are the outcomes of action a in state s. Observations are one-hot, of what a state
    looks like: the end, as no one acts there, may look like any."""

    rows: Sequence[Sequence[Sequence[Outcome]]]
    starts: Sequence[int] = (0,)  # each as likely as the others
    end_looks: int | None = None  # like this state; None: like none
    time_limit: int = ENDLESS

    @property
    def mdp(self) -> MDP:
        states, width = len(self.rows) + 1, max(len(outcomes) for row in self.rows for outcomes in row)
        next_state = torch.full((states, 2, width), states - 1)
        probability = torch.zeros(states, 2, width, dtype=torch.float64)
        reward = torch.zeros(states, 2, width, dtype=torch.float64)
        probability[-1, :, 0] = 1
        for s, row in enumerate(self.rows):
            for a, outcomes in enumerate(row):
                for k, (chance, to, paid) in enumerate(outcomes):
                    next_state[s, a, k] = to % states  # END is the last one
                    probability[s, a, k], reward[s, a, k] = chance, paid
        start = torch.zeros(states, dtype=torch.float64)
        start[list(self.starts)] = 1 / len(self.starts)
        terminal = torch.arange(states) == states - 1
        return checked(MDP(next_state, probability, reward, terminal, start, ("0", "1")), "problem")

    def action_values(self, gamma: float) -> Tensor:
        """Q [S, 2] of the best policy, without the end's; the time limit is not taken into account."""
        mdp = self.mdp
        q = torch.zeros(len(self.rows) + 1, 2, dtype=torch.float64)
        for _ in range(200 if gamma < 0.9 else 20_000):
            future = q.max(-1).values * ~mdp.terminal
            q = (mdp.probability * (mdp.reward + gamma * future[mdp.next_state])).sum(-1)
        return q[:-1]


class ProblemEnv(MDPEnv):
    """Copies of a problem side by side, each with an episode of its own."""

    def __init__(self, problem: Problem, device: torch.device | str):
        super().__init__(problem.mdp, COPIES, problem.time_limit, obs="one_hot", device=str(device))
        states = len(problem.rows)
        looks = torch.arange(states + 1, device=self.device)
        looks[-1] = states if problem.end_looks is None else problem.end_looks
        self._sights = torch.eye(states + 1, device=self.device)[looks]
        self.spec = Spec((states + 1,), torch.float32, self.mdp.actions)
        self.sights = self._sights[:-1]  # [S, S + 1], of the states where one acts


def both(*outcomes: Outcome) -> Sequence[Sequence[Outcome]]:
    """The outcomes whatever is done."""
    return outcomes, outcomes


# -- values that no action changes

CONSTANT = Problem([both((1.0, END, 1.0))])
TWO = Problem([both((1.0, END, 1.0)), both((1.0, END, -1.0))], starts=(0, 1))
LATER = Problem([both((1.0, 1, 0.0)), both((1.0, END, 1.0))])
CHAIN = Problem([both((1.0, 1, 1.0)), both((1.0, 2, 0.0)), both((1.0, END, -1.0))])
TERMINATED = Problem([both((1.0, END, 1.0))], end_looks=0)
TRUNCATED = Problem([both((1.0, 0, 0.5))], time_limit=1)
CIRCLE = Problem([both((1.0, 1, 1.0)), both((1.0, 2, 0.0)), both((1.0, 0, 0.0))])
KINDS = Problem([both((1.0, 0, -0.5)), both((1.0, 1, 0.5))], starts=(0, 1), time_limit=1)

# -- choices

OPPOSITE = Problem([[[(1.0, END, 1.0)], [(1.0, END, -1.0)]], [[(1.0, END, -1.0)], [(1.0, END, 1.0)]]], starts=(0, 1))
WORTH_WAITING = Problem([[[(1.0, END, 0.2)], [(1.0, 1, 0.0)]], both((1.0, END, 1.0))])
BANDIT = Problem([[[(0.75, END, 0.5), (0.25, END, -0.5)], [(1.0, END, 0.0)]]])
SHUFFLED = Problem(
    [[[(0.5, 0, paid), (0.5, 1, paid)] for paid in pays] for pays in ((0.5, -0.5), (-0.5, 0.5))],
    starts=(0, 1),
    time_limit=4,
)
