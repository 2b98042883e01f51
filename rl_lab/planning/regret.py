"""How far a policy is from the best one, exactly: in a known world learning can be measured without noise."""

from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning.evaluation import values
from rl_lab.planning.plan import Backup, Discounted, follow
from rl_lab.planning.policies import judged, modified_policy_iteration, optimal

ROUNDS = 200  # of sweeps, before the rest is left to exact policy iteration


class Regret:
    """v*(start) - v_pi(start): the expected discounted return that a policy gives away, by the world's own gamma.

    Both are exact, of a policy that draws too, and take no account of a time limit. But where gamma is 1 and the policy
    may continue without end at a cost, its value is not finite: its return in `horizon` steps is then compared with
    the most that any policy gets in as many. Never negative. Computed on the CPU. Raises UserError where gamma is 1 and
    some v* is infinite.
    """

    def __init__(self, mdp: MDP, horizon: int):
        self.mdp, self.horizon = judged(mdp.to("cpu")), horizon
        plans = modified_policy_iteration(
            self.mdp, gamma=None, evaluation_sweeps=50, epsilon=1e-9, stop="value", max_sweeps=ROUNDS
        )
        *_, plan = islice(plans, ROUNDS)
        self.best = optimal(self.mdp, plan.policy)
        self.optimum = self.at_start(self.best.value)

    def values(self, policy: Tensor) -> Tensor:
        """v_pi [S] on the CPU; where gamma is 1 and the policy may never end, perhaps not finite."""
        return values(self.mdp, policy.cpu())

    def __call__(self, policy: Tensor) -> float:
        """The regret of actions int64 [S], or of probabilities [S, A]."""
        policy, value = policy.cpu(), self.at_start(self.values(policy))
        if value.isfinite():
            lost = self.optimum - value
        else:
            alone = follow(self.mdp, policy)
            lost = self.most - self._within_horizon(alone)
        return max(0.0, float(lost))  # rounding apart it is so

    @cached_property
    def most(self) -> Tensor:
        """The value of the best first decisions over `horizon` steps, []."""
        return self._within_horizon(self.mdp)

    def _within_horizon(self, mdp: Discounted) -> Tensor:
        sweep, v = Backup(mdp), torch.zeros_like(mdp.start)
        for _ in range(self.horizon):
            v = sweep(v).max(-1).values
        return self.at_start(v)

    def at_start(self, v: Tensor) -> Tensor:
        """[] of v [S]."""
        return torch.where(self.mdp.start > 0, self.mdp.start * v, 0.0).sum()
