"""DQN's variants, each against its equation; and on a world whose answer is known, each against the planner."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from stated import stated
from transitions import transition

from rl_lab import losses
from rl_lab.__main__ import COMMANDS
from rl_lab.agents import exploration
from rl_lab.agents.dqn import DQN
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.networks import torsos as networks
from rl_lab.networks.heads import Dueling, NoisyLinear, QNetwork, layers
from rl_lab.types import Spec, Transition

Categorical = stated("agent/value/categorical")
CentredRMSprop = stated("agent/dqn_nature", "optimizer")
Mean = stated("agent/value/mean")
Priorities = stated("agent/rainbow", "replay.priorities")
Replay = stated("agent/dqn", "replay")
Linear = stated("agent/dqn", "epsilon")

CPU = torch.device("cpu")
SPEC = Spec((3,), torch.float32, ("a", "b"))


def dqn(**changes) -> DQN:
    knobs = dict(
        network=networks.linear, optimizer=partial(torch.optim.SGD, lr=1.0), replay=partial(Replay, capacity=1_000),
        batch_size=4, replay_ratio=0.0, learning_starts=0, target_update_period=1_000, gamma=0.9,
        epsilon=Linear(0.0, 0.0),
    )  # fmt: skip
    return stated("agent/dqn", zero_head=False)(SPEC, CPU, 0, **(knobs | changes))


def batch(rewards, discounts, action=0) -> Transition:
    n = len(rewards)
    obs, next_obs = torch.eye(3)[:1].expand(n, 3), torch.eye(3)[1:2].expand(n, 3)
    return transition(
        obs, torch.full((n,), action), torch.tensor(rewards), torch.tensor(discounts), torch.zeros(n).bool(), next_obs
    )


# -- the optimizer


def test_centred_rmsprop_takes_the_steps_of_the_released_code():
    """On gradients summed over 32 samples with .01 under the root, as in its NeuralQLearner; ours on their mean."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = CentredRMSprop([p], lr=2.5e-4, decay=0.95, eps=0.01 / 32**2)
    rng = np.random.default_rng(0)
    w, g, s = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for _ in range(20):
        d = rng.normal(size=2) * 32
        p.grad = torch.from_numpy(d / 32)
        optimizer.step()
        g, s = 0.95 * g + 0.05 * d, 0.95 * s + 0.05 * d**2
        w = w - 2.5e-4 * d / np.sqrt(s - g**2 + 0.01)
        np.testing.assert_allclose(p.detach().numpy(), w, atol=1e-12)
    assert abs(w - [1.0, -2.0]).min() > 1e-4


def test_a_variance_that_rounding_makes_negative_counts_as_none():
    """A gradient that stays has none: in float32 s - g^2 falls below 0, and by more than a small eps."""
    p = torch.nn.Parameter(torch.zeros(64))
    optimizer = CentredRMSprop([p], lr=1e-6, decay=0.95, eps=1e-8)
    for _ in range(2_000):
        p.grad = 3e4 * torch.linspace(0.5, 1.5, 64)
        optimizer.step()
        assert p.isfinite().all()
    one = torch.nn.Parameter(torch.zeros(1))
    optimizer = CentredRMSprop([one], lr=0.1, decay=1.0, eps=0.25)
    optimizer.state[one] = {"mean": torch.tensor([3.0]), "square": torch.tensor([8.0])}
    one.grad = torch.tensor([2.0])
    optimizer.step()
    assert one.item() == pytest.approx(-0.1 * 2 / 0.25**0.5)


# -- distributions


def test_projection_by_hand():
    support = torch.tensor([0.0, 1.0, 2.0])
    found = losses.project(torch.tensor([[-1.0, 0.25, 5.0]]), torch.tensor([[0.2, 0.4, 0.4]]), support)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.1, 0.4]]))


