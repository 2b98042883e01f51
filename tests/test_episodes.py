"""The episodes of training, and evaluations by drawing from the policy."""

import pytest
import torch
from stated import stated

from rl_lab.loops.episodes import Episodes
from rl_lab.loops.judging import Judge, scores
from rl_lab.types import View

CPU = torch.device("cpu")
MDPEnv = stated("env/base/tabular")
gridworld = stated("env/base/gridworld", "mdp")


def played(returns: list[float], episodes: Episodes) -> dict:
    """Episodes of two steps in one env; the second earns the return."""
    for x in returns:
        episodes.add(torch.zeros(1), torch.tensor([False]))
        episodes.add(torch.tensor([float(x)]), torch.tensor([True]))
    return episodes.pop()


def test_the_last_20_and_100_episodes():
    episodes = Episodes(1, CPU)
    assert played(list(range(19)), episodes) == {
        "episode/return": 9.0, "episode/length": 2.0, "episode/last_100": 9.0
    }  # fmt: skip
    row = played([19], episodes)
    assert row["episode/return"] == 19 and row["episode/last_20"] == row["episode/last_100"] == 9.5
    row = played(list(range(20, 250)), episodes)
    assert row["episode/last_20"] == sum(range(230, 250)) / 20
    assert row["episode/last_100"] == sum(range(150, 250)) / 100
    assert episodes.pop() == {}


def test_the_last_20_of_several_envs_are_those_that_ended_last():
    episodes = Episodes(3, CPU)
    for i in range(10):
        episodes.add(torch.tensor([i, 100.0 + i, 1000.0]), torch.tensor([True, True, False]))
    row = episodes.pop()
    assert row["episode/last_20"] == (sum(range(10)) + sum(range(100, 110))) / 20


def test_the_last_20_go_on_from_a_checkpoint():
    one, other = Episodes(1, CPU), Episodes(1, CPU)
    played(list(range(30)), one)
    other.load_state_dict(one.state_dict())
    assert played([7], other)["episode/last_20"] == pytest.approx((sum(range(11, 30)) + 7) / 20)


class Half:
    """Ends the episode at once with the greedy action; its policy takes another one half of the time."""

    def act(self, obs, greedy=False):
        assert greedy, "an evaluation leaves the agent's own stream alone"
        return torch.full((len(obs),), 1)

    def probabilities(self, obs):
        return torch.eye(4)[self.act(obs, greedy=True)]

    def view(self, obs):
        return View(torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(len(obs), 4), torch.zeros(len(obs)), "probabilities")


class Values(Half):
    def view(self, obs):
        return super().view(obs)._replace(kind="action values")


def test_episodes_by_drawing_have_the_return_of_the_policy():
    """One way leads to the goal, which is worth 1; any other to the wall, and costs .1."""
    env = MDPEnv(gridworld("SG", noise=0.0, living_reward=-0.1), num_envs=100, time_limit=50)
    right = env.spec.actions.index("right")

    class Walker(Half):
        def act(self, obs, greedy=False):
            return torch.full((len(obs),), right)

        def view(self, obs):
            bars = torch.zeros(len(obs), 4)
            bars[:, [right, (right + 1) % 4]] = 0.5
            return View(bars, torch.zeros(len(obs)), "probabilities")

    judge = Judge(env, 100, seed=3, drawn=4_000)
    metrics, again = judge(Walker()), judge(Walker())
    assert metrics["eval/return"] == 1
    assert abs(float(metrics["eval/drawn_return"]) - 0.9) < 0.01, "one step in the mean goes to the wall"
    assert metrics["eval/drawn_return"] == again["eval/drawn_return"]
    said = []
    metrics = Judge(env, 100, 3, said.append, drawn=10)(Values())
    assert "eval/drawn_return" not in metrics
    assert said == ["eval/drawn_return is left out: Values has no policy to draw from"]
    assert "eval/drawn_return" not in Judge(env, 100, 3)(Walker())


def test_equal_returns_have_no_standard_error():
    """Of 104 float32 returns of 0.7 the mean is rounded, and none of them would equal it."""
    assert scores(torch.full((104,), 0.7), torch.ones(104))["eval/return_se"] == 0
    assert scores(torch.tensor([1.0, 3.0]), torch.ones(2))["eval/return_se"] == 1
