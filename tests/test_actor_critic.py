"""Actor-critic with a Q critic: its updates by hand, its gradient against the exact one, and where it ends."""

from functools import partial

import pytest
import torch
from exact_gradient import action_values, finite_gradient, gradient, value, visits
from stated import stated
from test_reinforce import PREFERENCES, one_hot, trained, walk, world
from transitions import transition

from rl_lab.agents.actor_critic import ActorCritic
from rl_lab.networks import torsos as networks
from rl_lab.networks.tiles import constant
from rl_lab.planning import evaluate_policy
from rl_lab.types import Spec, Transition

MDPEnv = stated("env/base/tabular")
short_corridor = stated("env/short_corridor", "mdp")

CPU, GAMMA = torch.device("cpu"), 0.9
TABLE = Spec((4,), torch.float64, ("a", "b"))


def agent(spec: Spec = TABLE, actor_lr: float = 1.0, critic_lr: float = 1.0, **changes) -> ActorCritic:
    knobs = dict(actor=networks.linear, critic=networks.linear, gamma=GAMMA, zero_heads=True,
                 actor_optimizer=partial(torch.optim.SGD, lr=actor_lr),
                 critic_optimizer=partial(torch.optim.SGD, lr=critic_lr))  # fmt: skip
    made = stated("agent/actor_critic", entropy_coef=0.0, zero_heads=False)(spec, CPU, 0, **(knobs | changes))
    made.actor.to(spec.obs_dtype)
    made.critic.to(spec.obs_dtype)
    return made


def at(q: torch.Tensor, **changes) -> ActorCritic:
    """With PREFERENCES and action values q [S, A]."""
    learner = agent(**changes)
    learner.actor.head.weight.data = PREFERENCES.T.clone()
    learner.critic.head.weight.data = q.T.clone()
    return learner


def table(learner: ActorCritic) -> tuple[torch.Tensor, torch.Tensor]:
    """Preferences and action values, both [S, A]."""
    return learner.actor.head.weight.detach().T.clone(), learner.critic.head.weight.detach().T.clone()


def step(state, action, reward, successor, discount=1.0, last=False) -> Transition:
    """Of envs that all end alike, from lists [N]."""
    n = len(state)
    return transition(one_hot(torch.tensor(state)), torch.tensor(action), torch.tensor(reward).double(),
                      torch.full((n,), discount).double(), torch.full((n,), last), one_hot(torch.tensor(successor)))  # fmt: skip


# -- against the exact gradient


@pytest.mark.parametrize("advantage", [False, True])
@pytest.mark.parametrize("form", ["all_actions", "sampled"])
def test_with_an_exact_critic_the_actors_gradient_is_the_exact_one(form, advantage):
    """Each state weighs as often as it is visited, discounted; the sampled form in the mean over its actions."""
    mdp, policy = world(), PREFERENCES.softmax(-1)
    q = action_values(mdp, policy, GAMMA, 400)[0]
    weight = (visits(mdp, policy, 400) * GAMMA ** torch.arange(400).double()[:, None]).sum(0)
    total = torch.zeros(4, 2, dtype=torch.float64)
    for s in range(3):
        for a in range(2):
            learner = at(q, gradient=form, advantage=advantage)
            learner.update(step([s], [a], [0.0], [s]))
            total += weight[s] * policy[s, a] * (table(learner)[0] - PREFERENCES)
    torch.testing.assert_close(total, gradient(partial(value, mdp, gamma=GAMMA), PREFERENCES), atol=1e-9, rtol=0)
    torch.testing.assert_close(total, finite_gradient(mdp, PREFERENCES, GAMMA, 400), atol=1e-9, rtol=0)


def test_all_actions_need_no_sampling_and_an_advantage_takes_noise_away():
    """Where the values are far from 0: 21 and 22."""
    q, policy, spread = Q + 20, PREFERENCES.softmax(-1), {}
    for form in "all_actions", "sampled":
        for advantage in False, True:
            moves = torch.stack([table(_moved(q, form, advantage, a))[0][0] - PREFERENCES[0] for a in range(2)])
            mean = policy[0] @ moves
            spread[form, advantage] = (policy[0] @ (moves - mean).square()).sum().item()
    assert [spread["all_actions", advantage] for advantage in (False, True)] == pytest.approx([0, 0], abs=1e-20)
    assert 0 < spread["sampled", True] < 0.01 * spread["sampled", False]


def _moved(q: torch.Tensor, form: str, advantage: bool, action: int) -> ActorCritic:
    learner = at(q, gradient=form, advantage=advantage)
    learner.update(step([0], [action], [0.0], [0]))
    return learner


# -- updates by hand


