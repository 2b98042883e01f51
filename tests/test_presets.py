"""Presets that bear the name of a source do as its released code does: losses and schedules in literal numbers."""

import math

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import tensor
from transitions import transition

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.a2c import Acted
from rl_lab.agents.dqn import DQN
from rl_lab.agents.ppo import Minibatch, paced
from rl_lab.core.launching import cli, composition
from rl_lab.types import Spec, Transition

CPU, SPEC = torch.device("cpu"), Spec((3,), torch.float32, ("a", "b"))
OBS, ACTION = torch.zeros(2, 3), tensor([0, 1])  # of obs 0 every network here makes value 0 and an even policy
LN2 = math.log(2)


def composed(*overrides: str):
    return composition.compose(composition.conf_dir(), "rl", [*overrides])


EVEN = tensor([-LN2, -LN2])


def preset(name: str, *overrides: str):
    cfg = composed(f"agent={name}", "agent/network=linear", *overrides)
    return hydra.utils.instantiate(cfg.agent)(SPEC, device=CPU, seed=0)


@pytest.mark.parametrize(
    ("name", "value", "entropy"),
    [
        ("ppo_sb3", 0.5, 0.0),  # vf_coef mse(returns, values) + ent_coef (- entropy)
        ("ppo_zoo", 0.5, 0.01),
        ("ppo_cleanrl", 0.25, 0.01),  # vf_coef 0.5, and its error is halved: 0.5 * max(...).mean()
    ],
)
def test_the_loss_of_ppo_weighs_values_as_its_source(name, value, entropy):
    """Two samples whose values are off by 1 and by 3: a mean square of 5; their standardised advantages cancel."""
    agent = preset(name)
    loss, _ = agent.loss(
        Minibatch(OBS, ACTION, EVEN, EVEN, tensor([0.0, 0.0]), tensor([1.0, 3.0]), tensor([1.0, 3.0])),
        agent.clip,
        agent.entropy_coef,
    )
    assert loss.item() == pytest.approx(value * 5 - entropy * LN2, abs=1e-6)


def test_cleanrl_holds_the_value_near_where_it_acted():
    """Acted as 2, now 0, held at 1.9; targets 1.9 and 3: the larger errors are 1.9 and 3, half their square 3.1525."""
    agent = preset("ppo_cleanrl", "agent.entropy_coef=0")
    targets, acted = tensor([1.9, 3.0]), tensor([2.0, 2.0])
    loss, metrics = agent.loss(
        Minibatch(OBS, ACTION, EVEN, EVEN, acted, targets, targets - acted), agent.clip, agent.entropy_coef
    )
    assert metrics["ppo/value_loss"].item() == pytest.approx(6.305, abs=1e-5)
    assert loss.item() == pytest.approx(0.5 * 3.1525, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "entropy"),
    [
        ("a2c_sb3", 0.5, 0.0),
        ("a2c_zoo", 0.25, 0.01),
        ("a2c_baselines", 0.5, 0.01),
        ("a2c_baselines_2017", 0.25, 0.01),  # vf_coef 0.5 of an error that is halved
    ],
)
def test_the_loss_of_a2c_weighs_values_as_its_source(name, value, entropy):
    """Returns 1 and 3 for values of 0: -log 1/2 times their mean, and a mean square of 5 for the values."""
    agent = preset(name, "agent.max_abs_reward=9")
    acted = Acted(tensor([-LN2, -LN2]), tensor([LN2, LN2]), tensor([0.0, 0.0]))
    over = transition(OBS, ACTION, tensor([1.0, 3.0]), torch.zeros(2), torch.ones(2).bool(), OBS)
    loss, _ = agent.loss([(acted, over)])
    assert loss.item() == pytest.approx(2 * LN2 + value * 5 - entropy * LN2, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dqn_nature", {0: 1.0, 50_000: 1.0, 550_000: 0.55, 1_050_000: 0.1}),  # falls once it learns
        ("dqn_dopamine", {0: 1.0, 20_000: 1.0, 145_000: 0.505, 270_000: 0.01}),  # likewise
        ("dqn_cleanrl", {0: 1.0, 80_000: 0.9208, 500_000: 0.505, 1_000_000: 0.01}),  # from the first step
        # From the first step too, but until 100,000 steps SB3 draws from all actions, whatever the schedule says.
        ("dqn_zoo", {0: 1.0, 50_000: 1.0, 99_999: 1.0, 100_000: 0.901, 550_000: 0.4555, 1_000_000: 0.01}),
    ],
)
def test_epsilon_falls_as_its_source_has_it(name, expected):
    epsilon = hydra.utils.instantiate(composed(f"agent={name}").agent.epsilon)
    assert {step: epsilon(step) for step in expected} == pytest.approx(expected)


