"""Online Q-learning: the table it is with one-hot observations, where theory says it converges and where not, PQN."""

from functools import partial

import pytest
import torch
from stated import stated
from torch import nn
from torch.nn import functional as F
from transitions import transition

from rl_lab.__main__ import COMMANDS
from rl_lab.agents import exploration
from rl_lab.agents.q_learning import QLearning
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.loops.judging import Judge, play
from rl_lab.networks import tiles as features
from rl_lab.networks import torsos as networks
from rl_lab.planning import evaluate_policy
from rl_lab.playing.player import load
from rl_lab.types import Spec, Transition

Linear = stated("agent/dqn", "epsilon")
q_iteration = stated("planner/q_iteration")
toy_text_env = stated("env/toy_text")

CPU, STATES = torch.device("cpu"), 5
TABLE = Spec((STATES,), torch.float64, ("a", "b", "c"))
TARGETS = ["q_learning", "sarsa", "expected_sarsa"]


def constant(epsilon: float) -> exploration.Linear:
    return Linear(epsilon, epsilon)


def agent(spec: Spec = TABLE, lr: float = 0.5, seed: int = 0, **changes) -> QLearning:
    knobs = dict(network=networks.linear, optimizer=partial(torch.optim.SGD, lr=lr), gamma=0.9, epsilon=constant(0.3),
                 zero_head=True)  # fmt: skip
    made = stated("agent/q_learning", normalise=False, zero_head=False)(spec, CPU, seed, **(knobs | changes))
    made.network.to(spec.obs_dtype)
    return made


def one_hot(state: torch.Tensor, of: int = STATES) -> torch.Tensor:
    return F.one_hot(state, of).double()


def walk(learner, env, steps: int, seed: int = 0) -> torch.Tensor:
    """The rewards [steps, N] on the way."""
    obs, rewards = env.reset(seed), []
    for _ in range(steps):
        action = learner.act(obs)
        step = env.step(action)
        learner.update(Transition.of(obs, action, step))
        obs = step.obs
        rewards.append(step.reward)
    return torch.stack(rewards)


# -- a table


def random_step(rng, state, num_envs):
    """A successor, a reward and an end [N]: a third of the episodes' ends are terminations, the rest truncations."""
    successor = torch.randint(STATES, (num_envs,), generator=rng)
    reward = torch.rand(num_envs, generator=rng, dtype=torch.float64)
    chance = torch.rand(num_envs, generator=rng)
    terminated, last = chance < 0.1, chance < 0.3
    first = torch.where(last, torch.randint(STATES, (num_envs,), generator=rng), successor)
    return successor, reward, (~terminated).double(), last, first