def test_projection_against_brute_force():
    """Algorithm 1 of Bellemare et al. (2017), atom by atom."""
    rng = np.random.default_rng(0)
    low, high, atoms = -10.0, 10.0, 51
    step = (high - low) / (atoms - 1)
    support = np.linspace(low, high, atoms)
    for _ in range(50):
        p, reward, discount = rng.dirichlet(np.full(atoms, 0.3)), 3 * rng.normal(), rng.choice([0.0, 0.99])
        m = np.zeros(atoms)
        for j in range(atoms):
            b = (min(max(reward + discount * support[j], low), high) - low) / step
            below, above = int(np.floor(b)), int(np.ceil(b))
            if below == above:
                m[below] += p[j]
            else:
                m[below] += p[j] * (above - b)
                m[above] += p[j] * (b - below)
        found = losses.project(torch.tensor(reward + discount * support), torch.tensor(p), torch.tensor(support))
        np.testing.assert_allclose(found.numpy(), m, atol=1e-12)


def test_categorical_loss_is_the_cross_entropy_and_its_error_the_divergence():
    value = Categorical(atoms=3, low=0.0, high=2.0)
    now, then = torch.tensor([[0.1, -0.4, 0.9]]).log_softmax(-1), torch.tensor([[0.25, 0.5, 0.25]]).log()
    loss, error = value.loss(now, torch.tensor([0.5]), torch.tensor([0.0]), then)  # all mass at .5
    expected = -(now[0, 0] + now[0, 1]) / 2
    torch.testing.assert_close(loss[0], expected)
    torch.testing.assert_close(error[0], expected + np.log(0.5))
    assert value.mean(then).item() == pytest.approx(1.0)
    _, error = value.loss(then, torch.tensor([0.0]), torch.tensor([1.0]), then)
    assert error.item() == pytest.approx(0.0, abs=1e-6)


def test_quantile_huber_against_brute_force():
    now, target = torch.tensor([-1.0, 0.2, 3.0, 0.0]), torch.tensor([0.0, 1.5, -4.0])
    expected = 0.0
    for i, j in itertools.product(range(4), range(3)):
        tau, u = (i + 0.5) / 4, float(target[j] - now[i])
        huber = u**2 / 2 if abs(u) <= 1 else abs(u) - 0.5
        expected += abs(tau - (u < 0)) * huber / 3
    assert losses.quantile_huber(now, target).item() == pytest.approx(expected)


def test_quantiles_settle_on_the_quantiles_of_the_target():
    """Of a sample of 1 to 8 the four quantiles 1/8, 3/8, 5/8, 7/8 lie between its pairs (small delta: no Huber bias)."""
    now = torch.zeros(4, requires_grad=True)
    target, optimizer = torch.arange(1.0, 9.0), torch.optim.SGD([now], lr=0.05)
    for _ in range(2_000):
        optimizer.zero_grad()
        losses.quantile_huber(now, target, delta=0.01).backward()
        optimizer.step()
    assert all(low - 0.05 <= x <= low + 1.05 for x, low in zip(now.tolist(), (1, 3, 5, 7), strict=True))


# -- the agent


def test_double_takes_the_online_networks_choice():
    """Online prefers b, which the target values at 1; the target itself prefers a, at 5."""
    plain, double = (dqn(double=d, zero_head=True, value=Mean("squared")) for d in (False, True))
    for agent, target in ((plain, 5.0), (double, 1.0)):
        agent.online.head.weight.data[:, 1] = torch.tensor([0.0, 2.0])
        agent.target.head.weight.data[:, 1] = torch.tensor([5.0, 1.0])
        _, error = agent.loss(batch([0.5], [1.0]))
        assert error.item() == pytest.approx(0.5 + 0.9 * target)


def test_dueling_streams_add_up():
    net = Dueling(SPEC, networks.linear, outputs=2)
    obs = torch.randn(5, 3)
    q, v = net(obs), net.value(obs)
    torch.testing.assert_close(q.mean(1), v)  # advantages are measured from their mean
    a = net.advantage(obs).view(5, 2, 2)
    torch.testing.assert_close(q[:, 0] - q[:, 1], a[:, 0] - a[:, 1])