def test_the_zoos_random_steps_follow_its_learning_starts():
    assert composed("agent=dqn_zoo", "agent.learning_starts=64").agent.epsilon.random_steps == 64


def test_before_the_zoos_dqn_learns_no_action_is_greedy():
    """A network that prefers the first action by far: it is drawn as often as the other, then nearly always."""
    agent: DQN = preset("dqn_zoo", "agent.learning_starts=100", "agent.replay.capacity=200", "agent.epsilon.steps=100")
    agent.online.head.bias.data.copy_(tensor([9.0, -9.0]))
    obs = torch.zeros(4_000, 3)
    agent.steps = 99
    assert 1_900 < agent.act(obs).sum() < 2_100
    agent.steps = 100
    assert agent.act(obs).sum() < 60


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("dqn_nature", 1.0),  # the error, clipped at 1
        ("dqn_dopamine", 1.0),
        ("dqn_zoo", 1.0),  # smooth L1
        ("dqn_cleanrl", 3.0),  # a squared error (halved, which Adam does not feel), not clipped
    ],
)
def test_the_error_of_dqn_is_clipped_where_its_source_does(name, gradient):
    value = hydra.utils.instantiate(composed(f"agent={name}").agent.value)
    now = torch.zeros(1, 1, requires_grad=True)
    loss, _ = value.loss(now, tensor([3.0]), tensor([0.0]), torch.zeros(1, 1))
    loss.sum().backward()
    assert now.grad.item() == -gradient


