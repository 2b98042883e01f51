"""A policy that draws is judged exactly, by its probabilities, in every loop."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.fitted_q import LeastSquares
from rl_lab.agents.planned import Planned
from rl_lab.agents.random import Random
from rl_lab.agents.reinforce import Nothing
from rl_lab.core.launching import cli
from rl_lab.loops.judging import Judge
from rl_lab.networks import torsos as networks
from rl_lab.networks.tiles import constant
from rl_lab.planning import Regret
from rl_lab.playing.player import load
from rl_lab.types import Spec

A2C = stated("agent/a2c")
ActorCritic = stated("agent/actor_critic", entropy_coef=0.0, zero_heads=False)
DQN = stated("agent/dqn", zero_head=False)
MDPEnv = stated("env/base/tabular")
PPO = stated("agent/ppo")
QLearning = stated("agent/q_learning", normalise=False, zero_head=False)
Reinforce = stated("agent/reinforce", entropy_coef=0.0, zero_head=False)
Replay = stated("agent/dqn", "replay")
gridworld = stated("env/base/gridworld", "mdp")
short_corridor = stated("env/short_corridor", "mdp")
Linear = stated("agent/dqn", "epsilon")

CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, lr=0.1)
RIGHT = 1


def train(folder: Path, *arguments: str) -> dict:
    assert (
        cli.main(
            "rl-lab", "rl", COMMANDS, ["train", *arguments, "tracker=none", "device=cpu", f"hydra.run.dir={folder}"]
        )
        == 0
    )
    return json.loads((folder / "summary.json").read_text())["final"]


def evaluated(folder: Path) -> dict:
    assert cli.main("rl-lab", "rl", COMMANDS, ["evaluate", f"run={folder}", "episodes=1", "device=cpu"]) == 0
    return json.loads((folder / "evaluation.json").read_text())["scores"]


def corridor(p: float) -> float:
    """What Sutton and Barto's short corridor (example 13.1) is worth to who goes right with probability p."""
    return (2 * p - 4) / (p * (1 - p))


def test_the_short_corridor_is_worth_what_the_book_says():
    """Blind, right with .59: -11.66; its best, 2 - sqrt 2, gives away 2 + 4 sqrt 2 + 1 = 8.66 of the -3 who sees gets."""
    regret = Regret(short_corridor(gamma=1.0), horizon=1_000)
    for p in (0.05, 0.5, 0.59, 2 - 2**0.5, 0.95):
        chances = torch.zeros(4, len(short_corridor().actions), dtype=torch.float64)
        right = short_corridor().actions.index("right")
        chances[:, right], chances[:, 1 - right] = p, 1 - p
        assert regret(chances) == pytest.approx(-3 - corridor(p), rel=1e-12)
        assert regret(chances.float()) == pytest.approx(-3 - corridor(p), rel=1e-6)
    assert -3 - corridor(2 - 2**0.5) == pytest.approx(8.6569, abs=1e-4) and corridor(0.59) == pytest.approx(
        -11.66, abs=5e-3
    )


@pytest.mark.parametrize("agent", ["reinforce", "actor_critic"])
def test_who_draws_in_the_short_corridor_is_judged_by_its_probability(tmp_path, agent):
    """Not by a draw a state, which is 997 or 0; by the run, by evaluate, and by who loads it alike."""
    found = train(tmp_path, f"experiment={agent}_short_corridor", "loop.total_steps=60000", "loop.eval_every=60000",
                  "loop.eval_episodes=1", "env.num_envs=32")["eval/regret"]  # fmt: skip
    player = load(tmp_path, max_envs=1, device="cpu")
    chances = player.agent.probabilities(player.env.all_observations())
    p = chances[0, player.env.mdp.actions.index("right")].item()
    assert 0.05 < p < 0.95 and found == pytest.approx(-3 - corridor(p), rel=1e-6)
    assert evaluated(tmp_path)["eval/regret"] == pytest.approx(found, rel=1e-9)


def test_random_play_in_four_rooms_is_judged_exactly(tmp_path, capsys):
    found = train(tmp_path, "env=four_rooms", "agent=random", "loop.total_steps=64", "loop.eval_episodes=1")
    assert found["eval/regret"] == pytest.approx(0.8105, abs=5e-5)
    assert evaluated(tmp_path)["eval/regret"] == found["eval/regret"]
    assert "0.8105" in capsys.readouterr().out


def test_what_an_evaluation_tries_at_random_counts(tmp_path):
    """A fifth of what a DQN does is random here: .05 for each action, and .8 more for the best."""
    final = train(tmp_path, "experiment=dqn_russell_norvig", "loop.total_steps=4000", "loop.eval_episodes=1",
                  "agent.eval_epsilon=0.2")  # fmt: skip
    player = load(tmp_path, max_envs=1, device="cpu")
    seen = player.env.all_observations()
    chances = player.agent.probabilities(seen)
    assert chances.min() == pytest.approx(0.05) and chances.max() == pytest.approx(0.85)
    assert final["eval/regret"] == Regret(player.env.mdp, player.env.time_limit)(chances) > 0