Q = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0], [0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("target", ["sarsa", "expected_sarsa"])
def test_one_step_of_the_critic_by_hand(target):
    """Q(0, b) <- r + 0.9 V(1) at rate 1, where V(1) is 3, -1 or their mean by the policy."""
    policy = PREFERENCES[1].softmax(-1)
    expected = {2 + 0.9 * (policy @ Q[1]).item()} if target == "expected_sarsa" else {2 + 0.9 * 3, 2 - 0.9}
    seen, learner = [], at(Q, target=target, actor_lr=1e-300)
    for _ in range(1 if target == "expected_sarsa" else 400):
        learner.critic.head.weight.data = Q.T.clone()
        learner.update(step([0], [1], [2.0], [1]))
        after = table(learner)[1]
        assert torch.equal(after[1:], Q[1:]) and after[0, 0] == Q[0, 0]
        seen.append(round(after[0, 1].item(), 9))
    assert set(seen) == {round(x, 9) for x in expected}
    if target == "sarsa":  # a' is drawn from pi(.|s'): four standard errors of 400 draws
        assert seen.count(4.7) / 400 == pytest.approx(policy[0].item(), abs=4 * 0.5 / 20)


@pytest.mark.parametrize(("discount", "last", "future"), [(0.0, True, 0.0), (1.0, True, 3.0), (0.0, False, 0.0)])
def test_a_time_limit_is_bootstrapped_and_an_end_is_not(discount, last, future):
    """The successor is worth 3, whatever the action."""
    q = Q.clone()
    q[1] = 3.0
    learner = at(q)
    learner.update(step([0], [1], [2.0], [1], discount, last))
    assert table(learner)[1][0, 1].item() == pytest.approx(2 + 0.9 * future)


def test_the_actor_goes_by_the_critic_before_its_update():
    """From even preferences the sampled form moves by Q(s, a) / 2: by 1, although the critic hears of 100."""
    learner = at(Q, gradient="sampled", advantage=False)
    learner.actor.head.weight.data.zero_()
    learner.update(step([0], [1], [100.0], [3], 0.0, True))
    torch.testing.assert_close(table(learner)[0][0].tolist(), [-1.0, 1.0])
    assert table(learner)[1][0, 1] == 100


def test_a_rollout_is_one_step_on_the_mean_of_its_samples():
    """Two steps of two envs, lambda 1/2, gamma 1/2, V = (1.5, 1, 2.25, 0) of an even policy; env 1's episode ends.

    Env 0: G_1 = 4 + V(2) / 2 = 5.125, G_0 = 1 + (V(1) / 2 + G_1 / 2) / 2 = 2.53125; env 1: G_1 = 8, G_0 = 2 + V(1) / 2
    where a time limit cut it off, and 2 where it was over.
    """
    for discount, expected in (1.0, 2.5), (0.0, 2.0):
        learner = at(Q, critic_lr=4.0, rollout_length=2, lambda_=0.5, gamma=0.5, actor_lr=1e-300)
        learner.actor.head.weight.data.zero_()
        first = step([0, 0], [0, 1], [1.0, 2.0], [1, 1])
        learner.update(
            first._replace(discount=torch.tensor([1.0, discount]).double(), last=torch.tensor([False, True]))
        )
        assert not learner.settled and torch.equal(table(learner)[1], Q)
        learner.update(
            step([1, 2], [0, 0], [4.0, 8.0], [2, 3], 1.0)._replace(discount=torch.tensor([1.0, 0.0]).double())
        )
        found = table(learner)[1]
        assert learner.settled
        for s, a, g in [(0, 0, 2.53125), (0, 1, expected), (1, 0, 5.125), (2, 0, 8.0)]:
            assert found[s, a].item() == pytest.approx(g), (s, a)


def test_rewards_are_clipped_and_the_entropy_is_climbed():
    learner = at(0 * Q, max_abs_reward=1.0, entropy_coef=0.1)
    learner.update(step([0], [1], [-9.0], [3], 0.0, True))
    assert table(learner)[1][0, 1] == -1
    x = PREFERENCES[0].clone().requires_grad_()
    entropy = -(x.softmax(-1) * x.log_softmax(-1)).sum()
    moved = PREFERENCES[0] + 0.1 * torch.autograd.grad(entropy, x)[0]
    torch.testing.assert_close(table(learner)[0][0], moved)


def test_a_saved_agent_goes_on_as_the_one_that_was_never_stopped():
    env = MDPEnv(world(), 5, 3)
    whole, saved, resumed = (agent(env.spec, 0.1, 0.3, target="sarsa", gradient="sampled") for _ in range(3))
    for learner in whole, saved:
        walk(learner, env, 30, env.reset(0))
    state = env.state_dict()
    resumed.load_state_dict(saved.state_dict())
    for learner in whole, resumed:
        env.load_state_dict(state)
        walk(learner, env, 40, env.observe())
    for ours, theirs in zip(table(whole), table(resumed), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(table(whole)[0], table(saved)[0])


# -- where theory says it ends


@pytest.mark.parametrize(
    ("target", "form"), [pytest.param("expected_sarsa", "all_actions", marks=pytest.mark.slow), ("sarsa", "sampled")]
)
def test_a_blind_actor_with_a_seeing_critic_learns_the_coin_of_the_short_corridor(target, form):
    """P(right) = 2 - sqrt 2, worth -6 - 4 sqrt 2 (Sutton and Barto, 2018, example 13.1)."""
    env = MDPEnv(short_corridor(), 512, 1_000)
    learner = agent(env.spec, 0.03, 3.0, actor=constant, gamma=1.0, target=target, gradient=form)
    walk(learner, env, 2_000, env.reset(0))
    chance = learner.view(env.all_observations()).bars.detach().double()
    assert chance[0, 1].item() == pytest.approx(2 - 2**0.5, abs=0.03)
    assert (env.mdp.start @ evaluate_policy(env.mdp, chance)).item() == pytest.approx(-6 - 4 * 2**0.5, abs=0.05)
    assert chance.std(0).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_book_world_is_learned(tmp_path, seed):
    assert trained(tmp_path, "actor_critic_russell_norvig", f"seed={seed}")["eval/regret"] < 0.01
