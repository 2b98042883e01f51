"""PPO with a thread that collects and one that learns: a rollout of age one, and the same whoever is first."""

import json
from functools import partial

import pytest
import torch
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.ppo import PPO, choose
from rl_lab.core.launching import cli
from rl_lab.core.randomness import generator
from rl_lab.loops.overlapped import Collector
from rl_lab.networks import torsos
from rl_lab.types import Transition

CPU = torch.device("cpu")
MDPEnv = stated("env/base/tabular")
gridworld = stated("env/base/gridworld", "mdp")


def run(*arguments) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, ["train", *map(str, arguments)])


def rows(folder) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def weights(folder) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["agent"]["network"]


def ppo(env) -> PPO:
    return stated(
        "agent/ppo",
        network=partial(torsos.mlp, hidden=(8,)),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        rollout_length=4,
    )(env.spec, CPU, 0)


def world():
    return MDPEnv(gridworld("S.G\n..X", noise=0.2), num_envs=3, time_limit=5)


def test_a_rollout_is_acted_by_the_parameters_of_one_update_before(tmp_path):
    """Done again by hand, one thread after the other."""
    arguments = ["experiment=ppo_four_rooms", "loop=overlapped", "tracker=none", "device=cpu", "env.num_envs=4"]
    settings = ["loop.eval_every=null", "loop.eval_episodes=4", "agent.rollout_length=8", "loop.total_steps=128"]
    assert run(*arguments, *settings, f"hydra.run.dir={tmp_path / 'a'}") == 0
    assert run(*arguments, *settings, f"hydra.run.dir={tmp_path / 'b'}") == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b")

    env, learner = world(), ppo(world())
    collector = Collector(learner, env, 7)
    collector.reset(1)
    collector.collect()
    shadow_env, shadow, rng = world(), ppo(world()), generator(7, CPU)
    obs, states = shadow_env.reset(1), [shadow.network.state_dict()]

    def collected(network):
        nonlocal obs
        rollout = []
        for _ in range(4):
            action, acted = choose(obs, network, rng)
            step = shadow_env.step(action)
            rollout.append((acted, Transition.of(obs, action, step)))
            obs = step.obs
        return rollout

    acting, pending = ppo(world()).network, None
    pending = collected(acting)
    for _ in range(6):
        rollout = collector.rollout
        collector.follow()
        collector.collect()  # in a thread of its own, in the loop
        learner.learn(rollout)

        acting.load_state_dict(shadow.network.state_dict())
        following = collected(acting)
        shadow.learn(pending)
        pending = following
        states.append({k: v.clone() for k, v in shadow.network.state_dict().items()})
    assert all(torch.equal(v, learner.network.state_dict()[k]) for k, v in states[-1].items())
    assert not torch.equal(states[-1]["policy.weight"], states[-2]["policy.weight"])


def test_it_goes_on_as_if_never_stopped(tmp_path):
    """The rollout that is not learned from yet is in the checkpoint."""
    common = ["experiment=ppo_four_rooms", "loop=overlapped", "tracker=none", "device=cpu", "env.num_envs=8",
              "loop.eval_every=1000000", "loop.eval_episodes=10", "loop.log_every=800",
              "agent.rollout_length=10"]  # fmt: skip
    assert run(*common, "loop.total_steps=8000", f"hydra.run.dir={tmp_path / 'whole'}") == 0
    assert run(*common, "loop.total_steps=4000", f"hydra.run.dir={tmp_path / 'halves'}") == 0
    assert run(f"run={tmp_path / 'halves'}", "loop.total_steps=8000") == 0
    halves = [row for row in rows(tmp_path / "halves") if not (row["step"] == 4000 and "eval/return" in row)]
    assert halves == rows(tmp_path / "whole")
    assert all(torch.equal(x, weights(tmp_path / "halves")[k]) for k, x in weights(tmp_path / "whole").items())


def test_a_rollout_of_another_length_is_not_learned_from(tmp_path):
    common = ["experiment=ppo_four_rooms", "loop=overlapped", "tracker=none", "device=cpu", "env.num_envs=4",
              "loop.eval_every=null", "loop.eval_episodes=10"]  # fmt: skip
    assert run(*common, "agent.rollout_length=8", "loop.total_steps=96", f"hydra.run.dir={tmp_path / 'run'}") == 0
    longer = "agent.rollout_length=64", "agent.minibatches=64", "loop.log_every=1", "loop.total_steps=400"
    assert run(f"run={tmp_path / 'run'}", *longer) == 0
    new = [row for row in rows(tmp_path / "run") if row["step"] > 96 and "ppo/policy_loss" in row]
    assert [row["step"] for row in new][:1] == [96 + 256]


