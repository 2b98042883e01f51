"""How far a policy is from the best one, exactly: where the world is known, learning can be measured without noise."""

import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.mdp import MDP
from rl_lab.planning.plan import Backup, follow, judged
from rl_lab.planning.policies import evaluate_policy, modified_policy_iteration


class Regret:
    """v*(start) - v_pi(start): the expected discounted return that a policy gives away, by the world's own gamma.

    Where gamma is 1 and the policy never ends, what it gets in `horizon` steps stands for its value. Worked out on the
    CPU. Raises UserError where gamma is 1 and some state reaches no end, or where it pays never to end.
    """

    def __init__(self, mdp: MDP, horizon: int):
        self.mdp, self.horizon = judged(mdp.to("cpu")), horizon
        *_, plan = modified_policy_iteration(self.mdp, max_sweeps=100_000 if self.mdp.gamma < 1 else 2_000)
        self.optimum = self.mdp.start @ self._value(plan.policy)

    def __call__(self, policy: Tensor) -> float:
        """Of actions int64 [S], or of probabilities [S, A]."""
        return float(self.optimum - self.mdp.start @ self._value(policy.cpu()))

    def _value(self, policy: Tensor) -> Tensor:
        try:
            return evaluate_policy(self.mdp, policy)
        except UserError:
            return self._within_horizon(policy)

    def _within_horizon(self, policy: Tensor) -> Tensor:
        sweep, v = Backup(follow(self.mdp, policy)), torch.zeros_like(self.mdp.start)
        for _ in range(self.horizon):
            v = sweep(v).squeeze(-1)
        return v
