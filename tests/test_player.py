"""From a run folder back to a player: the same episodes, nothing foreign called, one line where it cannot be."""

import gc
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from rl_lab.__main__ import COMMANDS
from rl_lab.commands.evaluate import evaluate_runs
from rl_lab.core import checkpoint, conf_dir
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.loops.judging import Judge
from rl_lab.playing.player import BUILDERS, load, settings_of

TINY = ["tracker=none", "device=cpu", "loop.eval_episodes=1"]
MAPS = Path("/proc/self/maps")
DQN = ["experiment=dqn_four_rooms", "loop.total_steps=2000", "agent.learning_starts=64"]


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a run once a module; returns its folder."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def train(name: str, *arguments: str) -> Path:
        if name not in done:
            assert rl_lab("train", *TINY, f"hydra.run.dir={root / name}", *arguments) == 0
            done[name] = root / name
        return done[name]

    return train


@pytest.fixture
def copy(tmp_path):
    """A copy of a run to damage."""

    def of(folder: Path) -> Path:
        for name in ("config.yaml", "checkpoint.pt"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        return tmp_path

    return of


def said(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load(folder, max_envs=1, device="cpu")
    return str(error.value)


def alter(folder: Path, change) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "checkpoint.pt")


RUNS = {
    "dqn": DQN,
    "a2c": ["experiment=a2c_russell_norvig", "loop.total_steps=1000"],
    "plan": ["experiment=value_iteration_russell_norvig"],
    "sb3_dqn": ["experiment=sb3_dqn_cartpole", "loop.total_steps=200"],
    "random": ["experiment=dqn_russell_norvig", "agent=random", "loop.total_steps=100"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_plays_as_when_it_was_saved(trained, name):
    """The last evaluation of the run, again from its folder: same policy, same environment, same figures."""
    folder = trained(name, *RUNS[name], "seed=3", "loop.eval_episodes=40")
    player = load(folder, max_envs=10_000, device="cpu")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert player.step == rows[-1]["step"]
    if name == "random":
        return
    from rl_lab.core.run import Run

    seed = Run(folder, 3, "cpu", names={}, config={}).stream("eval")
    found = {k: float(x) for k, x in Judge(player.env, 40, seed)(player.agent).items()}
    assert ("eval/regret" in found) == hasattr(player.env, "mdp") and found == {
        k: x for k, x in rows[-1].items() if k.startswith("eval/")
    }
    view = player.view(player.env.reset(0))
    assert view.bars.shape == (player.env.num_envs, player.env.spec.num_actions)
    assert view.value.shape == (player.env.num_envs,)
    if view.kind == "action values":
        assert torch.equal(view.bars.argmax(-1), player.act(player.env.observe()))


def test_evaluate_counts_whole_episodes_and_keeps_every_return(trained, capsys):
    folder = trained("random", *RUNS["random"])
    assert rl_lab("evaluate", f"run={folder}", "episodes=40", "seed=7", "device=cpu") == 0
    record = json.loads((folder / "evaluation.json").read_text())
    returns = torch.tensor(record["returns"], dtype=torch.float64)
    assert record["episodes"] == len(returns) == 64  # 32 environments, two episodes each
    assert record["scores"]["eval/return"] == pytest.approx(returns.mean().item())
    assert record["scores"]["eval/return_se"] == pytest.approx(returns.std().item() / 8)
    assert (record["seed"], record["device"]) == (7, "cpu")
    line = next(line for line in capsys.readouterr().out.splitlines() if "128 steps" in line)
    assert f"{record['scores']['eval/return']:,.6g}" in line and "64" in line
    evaluate_runs([folder], episodes=1, seed=7, device="cpu")
    assert json.loads((folder / "evaluation.json").read_text())["scores"]["eval/return_se"] is None


def test_the_memory_is_neither_needed_nor_loaded(trained, copy):
    folder = trained("dqn", *DQN)
    assert load(folder, max_envs=1, device="cpu").agent.replay.size == 0
    folder = copy(folder)
    alter(folder, lambda state: state["agent"].pop("replay"))
    load(folder, max_envs=1, device="cpu")


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux says which files are mapped")
def test_what_is_mapped_stays_in_the_file(trained):
    path = trained("dqn", *DQN) / "checkpoint.pt"
    for mapped in (True, False):
        state = checkpoint.read(path, mapped=mapped)
        assert (str(path) in MAPS.read_text()) == mapped
        del state
        gc.collect()


def test_a_stream_of_another_device_is_no_hindrance(trained, copy):
    """A CUDA generator's state has 16 bytes; a CPU generator refuses it."""
    folder = copy(trained("dqn", *DQN))
    alter(folder, lambda state: state["agent"].update(rng=torch.zeros(16, dtype=torch.uint8)))
    load(folder, max_envs=1, device="cpu")


def test_no_run_and_no_checkpoint(trained, copy, tmp_path):
    assert said(tmp_path) == f"{tmp_path} is not a run folder: it has no config.yaml"
    copy(trained("dqn", *DQN))
    (tmp_path / "checkpoint.pt").unlink()
    assert said(tmp_path) == f"no checkpoint at {tmp_path}/checkpoint.pt; has the run saved one yet?"


def test_a_run_of_the_other_lab(tmp_path):
    (tmp_path / "config.yaml").write_text("name: vae\nseed: 0\nloop: {_target_: gen_lab.fit.fit}\n")
    line = (
        f"{tmp_path} is a run of gen-lab: gen-lab train resumes it, gen-lab evaluate judges it, and from Python "
        "gen_lab.load opens it"
    )
    assert said(tmp_path) == line
    with pytest.raises(UserError, match=f"^{line}$"):
        settings_of(tmp_path)


@pytest.mark.parametrize("other", ["dqn_small", "a2c", "plan"])
def test_a_checkpoint_of_another_agent(trained, copy, other):
    small = ["experiment=dqn_russell_norvig", *DQN[1:]]
    folder = copy(trained("dqn", *DQN))
    stranger = trained(other, *RUNS.get(other, small))
    (folder / "checkpoint.pt").write_bytes((stranger / "checkpoint.pt").read_bytes())
    assert said(folder).startswith(f"{folder}/checkpoint.pt does not fit {folder}/config.yaml (")


def test_a_plan_of_another_world(trained, copy):
    folder = copy(trained("plan", *RUNS["plan"]))
    alter(folder, lambda state: state["agent"].update(q=torch.zeros(5, 4)))
    assert said(folder) == (
        f"{folder}/checkpoint.pt does not fit {folder}/config.yaml (a plan of (5, 4) states and actions, not (12, 4)); "
        "bring back the run's own checkpoint, or delete it with the summary.json and metrics.jsonl beside it, to train anew by run="
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: state.pop("agent"), "it has no 'agent'"),
        (lambda state: state["agent"].pop("online"), "it has no 'online'"),
        (lambda state: state["agent"]["online"].pop("head.weight"), "it has no 'head.weight'"),
        (lambda state: state["agent"]["online"].update(more=torch.zeros(1)), "it has 'more', which is not wanted"),
        (
            lambda state: state["agent"]["online"].update({"head.weight": torch.zeros(7, 104)}),
            "head.weight in it is [7, 104], and [4, 104] is wanted",
        ),
        (lambda state: state.update(agent=7), "a part of it is of another kind: 'int' object has no attribute 'items'"),
    ],
)
def test_what_does_not_fit_is_said_in_words(trained, copy, damage, words):
    folder = copy(trained("dqn", *DQN))
    alter(folder, damage)
    assert f" does not fit {folder}/config.yaml ({words}); bring back the run's own checkpoint" in said(folder)
    with pytest.raises(UserError, match="leave out env.time_limit=9$"):
        load(folder, max_envs=1, device="cpu", changes=["env.time_limit=9"])


REFUSED = "is refused: a run folder may call only what rl_lab/parts.py lists"
CALL = "{_target_: builtins.open, file: %s, mode: w}"


@pytest.mark.parametrize(
    ("find", "put", "where"),
    [
        ("rl_lab.agents.dqn.DQN", "builtins.open\n  file: %s\n  mode: w", "agent._target_=builtins.open"),
        ("noise: 0.1", f"noise: {CALL}", "env.mdp.noise._target_=builtins.open"),
        ("noise: 0.1", f"noise: [0, [{CALL}]]", "env.mdp.noise[1][0]._target_=builtins.open"),
        ("noise: 0.1", f"_args_: [{CALL}]", "env.mdp._args_[0]._target_=builtins.open"),
        ("env: ${env}", f"env: {CALL}", "loop.env._target_=builtins.open"),
        ("noise: 0.1", "noise: {_target_: gen_lab.trained.loading.composition.read_config, prog: %s}",
         "env.mdp.noise._target_=gen_lab.trained.loading.composition.read_config"),
        ("noise: 0.1", "noise: {_target_: stable_baselines3.common.logger.JSONOutputFormat, filename: %s}",
         "env.mdp.noise._target_=stable_baselines3.common.logger.JSONOutputFormat"),
        ("noise: 0.1", "noise: {_target_: rl_lab.commands.render.render, out: %s}",
         "env.mdp.noise._target_=rl_lab.commands.render.render"),
        ("noise: 0.1", "noise: {_target_: gen_lab.data.cache.fetch, root: %s}",
         "env.mdp.noise._target_=gen_lab.data.cache.fetch"),
    ],
)  # fmt: skip
def test_a_stranger_calls_nothing(trained, copy, tmp_path, find, put, where):
    """Wherever Hydra would make a call, and whatever of ours starts runs or writes files."""
    folder, trace = copy(trained("dqn", *DQN)), tmp_path / "trace"
    text = (folder / "config.yaml").read_text()
    assert find in text
    (folder / "config.yaml").write_text(text.replace(find, put.replace("%s", str(trace))))
    assert said(folder) == f"{where} {REFUSED}"
    assert not trace.exists()


def test_the_runs_of_every_loop_can_be_played():
    """But those of many seeds, which leave folders as of loop=train."""
    loops = {OmegaConf.load(path).get("_target_") for path in (conf_dir() / "loop").glob("*.yaml")} - {None}
    mine = {loop for loop in loops if loop.startswith("rl_lab.") and ".seeds." not in loop}
    assert len(mine) >= 6 and mine == set(BUILDERS)


def test_a_loop_that_is_none(trained, copy):
    folder = copy(trained("dqn", *DQN))
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("rl_lab.loops.training.train", "rl_lab.loops.training.evaluate"))
    refused = f"{folder}/config.yaml is refused: loop._target_=rl_lab.loops.training.evaluate is not one of rl_lab.loops.training.train, "
    assert said(folder).startswith(refused)