def test_a_checkpoint_of_a_long_rollout_is_taken_up(tmp_path):
    """Of 600 steps: a tensor each of ten fields would make an index that is longer than is read."""
    common = ["experiment=ppo_four_rooms", "loop=overlapped", "tracker=none", "device=cpu", "env.num_envs=2",
              "loop.eval_every=null", "loop.eval_episodes=10", "agent.rollout_length=600"]  # fmt: skip
    assert run(*common, "loop.total_steps=3600", f"hydra.run.dir={tmp_path / 'whole'}") == 0
    assert run(*common, "loop.total_steps=2400", f"hydra.run.dir={tmp_path / 'halves'}") == 0
    assert len(torch.load(tmp_path / "halves/checkpoint.pt", weights_only=True)["collector"]["rollout"]) == 10
    assert run(f"run={tmp_path / 'halves'}", "loop.total_steps=3600") == 0
    assert all(torch.equal(x, weights(tmp_path / "halves")[k]) for k, x in weights(tmp_path / "whole").items())


def test_what_it_trained_is_evaluated_and_filmed_like_any_run(tmp_path, capsys):
    arguments = ["experiment=ppo_four_rooms", "loop=overlapped", "tracker=none", "device=cpu", "env.num_envs=4",
                 "agent.rollout_length=8", "loop.total_steps=64", "loop.eval_every=null", "loop.eval_episodes=4",
                 f"hydra.run.dir={tmp_path / 'x'}"]  # fmt: skip
    assert run(*arguments) == 0
    for command in (["evaluate", "episodes=4"], ["render", "episodes=1", f"out={tmp_path / 'x.png'}", "tracker=none"]):
        assert cli.main("rl-lab", "rl", COMMANDS, [*command, f"run={tmp_path / 'x'}"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("agent, remedy", [("a2c", "rl_lab's A2C; choose loop=train"), ("sb3_ppo", "choose loop=sb3")])
def test_another_agent_is_refused_in_a_line(agent, remedy, tmp_path, capsys):
    arguments = ["env=four_rooms", f"agent={agent}", "loop=overlapped", "tracker=none", "device=cpu"]
    assert run(*arguments, f"hydra.run.dir={tmp_path / 'x'}") == 2
    error = capsys.readouterr().err
    assert "loop=overlapped is for rl_lab's PPO" in error and remedy in error and error.count("\n") == 1


def test_a_run_stops_at_the_return_asked_for_and_then_has_nothing_left_to_do(tmp_path, capsys):
    arguments = ["experiment=ppo_four_rooms", "tracker=none", "device=cpu", "loop.eval_every=null",
                 "loop.eval_episodes=10", "loop.eval_drawn=10", "loop.log_every=500", "loop.stop_at=-0.5",
                 f"hydra.run.dir={tmp_path / 'x'}"]  # fmt: skip
    assert run(*arguments) == 0
    found = rows(tmp_path / "x")
    summary = json.loads((tmp_path / "x" / "summary.json").read_text())
    recent = [row["episode/last_20"] for row in found if "episode/last_20" in row]
    assert recent[-1] >= -0.5 > max(recent[:-1], default=-1.0) or len(recent) == 1
    assert summary["state"] == "finished" and summary["step"] == found[-1]["step"] < 200_000
    assert {"eval/return", "eval/drawn_return"} <= found[-1].keys()
    assert [row for row in found if "eval/return" in row] == found[-1:]
    assert "episode/last_20 is" in capsys.readouterr().err
    assert run(f"run={tmp_path / 'x'}", "loop.total_steps=200_100") == 2
    said = capsys.readouterr().err
    assert "would change nothing" in said and "loop.stop_at=null goes on" in said and "the total is" not in said
    assert json.loads((tmp_path / "x" / "summary.json").read_text())["step"] == summary["step"]


def test_in_a_world_that_begins_anew_no_episode_is_counted_that_never_was(tmp_path):
    """Each lasts five steps here, also the one that a stop cut in two."""
    short = ["experiment=ppo_cartpole", "loop=overlapped", "tracker=none", "device=cpu", "env.num_envs=2", "env.time_limit=5",
             "agent.rollout_length=8", "loop.log_every=1", "loop.eval_episodes=2", "loop.eval_every=null"]  # fmt: skip
    assert run(*short, "loop.total_steps=48", f"hydra.run.dir={tmp_path}/run") == 0
    assert run(f"run={tmp_path}/run", "loop.total_steps=160", "tracker=none") == 0
    lengths = [row["episode/length"] for row in rows(tmp_path / "run") if "episode/length" in row]
    assert len(lengths) > 4 and set(lengths) == {5.0}