def follow_table(table, target, planned, state, action, reward, discount, successor, normalise, epsilon=0.3):
    """One update of a table [S, A] by the textbook (Sutton and Barto, 2018, eq. 6.7 to 6.9), step size 0.5."""
    moves = torch.zeros_like(table)
    for i in range(len(state)):
        q = table[successor[i]]
        if target == "sarsa":
            future = q[planned[i]]
        elif target == "expected_sarsa":
            greedy = (q == q.max()).double() / (q == q.max()).sum()
            future = epsilon * q.mean() + (1 - epsilon) * (greedy * q).sum()
        else:
            future = q.max()
        error = reward[i] + 0.9 * discount[i] * future - table[state[i], action[i]]
        visits = ((state == state[i]) & (action == action[i])).sum() if normalise else len(state)
        moves[state[i], action[i]] += 0.5 * error / visits
    table += moves


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("target", TARGETS)
def test_a_linear_network_on_one_hot_states_is_the_table_of_the_textbook(target, num_envs, normalise):
    learner, table = agent(target=target, normalise=normalise), torch.zeros(STATES, 3, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    state, planned, last = torch.randint(STATES, (num_envs,), generator=rng), None, None
    for _ in range(120):
        action = learner.act(one_hot(state))
        if planned is not None:
            assert (action == planned)[~last].all(), "SARSA takes the action that its update counted on"
        successor, reward, discount, last, first = random_step(rng, state, num_envs)
        learner.update(transition(one_hot(state), action, reward, discount, last, one_hot(successor)))
        planned = learner.planned[0] if target == "sarsa" else None
        follow_table(table, target, planned, state, action, reward, discount, successor, normalise)
        torch.testing.assert_close(learner.network.head.weight.T, table, atol=1e-12, rtol=0)
        state = first


def test_sarsa_plans_within_an_episode_only():
    """Epsilon is 0 and the table says b: a planned c is taken where the walk goes on, and b where it began anew."""
    learner = agent(target="sarsa", epsilon=constant(0.0))
    with torch.no_grad():
        learner.network.head.weight[1] = 1.0
    state = torch.tensor([2, 2])
    learner.planned = torch.tensor([2, 2]), one_hot(torch.tensor([2, 4]))
    assert learner.act(one_hot(state)).tolist() == [2, 1]
    assert learner.act(one_hot(state), greedy=True).tolist() == [1, 1]


@pytest.mark.parametrize("target", TARGETS)
def test_a_saved_agent_goes_on_as_the_one_that_was_never_stopped(target):
    env = toy_text_env("CliffWalking-v1", 3, 20)
    made = partial(agent, env.spec, target=target, decay_steps=300, epsilon=Linear(1.0, 0.1, 300))
    whole, saved = made(), made()
    walk(whole, env, 40)
    walk(saved, env, 40)
    resumed = made(seed=7)
    resumed.load_state_dict(saved.state_dict())
    obs = env.observe()
    for _ in range(20):
        action = whole.act(obs)
        assert torch.equal(action, resumed.act(obs))
        step = env.step(action)
        for learner in whole, resumed:
            learner.update(Transition.of(obs, action, step))
        obs = step.obs
    assert torch.equal(whole.network.head.weight, resumed.network.head.weight)


def test_rewards_are_clipped_then_scaled():
    learner = agent(lr=1.0, max_abs_reward=2.0, reward_scale=0.1)
    state, ends = torch.tensor([0, 1]), torch.zeros(2, dtype=torch.float64)
    reward = torch.tensor([9.0, -1.0], dtype=torch.float64)
    learner.update(transition(one_hot(state), torch.tensor([0, 0]), reward, ends, ends == 0, one_hot(state)))
    torch.testing.assert_close(learner.network.head.weight[0, :2].tolist(), [0.1, -0.05])


def test_the_learning_rate_falls_from_all_of_it_to_nothing():
    """Three rollouts of one step on one env: rates 1, 2/3 and 1/3 of 0.6 towards a reward of 1."""
    learner, rates = agent(lr=0.6, decay_steps=3), []
    one, state = torch.ones(1, dtype=torch.float64), torch.tensor([0])
    for _ in range(3):
        before = learner.network.head.weight[0, 0].item()
        learner.update(transition(one_hot(state), state, one, 0 * one, one > 0, one_hot(state)))
        rates.append((learner.network.head.weight[0, 0].item() - before) / (1 - before))
    assert rates == pytest.approx([0.6, 0.4, 0.2])


# -- where theory says that it converges, and where not


def test_q_learning_comes_to_the_planners_action_values():
    """A slippery lake of 3x3 by uniform walks: every Q(s, a) within 0.05 of Q*, of values up to 0.95."""
    env = toy_text_env("FrozenLake-v1", 512, 100, options={"desc": ["SFF", "FHF", "FFG"]})
    learner = agent(env.spec, 0.1, gamma=0.99, epsilon=constant(1.0), normalise=True, decay_steps=512 * 1_000)
    walk(learner, env, 1_000)
    *_, plan = q_iteration(env.mdp)
    gap = (learner.q(env.all_observations()) - plan.q)[~env.mdp.terminal].abs().max()
    assert plan.q.max() > 0.9 and gap < 0.05
    policy = learner.act(env.all_observations(), greedy=True)
    assert env.mdp.start @ evaluate_policy(env.mdp, policy) > 0.999 * (env.mdp.start @ plan.q.max(-1).values)


def weights_after(obs, next_obs, weights, gamma: float, steps: int, lr: float = 0.01) -> torch.Tensor:
    """Of a linear Q of one action, updated on the same transitions [N] without reward again and again."""
    learner = agent(Spec(obs.shape[1:], torch.float64, ("solid",)), lr, gamma=gamma)
    learner.network.head.weight.data = weights[None].clone()
    zeros = torch.zeros(len(obs), dtype=torch.float64)
    for _ in range(steps):
        learner.update(transition(obs, torch.zeros(len(obs), dtype=int), zeros, zeros + 1, zeros > 0, next_obs))
    return learner.network.head.weight.detach()[0]


@pytest.mark.parametrize(("gamma", "factor"), [(0.4, 0.98), (0.6, 1.02)])
def test_from_w_to_2w_diverges_for_gamma_above_a_half(gamma, factor):
    """w <- w + alpha (2 gamma w - w): by 1 + alpha (2 gamma - 1) a step (Sutton and Barto, 2018, section 11.2)."""
    obs = torch.ones(1, 1, dtype=torch.float64)
    w = weights_after(obs, 2 * obs, torch.ones(1, dtype=torch.float64), gamma, 500, lr=0.1)
    assert w.item() == pytest.approx(factor**500)


def test_bairds_counterexample_diverges_and_its_table_does_not():
    """Seven states, eight weights, the target policy always goes to the last (Sutton and Barto, 2018, figure 11.2).

    In expectation over the behaviour policy every state is updated equally, towards the last alone: the dashed action
    has importance 0, the solid one 7 at a probability of 1/7.
    """
    x = torch.cat([2 * torch.eye(7), torch.ones(7, 1)], 1).double()
    x[6, 6], x[6, 7] = 1, 2
    start = torch.tensor([1.0, 1, 1, 1, 1, 1, 10, 1]).double()
    to_last = x[[6]].expand(7, 8)
    size = [weights_after(x, to_last, start, 0.99, steps).norm().item() for steps in (0, 500, 1_000)]
    assert size[2] > 3 * size[1] > 9 * size[0]

    on_policy = weights_after(x[[6]], x[[6]], start, 0.99, 600, lr=0.5)
    assert (x[6] @ on_policy).abs() < 1e-3

    table = torch.eye(7).double()
    values = weights_after(table, table[[6]].expand(7, 7), start[:7], 0.99, 1_000, lr=7.0)
    assert values.abs().max() < 1e-3


def test_sarsa_walks_the_safe_way_and_q_learning_the_shortest():
    """The cliff (Sutton and Barto, 2018, example 6.6), alpha 0.5, epsilon 0.1: rewards a step while learning."""
    env, online, greedy = toy_text_env("CliffWalking-v1", 16, 500), {}, {}
    for target in TARGETS:
        learner = agent(env.spec, gamma=1.0, epsilon=constant(0.1), target=target, normalise=True)
        online[target] = walk(learner, env, 1_000)[500:].mean().item()
        greedy[target] = play(env, partial(learner.act, greedy=True), 1, 0)[0].mean().item()
    assert greedy["q_learning"] == -13
    assert online["sarsa"] > 1.3 * online["q_learning"] and online["expected_sarsa"] > 1.3 * online["q_learning"]
    assert -30 < greedy["expected_sarsa"] <= -15


# -- tile coding


def tiled(**changes) -> features.Tiles:
    knobs = dict(low=[0.0, -1.0], high=[1.0, 1.0], tilings=4, tiles=4)
    return features.tiles(Spec((2,), torch.float32, ("a",)), **(knobs | changes))


def test_a_point_lies_in_one_tile_of_each_tiling_whose_number_is_known():
    """(0.5, -0.5) is (2, 1) in tiles; tiling i is off by i/4 and 3i/4 modulo 1: (0, 0), (1/4, 3/4), (2/4, 2/4)..."""
    coder = tiled()
    obs = torch.tensor([[0.5, -0.5], [0.55, -0.35], [9.0, 9.0]])
    assert coder.index(obs[:1]).tolist() == [[2 + 5 * 1 + 25 * i for i in range(4)]]
    # (2.2, 1.3) -> (2, 1), (2.45, 2.05), (2.7, 1.8), (2.95, 1.55)
    assert coder.index(obs[1:2]).tolist() == [[7, 25 + 12, 50 + 7, 75 + 7]]
    assert torch.equal(coder(obs[2:]), coder(torch.tensor([[1.0, 1.0]])))  # outside is on the border
    assert coder(obs).shape == (3, 4 * 25)


def test_tilings_are_partitions_and_neighbours_share_tiles():
    coder, rng = tiled(tilings=8, tiles=8), torch.Generator().manual_seed(0)
    phi = coder(torch.rand(500, 2, generator=rng) * 3 - 1.5)
    assert torch.equal(phi.unflatten(1, (8, 81)).sum(-1), torch.ones(500, 8))
    at = torch.tensor([[0.5, 0.0], [0.51, 0.0], [0.56, 0.0], [0.6, 0.0], [0.7, 0.0]])
    shared = (coder(at) @ coder(at[0:1]).T).flatten().tolist()
    assert shared[0] == 8 and shared == sorted(shared, reverse=True) and 0 < shared[2] < 8 and shared[4] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(low=[0.0]), "must each list 2 numbers"),
        (dict(high=[0.0, 1.0]), r"low\[0\]=0.0 must be below high\[0\]=0.0"),
        (dict(tiles=1_000), "4,008,004 features"),
    ],
)
def test_tiles_that_cannot_be_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        tiled(**changes)