LEARNERS = {
    "dqn_mlp": ["agent.replay.n_step=2", "agent.learning_starts=2", "agent.batch_size=2", "agent.replay_ratio=4"],
    "a2c_mlp": ["agent.rollout_length=2"],
    "ppo_mlp": ["agent.rollout_length=2", "agent.minibatches=1"],
    "pqn_mlp": ["agent.rollout_length=2", "agent.minibatches=1"],
    "actor_critic": ["agent.rollout_length=2"],
    "reinforce_mlp": ["agent.episodes=1"],
    "vpn_mlp": ["agent.rollout_length=2"],
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_discounts_an_option_by_its_duration(name):
    """With gamma 1/2 an option of three steps is a step whose future counts for a quarter."""

    def learned(discount: float, duration: float) -> list[torch.Tensor]:
        torch.manual_seed(0)
        cfg = composed(f"agent={name}", "agent.gamma=0.5", *LEARNERS[name])
        agent, rng = hydra.utils.instantiate(cfg.agent)(SPEC, device=CPU, seed=0), torch.Generator().manual_seed(1)
        obs = torch.randn(12, 2, 3, generator=rng)
        for t in range(11):
            last = tensor([t % 4 == 3] * 2)
            action, future = agent.act(obs[t]), torch.full((2,), discount) * ~last
            reward = torch.randn(2, generator=rng)
            agent.update(Transition(obs[t], action, reward, future, last, obs[t + 1], torch.full((2,), duration)))
        network = getattr(agent, "online", None) or getattr(agent, "network", None) or agent.actor
        return list(network.parameters())

    option, weighed, plain = learned(1.0, 3.0), learned(0.25, 1.0), learned(1.0, 1.0)
    for a, b in zip(option, weighed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(option, plain, strict=True))


@pytest.mark.parametrize("setting", ["env.gamma", "agent.replay.gamma", "agent.replay.max_abs_reward"])
def test_gamma_has_one_place(setting, tmp_path, capsys):
    arguments = ["train", "env=collect_small", "agent=dqn_mlp", f"++{setting}=0.9", f"hydra.run.dir={tmp_path / 'run'}"]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 2
    assert f"no setting '{setting}'" in capsys.readouterr().err


def test_an_older_folder_of_collect_loads(tmp_path):
    """Its worlds and its replay were given gamma, the world that it was evaluated in by reference."""
    arguments = ["env=collect_small", "agent=dqn_mlp", "env.num_envs=2", "env.mazes=8", "loop=collect", "device=cpu",
                 "loop.eval_env.mazes=8", "loop.eval_every=4", "loop.eval_episodes=2", "tracker=none"]  # fmt: skip
    arguments = ["train", *arguments, "loop.total_steps=4", f"hydra.run.dir={tmp_path / 'run'}"]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    path = tmp_path / "run" / "config.yaml"
    config = OmegaConf.load(path)
    config.env.gamma, config.loop.eval_env.gamma = 0.98, "${env.gamma}"
    config.agent.replay.gamma = config.agent.replay.max_abs_reward = 1.0
    config.loop.eval_env._target_ = "${env._target_}"
    OmegaConf.save(config, path)
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", f"run={tmp_path / 'run'}", "loop.total_steps=8"]) == 0


def learned(epochs: int, target_kl: float | None) -> dict:
    """The parameters after a rollout of 8 steps in 2 envs, learned from with a large step."""
    settings = [f"agent.epochs={epochs}", "agent.minibatches=2", "agent.rollout_length=8", "agent.optimizer.lr=0.05"]
    ppo = preset("ppo", *settings, f"agent.target_kl={'null' if target_kl is None else target_kl}")
    rng = torch.Generator().manual_seed(0)
    for _ in range(8):
        obs, reward = torch.randn(2, 3, generator=rng), torch.randn(2, generator=rng)
        ppo.update(transition(obs, ppo.act(obs), reward, torch.ones(2), torch.zeros(2).bool(), obs))
    return ppo.network.state_dict()


def test_ppo_leaves_a_rollout_once_the_policy_has_moved_too_far():
    """As CleanRL's target_kl: the epoch in which it happens is the last one."""
    one, all_of_them = learned(1, None), learned(10, None)
    assert all(torch.equal(x, one[k]) for k, x in learned(10, 1e-9).items())
    assert all(torch.equal(x, all_of_them[k]) for k, x in learned(10, 1e9).items())
    some = learned(10, 0.02)["policy.weight"]
    assert not torch.equal(some, one["policy.weight"]) and not torch.equal(some, all_of_them["policy.weight"])


def test_the_learning_rate_falls_by_a_sixth_where_the_policy_moves_too_far_and_rises_where_it_moves_little():
    assert paced(1.0, 0.09, 0.08) == pytest.approx(1 / 1.2) and paced(0.051, 0.09, 0.08) == 0.05
    assert paced(0.5, 0.07, 0.08) == 0.5 and paced(0.5, 0.05, 0.08) == 0.6 and paced(0.9, 0.05, 0.08) == 1.0


@pytest.mark.parametrize("target, pace", [(1e-9, 1 / 1.2**2), (1e9, 1.0)])
def test_ppo_learns_at_the_pace_that_its_last_rollout_left_and_keeps_it(target, pace):
    settings = ["agent.rollout_length=4", "agent.decay_steps=32", f"agent.adaptive_kl={target}"]
    ppo, other = (preset("ppo", *settings) for _ in range(2))
    rng = torch.Generator().manual_seed(0)
    for _ in range(2 * 4):
        obs = torch.randn(2, 3, generator=rng)
        reward = torch.randn(2, generator=rng)
        ppo.update(transition(obs, ppo.act(obs), reward, torch.ones(2), torch.zeros(2).bool(), obs))
    assert ppo.pace == pytest.approx(pace)
    first = ppo.decay.rates[0]
    assert ppo.optimizer.param_groups[0]["lr"] == pytest.approx(first * (1 - 8 / 32) * min(1.0, pace * 1.2))
    state = ppo.state_dict()
    other.load_state_dict(state)
    assert other.pace == ppo.pace
    other.load_state_dict({name: x for name, x in state.items() if name != "pace"})
    assert other.pace == 1.0, "checkpoints from before it learn at the whole rate"


def test_the_entropy_bonus_of_ppo_may_fall_with_the_learning_rate():
    """Of two even actions the entropy is ln 2; at a half of the way to 0 its weight is a half of .01."""
    ppo = preset("ppo", "agent.decay_steps=32", "agent.decay_entropy=true", "agent.rollout_length=8", "agent.clip=0.2")
    zeros, improve, bonuses = torch.zeros(2), ppo._improve, set()

    def heard(clip, bonus, *of):
        bonuses.add(bonus)
        return improve(clip, bonus, *of)

    ppo._improve = heard
    for _ in range(3 * 8):
        obs = torch.zeros(2, 3)
        ppo.update(transition(obs, ppo.act(obs), zeros, zeros + 1, zeros.bool(), obs))
    assert sorted(bonuses) == pytest.approx([0.0, 0.005, 0.01])
    part = Minibatch(torch.zeros(2, 3), ACTION, EVEN, EVEN, zeros, zeros, zeros)
    losses = [preset("ppo").loss(part, 0.2, bonus)[0].item() for bonus in sorted(bonuses)]
    assert losses == pytest.approx([0.0, -0.005 * LN2, -0.01 * LN2], abs=1e-5)


@pytest.mark.parametrize(("over", "scale", "loss"), [("rollout", (16 / 7) ** 0.5, -1.75), ("minibatch", 1.0, -0.17678)])
def test_ppo_standardises_advantages_over_each_minibatch_or_over_all_that_it_is_drawn_from(over, scale, loss):
    """Eight episodes of a step: advantages of 2, -2, 2, -2 and four times 0, of a variance of 16 / 7.

    The loss of two with advantages of 3 and 1, of which the second counts for half: -(3 + 1 / 2) / 2, and where a
    minibatch standardises them -(1 - 1 / 2) / sqrt(2) / 2.
    """
    settings = "agent.rollout_length=4", "agent.epochs=1", "agent.minibatches=2", "agent.gamma=0"
    ppo, heard = preset("ppo", *settings, f"agent.standardise_over={over}"), []
    ppo.parts = lambda size: iter(torch.arange(size).split(4))
    ppo._improve = lambda clip, bonus, *of: heard.append(Minibatch(*of).advantage) or {"ppo/kl": torch.zeros(())}
    for reward in (2.0, -2.0), (2.0, -2.0), (0.0, 0.0), (0.0, 0.0):
        obs = torch.zeros(2, 3)
        ppo.update(transition(obs, ppo.act(obs), tensor(reward), torch.zeros(2), torch.ones(2).bool(), obs))
    assert torch.allclose(torch.cat(heard), tensor([2.0, -2.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0]) / scale)
    part = Minibatch(OBS, ACTION, tensor([-LN2, 0.0]), EVEN, torch.zeros(2), tensor([3.0, 1.0]), tensor([3.0, 1.0]))
    assert ppo.loss(part, 0.2, 0.0)[1]["ppo/policy_loss"].item() == pytest.approx(loss, abs=1e-5)


def test_the_entropy_bonus_of_a2c_may_fall_with_the_learning_rate():
    """Even actions of no advantage: the loss is minus what their ln 2 nats count, of .01 all, a half and nothing."""
    a2c = preset("a2c", "agent.decay_steps=32", "agent.decay_entropy=true", "agent.rollout_length=8")
    zeros, found = torch.zeros(2), []
    for _ in range(3):
        acted = Acted(EVEN, torch.full((2,), LN2), zeros)
        over = transition(torch.zeros(2, 3), ACTION, zeros, zeros, zeros.bool(), torch.zeros(2, 3))
        found.append(a2c.loss([(acted, over)])[0].item())
        for _ in range(8):
            obs = torch.zeros(2, 3)
            a2c.update(transition(obs, a2c.act(obs), zeros, zeros + 1, zeros.bool(), obs))
    assert found == pytest.approx([-0.01 * LN2, -0.005 * LN2, 0.0], abs=1e-7)
    assert a2c.optimizer.param_groups[0]["lr"] == pytest.approx(a2c.decay.rates[0] * 0)