def test_noisy_layers_have_the_noise_they_say():
    """y ~ N(w x + b, ...): over draws, the mean is the plain layer's and the variance the factorised noise's."""
    torch.manual_seed(0)
    layer, rng = NoisyLinear(4, 3, sigma=0.5), torch.Generator().manual_seed(0)
    x, seen = torch.randn(1, 4), []
    assert (layer.sigma_weight == 0.25).all()
    for _ in range(20_000):
        layer.draw_noise(rng)
        seen.append(layer(x)[0].detach())
    seen = torch.stack(seen)
    plain = layer.eval()(x)[0].detach()
    spread = np.sqrt(2 / np.pi)  # E f(e)^2 = E |e|
    variance = 0.25**2 * (spread * spread * x.square().sum() + spread)
    torch.testing.assert_close(seen.var(0), variance.expand(3), rtol=0.05, atol=0)
    assert ((seen.mean(0) - plain).abs() < 4 * (variance / len(seen)).sqrt()).all()


def test_a_noisy_agent_explores_by_its_noise_and_plays_without():
    agent = dqn(noisy=0.5, network=partial(networks.mlp, hidden=(8,)))
    obs = torch.randn(64, 3)
    views = [agent.view(obs).bars for _ in range(2)]
    acts = {tuple(agent.act(obs).tolist()) for _ in range(20)}
    assert torch.equal(*views) and len(acts) > 1
    assert torch.equal(agent.act(obs, greedy=True), views[0].argmax(-1))


def test_weights_weigh_and_errors_come_back():
    agent = dqn(zero_head=True, value=Mean("squared"))
    metrics, error = agent.learn(batch([1.0, 3.0], [0.0, 0.0]), torch.tensor([1.0, 0.5]))
    assert error.tolist() == [1.0, 3.0]
    assert metrics["dqn/loss"].item() == pytest.approx((0.5 * 1.0 + 0.5 * 4.5) / 2)


def test_the_learning_rate_falls_with_the_steps_of_all_environments():
    agent = dqn(decay_steps=8, learning_starts=1)
    rates = []
    for _ in range(5):
        agent.update(batch([1.0, 1.0], [0.0, 0.0]))
        rates.append(agent.optimizer.param_groups[0]["lr"])
    assert rates == [0.75, 0.5, 0.25, 0.0, 0.0]


def test_priorities_follow_what_was_learned():
    """Only one of three transitions is surprising: it is drawn more and more, and weighs less."""
    priorities = partial(Priorities, alpha=1.0, beta=Linear(1.0, 1.0), epsilon=0.1)
    agent = dqn(replay=partial(Replay, capacity=8, priorities=priorities), zero_head=True, replay_ratio=40.0,
                optimizer=partial(torch.optim.SGD, lr=0.0))  # fmt: skip
    for reward in (0.0, 9.9, 0.0):
        agent.update(batch([reward], [0.0]))
    slots, weight = agent.replay.draw(1_000)
    surprising = agent.replay.read(slots).reward > 1
    assert surprising.float().mean().item() == pytest.approx(10 / 10.2, abs=0.01)
    assert weight[surprising].unique().item() == pytest.approx(0.01) and weight[~surprising].unique().item() == 1.0


def test_beta_goes_on_where_a_checkpoint_left_the_replay_out():
    """By the learner's steps, not by what is in the replay: two draws after each step of two games."""
    priorities, asked = partial(Priorities, alpha=1.0, beta=Linear(0.0, 1.0, 16), epsilon=0.1), []
    replay = partial(Replay, capacity=8, priorities=priorities)
    first, second = (dqn(replay=replay, learning_starts=1, replay_ratio=4.0, batch_size=4) for _ in range(2))
    for _ in range(4):
        first.update(batch([1.0, 2.0], [0.0, 0.0]))
    second.load_state_dict(first.state_dict(without="replay"))
    second.update(batch([1.0, 2.0], [0.0, 0.0]))
    second.replay.priorities.beta = lambda steps: asked.append(steps) or 1.0
    second.update(batch([1.0, 2.0], [0.0, 0.0]))
    assert asked == [12, 12]


def test_the_target_may_follow_steadily():
    agent = dqn(target_update_period=1, target_mix=0.25)
    agent.online.head.weight.data.fill_(1.0)
    agent.target.head.weight.data.fill_(0.0)
    for expected in (0.25, 0.4375):
        agent.follow()
        assert (agent.target.head.weight == expected).all()


