"""Environments in groups, a thread each: synchronous A2C all the same."""

import json
from functools import partial

import pytest
import torch
import yaml
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.a2c import Acted
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.loops.crew import Crew, Member, train
from rl_lab.networks import torsos as networks
from rl_lab.types import Transition

A2C = stated("agent/a2c")
MDPEnv = stated("env/base/tabular")
gridworld = stated("env/base/gridworld", "mdp")

CPU = torch.device("cpu")


def a2c(env, **changes):
    knobs = dict(network=partial(networks.mlp, hidden=(8,)), optimizer=partial(torch.optim.SGD, lr=0.5),
                 rollout_length=4, gamma=0.9, lambda_=0.9, value_coef=0.5, entropy_coef=0.01, max_grad_norm=0.05,
                 decay_steps=400)  # fmt: skip
    return A2C(env.spec, CPU, 0, **(knobs | changes))


def crew(size: int, **changes) -> Crew:
    envs = [MDPEnv(gridworld("S.G\n..X", noise=0.2), num_envs=3, time_limit=5) for _ in range(size)]
    agent = a2c(envs[0], **changes)
    members = [Member(agent, env, seed=i) for i, env in enumerate(envs)]
    for i, member in enumerate(members):
        member.reset(seed=i)
    return Crew(agent, members)


def merged(rollouts):
    """The rollouts of several members as one of all their envs."""
    for parts in zip(*rollouts, strict=True):
        acted, transitions = zip(*parts, strict=True)
        acted = Acted(*(torch.cat(x) for x in zip(*acted, strict=True)))
        yield acted, Transition(*map(torch.cat, zip(*transitions, strict=True)))


def test_a_step_of_the_crew_is_one_on_all_environments_together():
    """For ten steps, ends and time limits among them; the acting of each group is done again in the agent alone."""
    many, alone = crew(2), a2c(MDPEnv(gridworld("S.G\n..X", noise=0.2), 3, 5))
    shadow, ends = crew(2), 0
    for _ in range(10):
        for member in shadow.members:  # the same streams, walked here one after the other, with `alone`'s parameters
            member.agent = alone
        rollouts = []
        for member in shadow.members:
            rollout = []
            for _ in range(4):
                action, acted = alone.choose(member.obs, member.rng)
                answer = member.env.step(action)
                rollout.append((acted, Transition.of(member.obs, action, answer)))
                member.obs = answer.obs
            rollouts.append(rollout)
        expected = alone.learn(list(merged(rollouts)))
        metrics, reward, last = many.learn()
        ends += int(last.sum())
        assert reward.shape == last.shape == (4, 6)
        for name, x in expected.items():
            torch.testing.assert_close(metrics[name], x, atol=1e-6, rtol=1e-5)
        for a, b in zip(alone.network.parameters(), many.agent.network.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert ends > 20 and many.agent.steps == alone.steps == 240


def test_every_action_of_a_rollout_is_chosen_by_the_parameters_it_teaches():
    one = crew(3)
    before = {k: v.clone() for k, v in one.agent.network.state_dict().items()}
    seen = []
    choose = one.agent.choose

    def watched(obs, rng):
        seen.append(all(torch.equal(v, before[k]) for k, v in one.agent.network.state_dict().items()))
        return choose(obs, rng)

    one.agent.choose = watched
    one.learn()
    assert seen == [True] * 12
    assert any(not torch.equal(v, before[k]) for k, v in one.agent.network.state_dict().items())


def test_what_is_kept_as_it_is_gets_no_gradient():
    some = crew(2, network=partial(networks.mlp, hidden=(8, 8)))
    torso = some.agent.network.torso
    for p in (frozen := next(part for part in torso if isinstance(part, torch.nn.Linear))).parameters():
        p.requires_grad_(False)
    before = {k: v.clone() for k, v in some.agent.network.state_dict().items()}
    some.learn()
    assert all(p.grad is None for p in frozen.parameters())
    changed = {k for k, v in some.agent.network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k, p in some.agent.network.named_parameters() if p.requires_grad}


def run(*arguments) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, ["train", *map(str, arguments)])


def rows(folder) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def test_a_crew_goes_on_as_if_never_stopped(tmp_path):
    common = ["experiment=a2c_four_rooms", "loop=crew", "tracker=none", "device=cpu", "env.num_envs=8",
              "loop.eval_every=1000000", "loop.eval_episodes=10", "loop.log_every=800"]  # fmt: skip
    assert run(*common, "loop.total_steps=8000", f"hydra.run.dir={tmp_path / 'whole'}") == 0
    assert run(*common, "loop.total_steps=4000", f"hydra.run.dir={tmp_path / 'halves'}") == 0
    assert run(f"run={tmp_path / 'halves'}", "loop.total_steps=8000") == 0
    halves = [row for row in rows(tmp_path / "halves") if not (row["step"] == 4000 and "eval/return" in row)]
    assert halves == rows(tmp_path / "whole")


def test_a_crew_of_another_agent_is_refused_in_a_line(tmp_path, capsys):
    assert (
        run("experiment=a2c_four_rooms", "loop=crew", "tracker=none", "agent=dqn", f"hydra.run.dir={tmp_path / 'x'}")
        == 2
    )
    assert "loop=crew is for rl_lab's A2C, and this agent is rl_lab's DQN; choose loop=train" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("agent.standardise=true", "agent.standardise=true is not for loop=crew, whose groups learn apart; set it to "
         "false, or choose loop=train"),
        ("experiment=pong_a2c", "agent.network.standardise=true is not for loop=crew, whose groups learn apart; set it "
         "to false, or choose loop=train"),
    ],
)  # fmt: skip
def test_statistics_over_all_groups_are_refused_in_a_line(tmp_path, capsys, setting, remedy):
    """Each group would take its own, and its gradients would not be those of all environments together."""
    of = [setting] if "experiment" in setting else ["experiment=a2c_four_rooms", setting]
    arguments = [*of, "loop=crew", "tracker=none", "device=cpu"]
    assert run(*arguments, f"hydra.run.dir={tmp_path / 'x'}") == 2
    assert capsys.readouterr().err == f"rl-lab: {remedy}\n"


def test_evaluations_of_a_crew_have_settings_of_their_own(tmp_path):
    arguments = ["experiment=a2c_four_rooms", "loop=crew", "tracker=none", "device=cpu", "loop.total_steps=400",
                 "+loop.eval_env.num_envs=2", "+loop.eval_env.time_limit=30", "loop.eval_episodes=2"]  # fmt: skip
    assert run(*arguments, f"hydra.run.dir={tmp_path / 'x'}") == 0
    config = yaml.safe_load((tmp_path / "x/config.yaml").read_text())
    assert config["loop"]["eval_env"]["time_limit"] == 30 and config["env"]["time_limit"] != 30


def test_groups_of_different_size_would_not_weigh_the_same():
    envs = [MDPEnv(gridworld("S.G"), num_envs=n, time_limit=5) for n in (2, 3)]
    with pytest.raises(UserError, match="groups of different size"):
        train(
            envs,
            a2c,
            None,
            eval_env=envs[0],
            total_steps=1,
            eval_every=1,
            eval_episodes=1,
            eval_drawn=0,
            log_every=None,
            stop_at=None,
        )
