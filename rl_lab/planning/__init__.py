"""Dynamic programming on a known MDP. A planner yields one Plan for each sweep until it is done.

The rule by which every planner chooses its last policy: among the greedy actions, to rounding, it takes a policy that
arrives, which is to reach a terminal state with probability 1, from every state where such a policy is optimal. A first
greedy action that arrives is kept, but for a gamma within 1e-4 of 1, where a detour hardly shows in the values: of the
policies that arrive it is there the one that takes the fewest steps on average.

Without discount (gamma = 1) a value is the infinite sum of the rewards. Never ending counts, and adds 0, where
nothing is paid any more ("rest"); where it is best, the policy rests, or leads to rest. Never ending at a
cost is worth minus infinity. A way that never ends and whose rewards cancel in the mean alone has no sum, and is no
choice. Where v* is infinite in some state, a planner raises UserError: no end and no rest is in reach, or it pays never
to end.

For gamma within 1e-4 of 1 the sweeps of a planner are followed by exact policy iteration from the policy they led to: a
small residual proves nothing there. Mostly that is one evaluation, which changes no action.
"""

from rl_lab.planning.arrival import arriving
from rl_lab.planning.evaluation import evaluate_policy, values
from rl_lab.planning.linear import linear_programming
from rl_lab.planning.plan import Plan, backup, follow
from rl_lab.planning.policies import judged, modified_policy_iteration, policy_iteration
from rl_lab.planning.regret import Regret
from rl_lab.planning.sweeps import (
    finite_horizon,
    policy_evaluation,
    prioritised_sweeping,
    q_iteration,
    value_iteration,
)

__all__ = [
    "Plan", "Regret", "arriving", "backup", "evaluate_policy", "finite_horizon", "follow", "judged",
    "linear_programming", "modified_policy_iteration", "policy_evaluation", "policy_iteration", "prioritised_sweeping",
    "q_iteration", "value_iteration", "values",
]  # fmt: skip