def test_epsilon_spreads_over_the_environments_as_in_ape_x():
    found = exploration.spread(0.4, 7.0, torch.zeros(8, 2))
    torch.testing.assert_close(found, torch.tensor([0.4 ** (1 + 7 * i / 7) for i in range(8)]))
    q, rng = torch.tensor([[1.0, 0.0]]).expand(2, 2), torch.Generator().manual_seed(0)
    actions = torch.stack([exploration.epsilon_greedy(q, torch.tensor([1.0, 0.0]), rng) for _ in range(500)])
    assert actions[:, 1].sum() == 0 and 200 < actions[:, 0].sum() < 300


def test_epsilon_waits_for_the_warm_up():
    epsilon = Linear(1.0, 0.1, steps=100, delay=50)
    assert [epsilon(s) for s in (0, 50, 100, 150, 999)] == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])


def test_evaluation_may_explore_a_little():
    agent = dqn(eval_epsilon=1.0, zero_head=True)
    assert 200 < agent.act(torch.zeros(500, 3), greedy=True).sum() < 300


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"batch_size": 2_000}, "agent.batch_size=2000 must be at most agent.replay.capacity=1000"),
        ({"learning_starts": 2_000}, "agent.learning_starts=2000 must be at most agent.replay.capacity=1000"),
        (
            {"zero_head": True, "noisy": 0.5},
            "agent.zero_head is one plain layer: set agent.noisy and agent.stream_units to 0",
        ),
    ],
)
def test_impossible_settings(changes, line):
    with pytest.raises(UserError) as error:
        dqn(**changes)
    assert str(error.value) == line


def test_impossible_atoms():
    with pytest.raises(UserError, match="agent.value: 1 atoms from -10 to 10 must be at least two, and low below high"):
        Categorical(atoms=1)


VARIANTS = {
    "double": ["agent.double=true"],
    "dueling": ["agent.dueling=true", "agent.zero_head=false"],
    "three steps": ["agent.replay.n_step=3"],
    "prioritised": ["agent/priorities=proportional"],
    "C51": ["agent/value=categorical", "agent.value.low=-2", "agent.value.high=1", "agent.value.atoms=31"],
    "quantiles": ["agent/value=quantiles", "agent.value.count=16"],
    "noisy": ["agent.noisy=0.5", "agent.zero_head=false", "agent.epsilon.start=0.1", "agent.epsilon.end=0.1"],
    "steady target": ["agent.target_mix=0.02", "agent.target_update_period=1"],
    "Ape-X": ["agent.epsilon_spread=3", "agent.epsilon.start=0.6", "agent.epsilon.end=0.6"],
    "squared": ["agent.value.loss=squared"],
    "Rainbow": ["agent/value=categorical", "agent.value.low=-2", "agent.value.high=1", "agent.value.atoms=31",
                "agent/priorities=proportional", "agent.replay.n_step=3", "agent.double=true", "agent.dueling=true",
                "agent.noisy=0.5", "agent.zero_head=false"],
}  # fmt: skip


def train(tmp_path, variant: str, steps: int, seed: int = 0) -> float:
    """The regret in the end."""
    arguments = ["train", "experiment=dqn_russell_norvig", f"loop.total_steps={steps}", "loop.eval_every=1_000_000",
                 "loop.eval_episodes=1", "tracker=none", "device=cpu", f"seed={seed}", f"hydra.run.dir={tmp_path}"]  # fmt: skip
    assert cli.main("rl-lab", "rl", COMMANDS, [*arguments, *VARIANTS[variant]]) == 0
    return json.loads((tmp_path / "summary.json").read_text())["final"]["eval/regret"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_run(tmp_path, variant):
    assert train(tmp_path, variant, steps=2_000) >= -1e-9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_learn_the_book_world(tmp_path, variant, seed):
    """The best policy's value from the start is .705."""
    assert train(tmp_path, variant, steps=100_000, seed=seed) < 0.02


def test_a_checkpoint_whose_head_has_its_older_name_loads():
    one, two = (QNetwork(SPEC, networks.linear, 2, partial(layers, hidden=3, noisy=0.5)) for _ in range(2))
    state = {name.replace("head.", "advantage."): x for name, x in one.state_dict().items()}
    two.load_state_dict(state)
    assert "advantage.0.weight" in state and all(map(torch.equal, one.parameters(), two.parameters()))
