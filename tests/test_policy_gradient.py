"""A2C and PPO: what their targets are, what one step does, and where each becomes a simpler method."""

import math
from functools import partial

import pytest
import torch
from stated import stated
from torch import tensor
from transitions import transition

from rl_lab import losses
from rl_lab.agents import ppo
from rl_lab.agents.a2c import Acted
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Decay
from rl_lab.memory.rollouts import value_targets
from rl_lab.networks import torsos as networks
from rl_lab.types import Spec, Transition

A2C = stated("agent/a2c")
MDPEnv = stated("env/base/tabular")
PPO = stated("agent/ppo")
gridworld = stated("env/base/gridworld", "mdp")

CPU, SPEC = torch.device("cpu"), Spec((3,), torch.float32, ("a", "b"))
NET = partial(networks.mlp, hidden=(8,), activation="Tanh")


def agent(kind, spec=SPEC, **changes):
    knobs = dict(network=NET, optimizer=partial(torch.optim.SGD, lr=0.1), rollout_length=4, gamma=0.9, lambda_=0.95,
                 value_coef=0.5, entropy_coef=0.01, max_grad_norm=1e9, orthogonal_heads=False)  # fmt: skip
    if kind is PPO:
        knobs |= dict(epochs=1, minibatches=1, clip=0.2, standardise=False)
    return kind(spec, CPU, 0, **(knobs | changes))


def steps(reward, discount, last, seed=0):
    """T transitions of N envs from lists [T][N]; observations are noise, successors go on where nothing ended."""
    rng = torch.Generator().manual_seed(seed)
    obs = torch.randn(len(reward) + 1, len(reward[0]), 3, generator=rng)
    found = []
    for t, row in enumerate(zip(reward, discount, last, strict=True)):
        r, d, end = (tensor(x, dtype=kind) for x, kind in zip(row, (torch.float32,) * 2 + (torch.bool,), strict=True))
        then = torch.where(end[:, None], torch.randn(obs[t].shape, generator=rng), obs[t + 1])
        action = torch.randint(2, r.shape, generator=rng)
        found.append(transition(obs[t], action, r, d, end, then))
    return found


def first(x):
    """Stands for a value function: the first number of an observation."""
    return x[..., 0]


def targets(rollout, lambda_, **more):
    value = torch.stack([first(t.obs) for t in rollout])
    return value_targets(rollout, value, first, 0.9, lambda_, **more), value


ROLLOUT = (
    [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]],
    [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]],
    [[False, False], [True, True], [False, False]],
)  # env 0 is cut by its time limit, env 1 ends


def test_n_step_returns_are_generalised_advantage_estimation_at_lambda_1():
    rollout = steps(*ROLLOUT)
    g, _ = targets(rollout, 1.0)
    v = [first(t.next_obs) for t in rollout]
    second = tensor([2 + 0.9 * v[1][0], 5.0])
    torch.testing.assert_close(
        g, torch.stack([tensor([1.0, 4.0]) + 0.9 * second, second, tensor([3.0, 6.0]) + 0.9 * v[2]])
    )


def test_generalised_advantages_at_lambda_0_are_the_td_errors():
    rollout = steps(*ROLLOUT)
    g, value = targets(rollout, 0.0)
    for t, x in enumerate(rollout):
        torch.testing.assert_close(g[t] - value[t], x.reward + 0.9 * x.discount * first(x.next_obs) - first(x.obs))


def test_generalised_advantages_are_discounted_sums_of_td_errors():
    """Schulman et al. (2016), eq. 16: A_t = sum_l (gamma lambda)^l delta_{t+l}, within the episode."""
    rollout = steps(*ROLLOUT)
    g, value = targets(rollout, 0.7)
    error = [x.reward + 0.9 * x.discount * first(x.next_obs) - first(x.obs) for x in rollout]
    torch.testing.assert_close((g - value)[0], error[0] + 0.63 * error[1])
    torch.testing.assert_close((g - value)[1:], torch.stack(error[1:]))


def test_a_time_limit_counts_as_an_end_where_it_is_not_bootstrapped():
    rollout = steps(*ROLLOUT)
    g, _ = targets(rollout, 1.0, bootstrap=False)
    torch.testing.assert_close(g[:2], tensor([[1 + 0.9 * 2, 4 + 0.9 * 5], [2.0, 5.0]]))
    torch.testing.assert_close(g[2], targets(rollout, 1.0)[0][2])  # the end of a rollout is no end


