"""Dynamic programming on a known MDP. A planner yields one Plan for each sweep until it is done."""

from rl_lab.planning.linear import linear_programming
from rl_lab.planning.plan import Plan, backup, follow, judged
from rl_lab.planning.policies import evaluate_policy, modified_policy_iteration, policy_iteration
from rl_lab.planning.regret import Regret
from rl_lab.planning.sweeps import (
    finite_horizon,
    policy_evaluation,
    prioritised_sweeping,
    q_iteration,
    value_iteration,
)

__all__ = [
    "Plan", "Regret", "backup", "evaluate_policy", "finite_horizon", "follow", "judged", "linear_programming",
    "modified_policy_iteration", "policy_evaluation", "policy_iteration", "prioritised_sweeping", "q_iteration",
    "value_iteration",
]  # fmt: skip
