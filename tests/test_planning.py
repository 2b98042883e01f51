"""The planners against the books, against each other, and against their own bounds."""

import pytest
import torch

from rl_lab.core.errors import UserError
from rl_lab.envs.gridworld import gridworld
from rl_lab.mdp import MDP
from rl_lab.planning import backup, evaluate_policy, policy_iteration, value_iteration

BOOK = "...G\n.#.X\nS..."
FOUR = {"map": BOOK, "living_reward": -0.04, "noise": 0.2}


def last(plans):
    *_, plan = plans
    return plan


def test_russell_and_norvig_third_edition():
    """Artificial Intelligence: A Modern Approach, figure 17.3: rewards in the states."""
    plan = last(value_iteration(gridworld(**FOUR, convention="state"), gamma=1.0))
    expected = [0.8116, 0.8678, 0.9178, 1.0, 0.7616, 0.6603, -1.0, 0.7053, 0.6553, 0.6114, 0.3879, 0.0]
    torch.testing.assert_close(plan.q.max(-1).values, torch.tensor(expected).double(), atol=1e-4, rtol=0)
    up, right, left = 0, 1, 3
    policy = plan.policy.tolist()
    assert [policy[s] for s in (0, 1, 2, 4, 5, 7, 8, 9, 10)] == [right, right, right, up, up, up, left, left, left]


def test_russell_and_norvig_fourth_edition():
    """Rewards on the transitions: every value is .04 higher."""
    plan = last(value_iteration(gridworld(**FOUR), gamma=1.0))
    expected = [0.8516, 0.9078, 0.9578, 0.0, 0.8016, 0.7003, 0.0, 0.7453, 0.6953, 0.6514, 0.4279]
    torch.testing.assert_close(plan.q.max(-1).values, torch.tensor(expected).double(), atol=1e-4, rtol=0)
    assert plan.q[9].tolist() == pytest.approx([0.6325, 0.4375, 0.5935, 0.6514], abs=1e-4)  # at (3, 1): N E S W


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0.9, [0.5094, 0.6496, 0.7954, 1, 0.3985, 0.4864, -1, 0.2965, 0.2540, 0.3448, 0.1299, 0]),
        (0.99, [0.7762, 0.8439, 0.9051, 1, 0.7166, 0.6413, -1, 0.6507, 0.5927, 0.5601, 0.3380, 0]),
    ],
)
def test_discounted_book_world(gamma, expected):
    mdp = gridworld(**FOUR, convention="state")
    for plan in (last(value_iteration(mdp, gamma=gamma)), last(policy_iteration(mdp, gamma=gamma))):
        torch.testing.assert_close(plan.q.max(-1).values, torch.tensor(expected).double(), atol=1e-4, rtol=0)


def random_mdp(seed: int, states: int = 20, actions: int = 3, successors: int = 4) -> MDP:
    rng = torch.Generator().manual_seed(seed)
    p = torch.rand(states, actions, successors, generator=rng, dtype=torch.float64)
    return MDP(
        torch.randint(states, (states, actions, successors), generator=rng), p / p.sum(-1, keepdim=True),
        torch.randn(states, actions, successors, generator=rng, dtype=torch.float64), torch.zeros(states, dtype=torch.bool),
        torch.full((states,), 1 / states, dtype=torch.float64), tuple("abc"),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_planners_agree_on_random_mdps(seed):
    mdp = random_mdp(seed)
    a, b = last(value_iteration(mdp, gamma=0.9, tolerance=1e-11)), last(policy_iteration(mdp, gamma=0.9))
    torch.testing.assert_close(a.q, b.q, atol=1e-9, rtol=0)
    v = evaluate_policy(mdp, b.policy, 0.9)
    torch.testing.assert_close(backup(mdp, v, 0.9).max(-1).values, v)  # the optimality equation holds
    stochastic = torch.nn.functional.one_hot(b.policy, 3).double()
    torch.testing.assert_close(evaluate_policy(mdp, stochastic, 0.9), v)


def test_value_iteration_contracts():
    mdp, gamma = random_mdp(0), 0.8
    residuals = [plan.residual.item() for plan in value_iteration(mdp, gamma=gamma)]
    assert all(b <= gamma * a + 1e-14 for a, b in zip(residuals, residuals[1:], strict=False))


def test_no_finite_values_is_said():
    mdp = gridworld("S.", rewards={}, living_reward=1.0)
    with pytest.raises(UserError, match="planner.gamma=1 gives this world no finite values"):
        last(value_iteration(mdp, gamma=1.0, max_sweeps=100))
    with pytest.raises(UserError, match="lower planner.gamma or use value_iteration"):
        last(policy_iteration(mdp, gamma=1.0))
