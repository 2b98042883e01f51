"""The planner is the oracle: on a known MDP each learner must come to a policy worth what the optimal one is."""

from functools import partial
from pathlib import Path

import pytest
import torch
from stated import stated
from transitions import transition

from rl_lab import losses, returns
from rl_lab.__main__ import COMMANDS
from rl_lab.agents.a2c import A2C
from rl_lab.agents.dqn import DQN
from rl_lab.agents.random import Random
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.core.learner import Learner
from rl_lab.loops.judging import Judge
from rl_lab.loops.training import checked
from rl_lab.networks import torsos as networks
from rl_lab.planning import evaluate_policy
from rl_lab.playing.player import load
from rl_lab.types import Spec, Transition

MDPEnv = stated("env/base/tabular")
RMSpropTF = stated("agent/a2c_zoo", "optimizer")
Replay = stated("agent/dqn", "replay")
gridworld = stated("env/base/gridworld", "mdp")
policy_iteration = stated("planner/policy_iteration")
Linear = stated("agent/dqn", "epsilon")

CPU = torch.device("cpu")


def last(plans):
    *_, plan = plans
    return plan


def regret(folder: Path, gamma: float = 0.99) -> float:
    """What the learned greedy policy lacks of the optimal value of the start, as a share of it."""
    player = load(folder, max_envs=1, device="cpu")
    mdp = player.env.mdp
    learned = mdp.start @ evaluate_policy(mdp, player.act(player.env.all_observations()), gamma)
    best = mdp.start @ last(policy_iteration(mdp, gamma=gamma)).q.max(-1).values
    return ((best - learned) / best.abs()).item()


def learns(tmp_path: Path, experiment: str, seed: int) -> None:
    arguments = [
        "train",
        f"experiment={experiment}",
        f"seed={seed}",
        "tracker=none",
        "device=cpu",
        f"hydra.run.dir={tmp_path}",
    ]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    assert regret(tmp_path) < 0.02


