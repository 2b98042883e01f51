"""The stepper against the tensors."""

import torch

from rl_lab.envs.gridworld import gridworld
from rl_lab.envs.mdp import MDPEnv
from rl_lab.planning import evaluate_policy, value_iteration

BOOK = "...G\n.#.X\nS..."
FOUR = {"map": BOOK, "living_reward": -0.04, "noise": 0.2}


def last(plans):
    *_, plan = plans
    return plan


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