@pytest.mark.parametrize("loop", ["seeds", "crew", "fit_q", "sb3"])
def test_every_loop_judges_by_probabilities(tmp_path, loop, monkeypatch):
    """Each asks its agent for those [S, A], and no other figure is written."""
    asked = []
    original = Regret.__call__
    monkeypatch.setattr(Regret, "__call__", lambda self, policy: asked.append(policy) or original(self, policy))
    choices = {
        "seeds": ["experiment=a2c_russell_norvig", "loop=seeds", "loop.seeds=2", "loop.total_steps=640"],
        "crew": ["experiment=a2c_russell_norvig", "loop=crew", "loop.total_steps=640"],
        "fit_q": ["experiment=fitted_q_russell_norvig", "loop.iterations=2", "loop.random_steps=200"],
        "sb3": ["env=russell_norvig", "agent=sb3_a2c", "loop=sb3", "loop.total_steps=640"],
    }
    train(tmp_path, *choices[loop], "loop.eval_episodes=1")
    assert asked and all(x.shape == (12, 4) and x.dtype == torch.float64 for x in asked)
    assert all(x.sum(-1).tolist() == [1.0] * 12 for x in asked)
    folder = tmp_path / "seed0" if loop == "seeds" else tmp_path
    rows = [json.loads(line) for line in next(folder.glob("metrics.jsonl")).read_text().splitlines()]
    assert "eval/regret" in rows[-1]


def agents(spec: Spec) -> dict:
    kw = {"spec": spec, "device": CPU, "seed": 0}
    net = {"network": networks.linear, "optimizer": SGD}
    learn = {
        "rollout_length": 4,
        "gamma": 0.9,
        "lambda_": 1.0,
        "value_coef": 0.5,
        "entropy_coef": 0.0,
        "max_grad_norm": 1.0,
    }
    dqn = partial(DQN, **kw, **net, replay=partial(Replay, capacity=100), batch_size=4, replay_ratio=1.0, learning_starts=0,
                  target_update_period=10, gamma=0.9, epsilon=Linear(1.0, 1.0))  # fmt: skip
    reinforce = partial(Reinforce, **kw, **net, baseline=Nothing, gamma=0.9)
    actor_critic = partial(ActorCritic, **kw, actor=networks.linear, critic=networks.linear, actor_optimizer=SGD,
                           critic_optimizer=SGD, gamma=0.9)  # fmt: skip
    return {
        "random": Random(**kw), "dqn": dqn(), "dqn, epsilon": dqn(eval_epsilon=0.3), "dqn, ties": dqn(eval_epsilon=0.3, zero_head=True),
        "dqn, noisy": dqn(noisy=0.5), "a2c": A2C(**kw, **net, **learn), "ppo": PPO(**kw, **net, **learn, epochs=1, minibatches=1, clip=0.2),
        "q": QLearning(**kw, **net, gamma=0.9, epsilon=Linear(1.0, 1.0)),
        "q, epsilon": QLearning(**kw, **net, gamma=0.9, epsilon=Linear(1.0, 1.0), eval_epsilon=0.3), "least squares": LeastSquares(**kw),
        "reinforce": reinforce(), "reinforce, drawn": reinforce(sampled_eval=True), "blind": reinforce(sampled_eval=True, network=constant),
        "actor-critic": actor_critic(), "actor-critic, drawn": actor_critic(sampled_eval=True),
    }  # fmt: skip


ENV = MDPEnv(gridworld("S.G\n..X"), 1, time_limit=9)
NAMES = list(agents(ENV.spec))


@pytest.mark.parametrize("name", NAMES)
def test_each_agent_says_the_probabilities_by_which_it_acts(name):
    """20,000 greedy actions in each state, against what is said of them, to 5 standard errors."""
    agent, seen, count = agents(ENV.spec)[name], ENV.all_observations(), 20_000
    said = agent.probabilities(seen)
    assert said.dtype == torch.float64 and said.shape == (6, 4) and not said.requires_grad
    torch.testing.assert_close(said.sum(-1), torch.ones(6).double(), atol=1e-6, rtol=0)
    with torch.no_grad():
        taken = agent.act(seen.repeat_interleave(count, 0), greedy=True).view(6, count)
    shares = torch.nn.functional.one_hot(taken, 4).double().mean(1)
    assert ((shares - said).abs() <= 5 * (said * (1 - said) / count).sqrt() + 1e-6).all()
    assert (said.max() < 1.0) == any(word in name for word in ("random", "epsilon", "ties", "drawn", "blind"))


def test_to_judge_a_policy_draws_nothing_from_it_but_the_actions_it_plays():
    agent = Random(ENV.spec, CPU, 0)
    judge, before = Judge(ENV, 1, 0), agent.rng.get_state()
    assert judge.exact(agent)["eval/regret"] > 0 and torch.equal(agent.rng.get_state(), before)


def test_an_agent_that_does_not_say_its_probabilities_has_no_regret_and_it_is_said():
    class Mute:
        def act(self, obs, greedy=False):
            return torch.full((len(obs),), RIGHT)

    said = []
    metrics = Judge(ENV, 1, 0, said.append)(Mute())
    assert "eval/regret" not in metrics and said == ["eval/regret is left out: Mute has no probabilities"]


def test_a_plan_is_certain():
    planned = Planned(torch.zeros(6, 4), torch.full((6,), RIGHT), ENV.states)
    assert planned.probabilities(ENV.all_observations()).argmax(-1).tolist() == [RIGHT] * 6