def test_rewards_are_clipped():
    torch.testing.assert_close(targets(steps([[9.0], [-9.0]], [[0.0]] * 2, [[True]] * 2), 1.0, max_abs_reward=1.0)[0],
                               tensor([[1.0], [-1.0]]))  # fmt: skip


@pytest.mark.parametrize("lambda_", [0.0, 0.9, 1.0])
def test_nothing_after_a_reset_moves_what_was_before(lambda_):
    rollout, other = steps(*ROLLOUT), steps(*ROLLOUT)
    other[2] = transition(
        rollout[2].obs + 7, rollout[2].action, rollout[2].reward + 99, *rollout[2][3:5], rollout[2].next_obs - 3
    )
    torch.testing.assert_close(targets(rollout, lambda_)[0][:2], targets(other, lambda_)[0][:2])


def gradients(module, loss):
    return torch.autograd.grad(loss, [p for p in module.parameters()], allow_unused=True)


def seen(learner, rollout):
    """The rollout with what the agent computes on it."""
    done = [learner.network(t.obs) for t in rollout]
    return [
        (Acted(losses.pick(log_probs, t.action), losses.entropy(log_probs), value), t)
        for (log_probs, value), t in zip(done, rollout, strict=True)
    ]


def of(rollout, name):
    return torch.stack([getattr(x, name) for x, _ in rollout])


def test_a2c_on_one_whole_episode_is_reinforce_with_a_baseline():
    """Sutton and Barto (2018), section 13.4: the mean over steps of -(G_t - V(s_t)) grad log pi."""
    learner = agent(A2C, lambda_=1.0, value_coef=0.0, entropy_coef=0.0, rollout_length=3, separate_value=True)
    rollout = steps([[1.0], [2.0], [4.0]], [[1.0], [1.0], [0.0]], [[False], [False], [True]])
    loss, _ = learner.loss(seen(learner, rollout))
    returned = [1 + 0.9 * 2 + 0.81 * 4, 2 + 0.9 * 4, 4.0]
    reinforce = 0.0
    for t, g in zip(rollout, returned, strict=True):
        log_probs, value = learner.network(t.obs)
        reinforce = reinforce - (g - value.detach()[0]) * log_probs[0, t.action[0]] / 3
    for a, b in zip(gradients(learner.network.policy, loss), gradients(learner.network.policy, reinforce), strict=True):
        torch.testing.assert_close(a, b)


def test_the_first_step_of_ppo_is_that_of_a2c():
    """The ratio is 1: the clipped objective has the policy gradient's gradient."""
    rollout = steps(*ROLLOUT)
    one, two = agent(A2C, rollout_length=3), agent(PPO, rollout_length=3)
    two.load_state_dict({**one.state_dict(), "rng": two.rng.get_state()})
    computed = seen(one, rollout)
    two.learn([(ppo.Acted(t.obs, x.log_prob.detach(), x.value.detach()), t) for x, t in computed])
    one.learn(computed)
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_decoupled_ppo_is_ppo_where_the_policy_that_learns_has_acted():
    one, two = (agent(PPO, rollout_length=3, decoupled=decoupled) for decoupled in (False, True))
    two.load_state_dict({**one.state_dict(), "rng": one.rng.get_state()})
    kept = [(ppo.Acted(t.obs, x.log_prob.detach(), x.value.detach()), t) for x, t in seen(one, steps(*ROLLOUT))]
    one.learn(kept)
    two.learn(kept)
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_decoupled_ppo_weighs_what_an_older_policy_did_and_clips_around_its_own():
    """An action that acted with half the probability counts twice, and a ratio of 2 to it is not yet clipped."""
    learner = agent(PPO, rollout_length=3, value_coef=0.0, entropy_coef=0.0, standardise=False, decoupled=True,
                    optimizer=partial(torch.optim.SGD, lr=1.0), max_grad_norm=math.inf)  # fmt: skip
    before = [x.clone() for x in learner.network.policy.parameters()]
    rollout = steps(*ROLLOUT)
    computed = seen(learner, rollout)
    value, log_prob = of(computed, "value").detach(), of(computed, "log_prob")
    advantage = value_targets(rollout, value, learner.network.values, learner.gamma, learner.lambda_) - value
    expected = gradients(learner.network.policy, -(2 * log_prob * advantage).mean())
    learner.learn([(ppo.Acted(t.obs, x.log_prob.detach() - math.log(2), x.value.detach() + 7), t) for x, t in computed])
    for a, b, gradient in zip(before, learner.network.policy.parameters(), expected, strict=True):
        torch.testing.assert_close(a - b, gradient)


