"""The stepper against the tensors, and the planners against the books."""

import pytest
import torch

from rl_lab.core.errors import UserError
from rl_lab.envs.gridworld import gridworld
from rl_lab.envs.mdp import MDP, MDPEnv
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


def test_stepper_follows_the_tables():
    """Chi-square of the observed successors, for every state and action visited."""
    mdp = gridworld(BOOK, noise=0.4, slip="uniform")
    env = MDPEnv(mdp, num_envs=4_096, time_limit=1_000)
    obs, counts = env.reset(0), torch.zeros(*mdp.next_state.shape[:2], len(mdp.start), dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    for _ in range(100):
        action = torch.randint(4, (env.num_envs,), generator=rng)
        step = env.step(action)
        index = (obs.argmax(-1) * 4 + action) * len(mdp.start) + step.next_obs.argmax(-1)
        counts.view(-1).index_add_(0, index, torch.ones(env.num_envs, dtype=torch.float64))
        obs = step.obs
    p = torch.zeros_like(counts).scatter_add_(-1, mdp.next_state, mdp.probability)
    expected = p * counts.sum(-1, keepdim=True)
    assert counts[p == 0].sum() == 0
    seen = (counts.sum(-1) > 100) & ~mdp.terminal[:, None]
    chi_square = torch.where(p > 0, (counts - expected) ** 2 / expected, 0.0).sum(-1)[seen].sum().item()
    freedom = ((p > 0).sum(-1) - 1)[seen].sum().item()
    assert seen.sum() > 30 and abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_walkers_return_is_the_planned_value():
    mdp, gamma = gridworld(**FOUR), 0.9
    policy = last(value_iteration(mdp, gamma=gamma)).policy
    env = MDPEnv(mdp, num_envs=20_000, time_limit=10_000)
    obs, alive = env.reset(0), torch.ones(env.num_envs)
    total = torch.zeros(env.num_envs)
    for t in range(200):
        step = env.step(policy[obs.argmax(-1)])
        total += gamma**t * step.reward * alive
        alive *= 1 - step.last.float()
        obs = step.obs
    value = (mdp.start @ evaluate_policy(mdp, policy, gamma)).item()
    assert abs(total.mean().item() - value) < 4 * total.std().item() / env.num_envs**0.5


def test_truncation_is_not_termination():
    """Reward 1 for ever, cut at 10: each cut must leave the future open."""
    mdp = gridworld("S", rewards={}, living_reward=1.0)
    env = MDPEnv(mdp, num_envs=2, time_limit=10)
    env.reset(0)
    steps = [env.step(torch.zeros(2, dtype=torch.int64)) for _ in range(20)]
    assert [s.last.all().item() for s in steps] == ([False] * 9 + [True]) * 2
    assert all((s.discount == 1).all() and (s.reward == 1).all() for s in steps)


def test_terminal_states_end_the_future_and_the_true_successor_is_kept():
    mdp = gridworld("SG")
    env = MDPEnv(mdp, num_envs=1, time_limit=10)
    env.reset(0)
    step = env.step(torch.tensor([1]))
    assert step.last.all() and (step.discount == 0).all() and (step.reward == 1).all()
    assert step.next_obs.argmax() == 1 and step.obs.argmax() == 0


def test_a_restored_stepper_goes_on_as_if_nothing_happened():
    one, two = (MDPEnv(gridworld(**FOUR), num_envs=8, time_limit=7) for _ in range(2))
    one.reset(0), two.reset(1)
    actions = torch.randint(4, (30, 8))
    for action in actions[:15]:
        one.step(action)
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    for action in actions[15:]:
        assert all(torch.equal(a, b) for a, b in zip(one.step(action), two.step(action), strict=True))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"map": "S.\n..."}, "env.mdp.map: its rows must be of one length, not [2, 3]"),
        ({"map": "S?"}, "env.mdp.map: no meaning for ?; give it one in env.mdp.rewards"),
        ({"map": "..G"}, "env.mdp.map: no start cell; mark at least one with S"),
    ],
)
def test_impossible_maps(arguments, line):
    with pytest.raises(UserError) as error:
        gridworld(**arguments)
    assert str(error.value) == line
