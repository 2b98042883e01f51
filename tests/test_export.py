"""A policy leaves the lab: the file acts as the agent does, where nothing of the lab can be imported."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from rl_lab.__main__ import COMMANDS
from rl_lab.commands.export import observations
from rl_lab.core.launching import cli
from rl_lab.playing.player import load

TINY = ["tracker=none", "device=cpu", "loop.eval_episodes=1"]
SHORT = ["loop.total_steps=256", "loop.eval_every=null", "env.num_envs=8"]
RUNS = {
    "plan": ["planner=value_iteration", "loop=plan", "env=russell_norvig", "loop.eval_episodes=1"],
    "plan_index": ["planner=value_iteration", "loop=plan", "env=four_rooms", "env.obs=index"],
    "plan_planes": ["planner=value_iteration", "loop=plan", "env=four_rooms", "env.obs=planes"],
    "ppo": ["env=cartpole_tensor", "agent=ppo_mlp", *SHORT, "agent.rollout_length=16", "agent.minibatches=2"],
    "table": ["env=four_rooms", "agent=q_learning", *SHORT],
    "rainbow": ["env=four_rooms", "agent=dqn_mlp", *SHORT, "agent/value=categorical", "agent.dueling=true", "agent.noisy=0.5",
                "agent.learning_starts=64", "agent.eval_epsilon=0.1"],
    "drawing": ["env=four_rooms", "agent=reinforce", *SHORT, "agent.sampled_eval=true"],
    "frames": ["env=atari", "env.game=pong", "agent=a2c_cnn", "env.num_envs=4", "loop.total_steps=40", "loop.eval_every=null",
               "env.max_frames=200"],
    "dqn_frames": ["env=atari", "env.game=pong", "agent=dqn_cnn", "env.num_envs=4", "loop.total_steps=100", "loop.eval_every=null",
                   "env.max_frames=200", "agent.learning_starts=64", "agent.replay.capacity=1000"],
    "vpn": ["env=cartpole_tensor", "agent=vpn_mlp", *SHORT],
    "sb3": ["env=cartpole_tensor", "agent=sb3_a2c", "loop=sb3", "loop.total_steps=64", "loop.eval_every=null", "env.num_envs=4"],
    "sb3_dqn": ["experiment=sb3_dqn_cartpole", "loop.total_steps=64", "loop.eval_every=null"],
    "random": ["env=four_rooms", "agent=random", *SHORT],
}  # fmt: skip
ALONE = """
import sys
import numpy as np, torch
path, seen, action = sys.argv[1], *np.load(sys.argv[2]).values()
if path.endswith("onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    run = lambda obs: session.run(None, {session.get_inputs()[0].name: obs})
else:
    program = torch.export.load(path).module()
    run = lambda obs: [x.numpy() for x in program(torch.from_numpy(obs))]
size = int(sys.argv[3])
parts = [run(seen[i : i + size]) for i in range(0, len(seen), size)]
assert not any(name.startswith(("rl_lab", "hydra", "omegaconf")) for name in sys.modules)
assert all(bars.dtype in (np.float32, np.float64) and len(bars) == len(chosen) for chosen, bars in parts)
print((np.concatenate([chosen for chosen, _ in parts]) == action).sum(), "of", len(seen))
"""


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root, done = tmp_path_factory.mktemp("runs"), {}

    def train(name: str):
        if name not in done:
            assert rl_lab("train", *TINY, f"hydra.run.dir={root / name}", *RUNS[name]) == 0
            done[name] = root / name
        return done[name]

    return train


@pytest.mark.parametrize("name", ["plan", "ppo"])
def test_the_file_acts_as_the_agent_does(trained, tmp_path, capsys, name):
    path = tmp_path / "new" / "policy.pt2"
    assert rl_lab("export", f"run={trained(name)}", f"to={path}") == 0
    assert "the same actions on 1,000 of 1,000 observations\n" in capsys.readouterr().out
    player, extra = load(trained(name), max_envs=8, device="cpu"), {"about.json": ""}
    program = torch.export.load(str(path), extra_files=extra).module()
    about = json.loads(extra["about.json"])
    assert about["actions"] == list(player.env.spec.actions) and about["batch"] is None and about["step"] > 0
    assert about["outputs"] == ["action", "action_values" if name == "plan" else "probabilities"]
    seen = observations(player, 40)
    for part in (seen, seen[:1]):
        action, bars = program(part)
        assert (
            not bars.requires_grad
            and torch.equal(action, player.act(part))
            and torch.allclose(bars, player.view(part).bars, atol=1e-6)
        )
    assert path.stat().st_size < 200_000  # the observations that it was traced with are not in it


def test_an_export_that_acts_otherwise_is_no_success(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rl_lab.commands.export.compared", lambda *_: 999)
    assert rl_lab("export", f"run={trained('plan')}", f"to={tmp_path / 'x.pt2'}") == 2
    assert "is not quite the policy of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run={plan}"], "where to? rl-lab export run={plan} to=policy.pt2, or to=policy.onnx"),
        (["run={plan}", "to=policy.pt"], "to=policy.pt must end in .pt2, for torch, or in .onnx"),
        (["to=policy.pt2"], "export one run: rl-lab export run=<folder> to=policy.pt2"),
        (
            ["run={plan}", "run={random}", "to={tmp}/x.pt2"],
            "these are 2 runs, and this takes one; name it, such as run={plan}",
        ),
        (["run={random}", "to={tmp}/x.pt2"], "Random has no network and no table to export"),
        (["run={plan}", "to={tmp}/x.onnx"], "to={tmp}/x.onnx needs onnx: pip install rl-lab[onnx]"),
        (["run={plan}", "to=/proc/x/policy.pt2"], "cannot write to /proc/x/policy.pt2: "),
    ],
)
def test_one_line(trained, tmp_path, capsys, monkeypatch, arguments, line):
    monkeypatch.setitem(sys.modules, "onnx", None)
    names = {"tmp": tmp_path, **{name: trained(name) for name in ("plan", "random")}}
    capsys.readouterr()
    assert rl_lab("export", *[argument.format(**names) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert line.format(**names) in said and said.count("\n") == 1 and not [*tmp_path.iterdir()]


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(trained, capsys, monkeypatch):
    def load(*_, **__):
        raise AssertionError("the run was loaded first")

    monkeypatch.setattr("rl_lab.commands.export.load", load)
    monkeypatch.setattr("rl_lab.commands.evaluate.load", load)
    for words in (["export", "to=/proc/x.pt2"], ["evaluate", "out=/proc/x.json"], ["export", f"to={'x' * 300}.pt2"]):
        assert rl_lab(words[0], f"run={trained('plan')}", words[1]) == 2
        said = capsys.readouterr().err
        assert said.startswith("rl-lab: cannot write to ") and said.count("\n") == 1, said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize("name", [name for name in RUNS if name != "random"])
def test_alone_it_acts_the_same_on_a_thousand_observations(trained, tmp_path, name, kind, capsys):
    if kind == "onnx" and not importlib.util.find_spec("onnx"):
        pytest.skip("needs rl-lab[onnx]")
    path = tmp_path / f"policy.{kind}"
    assert rl_lab("export", f"run={trained(name)}", f"to={path}") == 0
    said = capsys.readouterr().out
    player = load(trained(name), max_envs=16, device="cpu")
    for setting, value in {"eval_epsilon": 0.0, "sampled_eval": False}.items():
        assert (f"agent.{setting} is left out" in said) == (getattr(player.agent, setting, value) != value)
        if hasattr(player.agent, setting):
            setattr(player.agent, setting, value)
    seen = observations(player, 1_000)
    with torch.no_grad():
        np.savez(tmp_path / "seen.npz", seen=seen.numpy(), action=player.act(seen).numpy())
    player.env.close()
    (tmp_path / "alone.py").write_text(ALONE)
    size = "1" if "one observation at a time" in said else "250"
    command = [sys.executable, str(tmp_path / "alone.py"), str(path), str(tmp_path / "seen.npz"), size]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "1000 of 1000\n", done.stderr