def test_ppo_learns_from_every_sample_of_every_epoch():
    learner = agent(PPO, epochs=3, minibatches=4)
    parts = list(learner.parts(10))
    assert len(parts) == 12
    for epoch in (parts[:4], parts[4:8], parts[8:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(parts[:4]), torch.cat(parts[4:8]))


def test_ppo_refuses_more_minibatches_than_samples():
    with pytest.raises(UserError, match="agent.minibatches=9 must be at most 8, the samples of a rollout"):
        agent(PPO, minibatches=9).announce(num_envs=2)


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_the_learning_rate_falls_and_the_clipping_with_it(kind):
    world = MDPEnv(gridworld("S.G"), num_envs=2, time_limit=5)
    learner = agent(kind, world.spec, decay_steps=16, **({"decay_clip": True} if kind is PPO else {}))
    obs, rates, clips, loss = world.reset(0), [], [], learner.loss
    learner.loss = lambda *batch: clips.append(batch[1:2]) or loss(*batch)
    for _ in range(12):
        action = learner.act(obs)
        step = world.step(action)
        learner.update(Transition.of(obs, action, step))
        obs = step.obs
        rates.append(learner.optimizer.param_groups[0]["lr"])
    assert rates[3::4] == pytest.approx([0.1, 0.05, 0.0])  # 8 steps a rollout
    assert kind is A2C or [clip for (clip,) in clips] == pytest.approx([0.2, 0.1, 0.0])


def test_decay_of_no_steps_is_none():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    assert Decay(optimizer, 0).to(10**9) == 1.0 and optimizer.param_groups[0]["lr"] == 0.3


def test_the_advantages_of_a_rollout_are_standardised_on_request():
    rollout = steps(*ROLLOUT)
    plain, shaped = (
        agent(A2C, value_coef=0.0, entropy_coef=0.0),
        agent(A2C, value_coef=0.0, entropy_coef=0.0, standardise=True),
    )
    value = of(seen(plain, rollout), "value").detach()
    advantage = value_targets(rollout, value, plain.network.values, 0.9, 0.95) - value
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    expected = -(of(seen(plain, rollout), "log_prob") * advantage).mean()
    torch.testing.assert_close(shaped.loss(seen(shaped, rollout))[0], expected)


@pytest.mark.parametrize("separate", [False, True])
def test_a_second_forward_learns_what_the_first_would(separate):
    one, other = (agent(A2C, separate_value=separate, forward_again=again) for again in (False, True))
    for a in steps(*ROLLOUT) + steps(*ROLLOUT, seed=1)[:1]:
        acts = [learner.act(a.obs) for learner in (one, other)]
        assert torch.equal(*acts) and other._acted.value.grad_fn is None is not one._acted.value.grad_fn
        found = [learner.update(a._replace(action=acts[0])) for learner in (one, other)]
    assert found[0].keys() == found[1].keys() >= {"a2c/entropy", "a2c/grad_norm"}
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-6, rtol=1e-5)
    for p, q in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(q, p, atol=1e-6, rtol=1e-5)


def test_a_separate_value_shares_nothing_with_the_policy():
    learner = agent(A2C, separate_value=True)
    obs = torch.randn(5, 3)
    log_probs, value = learner.network(obs)
    torch.testing.assert_close(value, learner.network.values(obs))
    assert all(g is None for g in gradients(learner.network.torso, value.sum()))
    shared = agent(A2C)
    torch.testing.assert_close(shared.network(obs)[1], shared.network.values(obs))
    assert all(g is not None for g in gradients(shared.network.torso, shared.network(obs)[1].sum()))


def test_orthogonal_heads_start_small_for_the_policy_and_whole_for_the_value():
    """As in OpenAI Baselines: gains .01 and 1, no offset."""
    network = agent(A2C, orthogonal_heads=True).network
    for head, gain in ((network.policy, 0.01), (network.value, 1.0)):
        torch.testing.assert_close(head.weight @ head.weight.T, gain**2 * torch.eye(len(head.weight)))
        assert not head.bias.any()