def test_a_normalised_step_mends_alpha_of_an_error_whatever_the_features():
    spec = Spec((2,), torch.float32, ("a", "b"))
    learner = agent(
        spec, 0.25, network=partial(features.tiles, low=[0, 0], high=[1, 1], tilings=8, tiles=8), normalise=True
    )
    obs, one = torch.tensor([[0.3, 0.6]]), torch.ones(1)
    learner.update(transition(obs, torch.tensor([1]), 4 * one, 0 * one, one > 0, obs))
    torch.testing.assert_close(learner.q(obs), torch.tensor([[0.0, 1.0]]))


def test_what_cannot_be_learned_from_is_refused():
    with pytest.raises(UserError, match="agent.normalise is for linear networks"):
        pqn(normalise=True)
    agent(rollout_length=4, minibatches=12).announce(num_envs=3)
    with pytest.raises(UserError, match="agent.minibatches=13 must be at most 12, the samples of a rollout"):
        agent(rollout_length=4, minibatches=13).announce(num_envs=3)


# -- PQN


def test_lambda_returns_of_a_rollout_by_hand():
    """Rewards 1, 2, 4; gamma 0.5, lambda 0.5; every successor is worth 8; the second env's episode is cut at step 1.

    G_2 = 4 + 0.5 * 8 = 8; G_1 = 2 + 0.5 (0.5 * 8 + 0.5 * 8) = 6, cut: 2 + 0.5 * 8 = 6; G_0 = 1 + 0.5 (4 + 3) = 4.5.
    With termination instead, G_1 = 2 and G_0 = 1 + 0.5 (4 + 1) = 3.5.
    """
    learner = agent(rollout_length=3, lambda_=0.5, gamma=0.5, lr=6.0)  # mean over 6 samples, each its own entry
    learner.worth = lambda next_obs: torch.full((2,), 8.0, dtype=torch.float64)
    for t, (reward, discount) in enumerate([(1.0, [1.0, 1.0]), (2.0, [1.0, 0.0]), (4.0, [1.0, 1.0])]):
        assert learner.settled == (t == 0)
        obs, action = one_hot(torch.tensor([t, t])), torch.tensor([0, 1])
        discount = torch.tensor(discount).double()
        learner.update(transition(obs, action, torch.full((2,), reward).double(), discount, discount == 0, obs))
    assert learner.settled
    torch.testing.assert_close(learner.network.head.weight[:2, :3].tolist(), [[4.5, 6.0, 8.0], [3.5, 2.0, 8.0]])