@pytest.mark.parametrize(
    "experiment", [pytest.param("dqn_russell_norvig", marks=pytest.mark.slow), "a2c_russell_norvig"]
)
def test_learns_the_book_world(tmp_path, experiment):
    learns(tmp_path, experiment, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("experiment", ["dqn_russell_norvig", "a2c_russell_norvig", "dqn_four_rooms", "a2c_four_rooms"])
def test_learns_both_grids_on_every_seed(tmp_path, experiment, seed):
    learns(tmp_path, experiment, seed)


def dqn(spec: Spec, **changes) -> DQN:
    knobs = dict(
        network=networks.linear, optimizer=partial(torch.optim.SGD, lr=1.0), replay=partial(Replay, capacity=1_000),
        batch_size=4, replay_ratio=0.0, learning_starts=0, target_update_period=1_000, gamma=0.9,
        epsilon=Linear(0.0, 0.0), zero_head=True,
    )  # fmt: skip
    return stated("agent/dqn")(spec, CPU, 0, **(knobs | changes))


def one_hot(*states: int, of: int = 3) -> torch.Tensor:
    return torch.eye(of)[list(states)]


def test_a_linear_dqn_on_one_hot_states_is_tabular_q_learning():
    """One sample a step, squared error within Huber's quadratic part: Q(s, a) moves by lr times the error."""
    agent, table = dqn(Spec((3,), torch.float32, ("a", "b")), target_update_period=1), torch.zeros(3, 2)
    agent.optimizer = torch.optim.SGD(agent.online.parameters(), lr=0.5)
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        s, a, s2 = (int(torch.randint(k, (), generator=rng)) for k in (3, 2, 3))
        reward = torch.rand((), generator=rng) * 0.1
        batch = transition(
            one_hot(s),
            torch.tensor([a]),
            reward[None],
            torch.tensor([float(s2 != 2)]),
            torch.tensor([s2 == 2]),
            one_hot(s2),
        )
        agent.learn(batch)
        table[s, a] += 0.5 * (reward + 0.9 * (s2 != 2) * table[s2].max() - table[s, a])
        torch.testing.assert_close(agent.online.head.weight.T, table)


def test_truncation_bootstraps_and_termination_does_not():
    agent = dqn(Spec((3,), torch.float32, ("a", "b")))
    torch.nn.init.constant_(agent.target.head.weight, 10.0)
    batch = transition(
        one_hot(0, 0),
        torch.tensor([0, 0]),
        torch.ones(2),
        torch.tensor([1.0, 0.0]),
        torch.tensor([True, True]),
        one_hot(1, 1),
    )
    torch.testing.assert_close(agent.loss(batch)[1], torch.tensor([1 + 0.9 * 10, 1.0]))


def test_rewards_are_clipped_by_the_agent_alone():
    agent = dqn(Spec((3,), torch.float32, ("a", "b")), max_abs_reward=1.0)
    batch = transition(
        one_hot(0, 0),
        torch.tensor([0, 1]),
        torch.tensor([7.0, -5.0]),
        torch.zeros(2),
        torch.ones(2).bool(),
        one_hot(1, 1),
    )
    agent.replay.add(batch)
    assert set(agent.replay.sample(100, max_abs_reward=agent.max_abs_reward).reward.tolist()) == {1.0, -1.0}


@pytest.mark.parametrize("num_envs", [1, 3, 64])
def test_the_replay_ratio_means_the_same_on_any_number_of_environments(num_envs):
    env = MDPEnv(gridworld("S.G"), num_envs, time_limit=10)
    agent = dqn(env.spec, batch_size=16, replay_ratio=4.0, learning_starts=192)
    obs = env.reset(0)
    for _ in range(1_920 // num_envs):
        action = agent.act(obs)
        step = env.step(action)
        agent.update(Transition.of(obs, action, step))
        obs = step.obs
    assert agent.learns == pytest.approx((1_920 - 192) * 4 / 16, abs=16)


def test_the_target_follows_in_jumps():
    agent = dqn(
        Spec((3,), torch.float32, ("a", "b")), target_update_period=3, optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    batch = transition(one_hot(0), torch.tensor([0]), torch.ones(1), torch.zeros(1), torch.ones(1).bool(), one_hot(1))
    moved = []
    for _ in range(6):
        agent.learn(batch)
        moved.append(agent.target.head.weight[0, 0].item() > 0)
    assert moved == [False, False, True, True, True, True]


def a2c(spec: Spec, **changes) -> A2C:
    knobs = dict(
        network=partial(networks.mlp, hidden=(8,)), optimizer=partial(torch.optim.SGD, lr=0.1), rollout_length=4,
        gamma=0.9, lambda_=0.95, value_coef=0.5, entropy_coef=0.01, max_grad_norm=1e9,
    )  # fmt: skip
    return stated("agent/a2c")(spec, CPU, 0, **(knobs | changes))


@pytest.mark.parametrize("lambda_", [1.0, 0.9])
def test_the_kept_acting_graph_gives_the_gradient_of_a_second_forward(lambda_):
    """With truncations and terminations in every rollout."""
    env = MDPEnv(gridworld("S.G\n..X", noise=0.2), num_envs=32, time_limit=3)
    agent = a2c(env.spec, lambda_=lambda_, orthogonal_heads=False)
    obs, rollout = env.reset(0), []
    for _ in range(4):
        action = agent.act(obs)
        step = env.step(action)
        rollout.append(Transition.of(obs, action, step))
        before = {k: v.clone() for k, v in agent.network.state_dict().items()}
        agent.update(rollout[-1])
        obs = step.obs
    after = {k: v.clone() for k, v in agent.network.state_dict().items()}
    batch = Transition(*map(torch.stack, zip(*rollout, strict=True)))
    assert (batch.last & (batch.discount == 1)).any() and (batch.discount == 0).any()

    agent.network.load_state_dict(before)
    log_probs, value = (x.unflatten(0, (4, 32)) for x in agent.network(batch.obs.flatten(0, 1)))
    with torch.no_grad():
        next_value = agent.network(batch.next_obs.flatten(0, 1))[1].unflatten(0, (4, 32))
    g = returns.lambda_returns(batch.reward, 0.9 * batch.discount, batch.last, next_value, lambda_)
    chosen = losses.pick(log_probs, batch.action)
    loss = (
        losses.policy_gradient(chosen, g - value).mean()
        + 0.5 * (g - value).square().mean()
        - 0.01 * losses.entropy(log_probs).mean()
    )
    gradients = torch.autograd.grad(loss, list(agent.network.parameters()))
    for (name, p), gradient in zip(agent.network.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(after[name], p - 0.1 * gradient)


def test_a2c_is_settled_only_between_rollouts():
    env = MDPEnv(gridworld("S.G"), num_envs=2, time_limit=5)
    agent, obs, settled = a2c(env.spec), env.reset(0), []
    for _ in range(8):
        settled.append(agent.settled)
        action = agent.act(obs)
        step = env.step(action)
        agent.update(Transition.of(obs, action, step))
        obs = step.obs
    assert settled == [True, False, False, False] * 2


def test_rmsprop_as_tensorflow_computes_it():
    """First step: lr g / sqrt(.99 + .01 g^2 + eps)."""
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = RMSpropTF([p], lr=0.1, alpha=0.99, eps=1e-5)
    s, expected = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    for g in (torch.tensor([3.0, -0.5]), torch.tensor([0.1, 4.0])):
        p.grad = g.clone()
        optimizer.step()
        s = 0.99 * s + 0.01 * g.double() ** 2
        expected = expected - 0.1 * g.double() / (s + 1e-5).sqrt()
        torch.testing.assert_close(p.data.double(), expected, atol=1e-6, rtol=0)


def test_evaluation_counts_each_envs_first_episodes():
    """Random play on a world of two episode lengths: counting whatever ends first would favour the short one."""
    env = MDPEnv(gridworld("G.S.......G", rewards={"G": 0.0}, living_reward=-1.0), num_envs=50, time_limit=1_000)
    random = Random(env.spec, CPU, seed=0)
    measured = Judge(env, 2_000, seed=1)(random)
    mdp = gridworld("G.S.......G", rewards={"G": 0.0}, living_reward=-1.0)
    # A quarter of the moves go left, a quarter right, half stay: the gambler's ruin, 2 * distance * distance = 2 * 2 * 8 steps.
    exact = mdp.start @ evaluate_policy(mdp, torch.full((11, 4), 0.25), 1.0)
    assert exact.item() == pytest.approx(-(2 * 2 * 8 - 1) + 0, abs=1.01)
    assert measured["eval/return"].item() == pytest.approx(exact.item(), abs=3)


@pytest.mark.parametrize("network", [networks.linear, partial(networks.mlp, hidden=[8])])
def test_a_bare_number_is_no_observation_for_a_network(network):
    with pytest.raises(UserError, match="env.obs=index is a bare number, .* use env.obs=one_hot"):
        network(MDPEnv(gridworld("S.G"), 1, time_limit=9, obs="index").spec)


def test_an_agent_that_lacks_a_method_or_saves_nothing_is_refused_before_the_first_step():
    class Half(Learner):
        def act(self, obs, greedy=False): ...

    with pytest.raises(UserError, match="Half is no agent: it lacks update, view; see Agent in"):
        checked(Half())

    class Forgetful(Half):
        def update(self, transition): ...
        def view(self, obs): ...

    with pytest.raises(UserError, match="Forgetful would save nothing: name the attributes"):
        checked(Forgetful())