def pqn(**changes) -> QLearning:
    knobs = dict(network=partial(networks.mlp, hidden=[16], layer_norm=True), rollout_length=4, epochs=2, minibatches=3,
                 lambda_=0.65, optimizer=partial(torch.optim.RAdam, lr=0.01), zero_head=False, max_grad_norm=0.5)  # fmt: skip
    return agent(Spec((4,), torch.float32, ("a", "b")), **(knobs | changes))


def rollout(rng, steps: int = 4, num_envs: int = 3) -> list[Transition]:
    draws = []
    for _ in range(steps):
        obs, next_obs = torch.randn(2, num_envs, 4, generator=rng)
        action = torch.randint(2, (num_envs,), generator=rng)
        chance = torch.rand(num_envs, generator=rng)
        draws.append(transition(obs, action, torch.randn(num_envs, generator=rng), (chance > 0.2).float(),
                                chance < 0.4, next_obs))  # fmt: skip
    return draws


def test_an_update_of_pqn_is_its_published_pseudocode():
    learner, draws = pqn(), rollout(torch.Generator().manual_seed(3))
    twin, order = pqn().network, torch.Generator().manual_seed(0)
    for each in draws:
        learner.update(each)

    with torch.no_grad():
        future = [twin(t.next_obs).squeeze(-1).amax(-1) for t in draws]
    target, ahead = [None] * 4, None
    for i in reversed(range(4)):
        t, v = draws[i], future[i]
        mixed = v if ahead is None else torch.where(t.last, v, 0.35 * v + 0.65 * ahead)
        target[i] = ahead = t.reward + 0.9 * t.discount * mixed
    obs, action, target = torch.cat([t.obs for t in draws]), torch.cat([t.action for t in draws]), torch.cat(target)
    optimizer = torch.optim.RAdam(twin.parameters(), lr=0.01)
    for _ in range(2):
        shuffled = torch.randperm(12, generator=order)
        for part in shuffled[:4], shuffled[4:8], shuffled[8:]:
            optimizer.zero_grad()
            q = twin(obs[part]).squeeze(-1)[torch.arange(4), action[part]]
            (0.5 * (target[part] - q) ** 2).mean().backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
    for ours, theirs in zip(learner.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_layer_norm_comes_before_each_relu():
    spec = Spec((4,), torch.float32, ("a",))
    net = networks.mlp(spec, hidden=[6, 5], layer_norm=True)
    assert [type(m).__name__ for m in net] == ["Flatten", *["Linear", "LayerNorm", "ReLU"] * 2]
    frames = Spec((4, 84, 84), torch.uint8, ("a",))
    net = networks.nature_cnn(frames, layer_norm=True)
    convolution = ["Conv2d", "ChannelNorm", "ReLU"]
    assert [type(m).__name__ for m in net] == ["Frames", *convolution * 3, "Flatten", "Linear", "LayerNorm", "ReLU"]
    x = torch.randn(2, 32, 5, 4)
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    torch.testing.assert_close(net[2](x), (x - mean) / (var + 1e-5).sqrt(), atol=1e-5, rtol=1e-4)


# -- whole runs


def trained(folder, experiment: str, *arguments: str):
    given = ["train", f"experiment={experiment}", "tracker=none", "device=cpu", f"hydra.run.dir={folder}", *arguments]
    assert cli.main("rl-lab", "rl", COMMANDS, given) == 0
    player = load(folder, max_envs=100, device="cpu")
    return Judge(player.env, 100, 1)(player.agent)


@pytest.mark.slow
def test_a_table_of_4096_environments_comes_to_the_optimum_of_the_large_lake(tmp_path):
    scores = trained(tmp_path, "q_learning_frozen_lake_8x8", "loop.eval_every=4_000_000", "loop.eval_episodes=1")
    assert scores["eval/regret"] < 0.01 * 0.4146  # V* of the start, by the planner


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_pqn_learns_cart_pole(tmp_path, seed):
    assert trained(tmp_path, "pqn_cartpole", f"seed={seed}")["eval/return"] > 475


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_pqn_finds_the_optimum_of_four_rooms(tmp_path, seed):
    assert trained(tmp_path, "pqn_four_rooms", f"seed={seed}")["eval/regret"] < 0.01


@pytest.mark.slow
def test_linear_sarsa_with_tiles_drives_the_mountain_car(tmp_path):
    """About 120 steps an episode after a few hundred episodes (Sutton and Barto, 2018, figure 10.2)."""
    assert trained(tmp_path, "sarsa_mountain_car")["eval/length"] < 150
