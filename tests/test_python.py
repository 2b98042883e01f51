"""The labs from Python: what their docstrings show is run as it stands, and mistakes are one line."""

import copy
import doctest
import json
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

import gen_lab
import rl_lab
from rl_lab.__main__ import COMMANDS
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.envs.abilities import Tabular

PLAN = "experiment=value_iteration_russell_norvig", "loop.film=false", "tracker=none", "device=cpu"


@pytest.mark.parametrize("lab", [rl_lab, gen_lab])
def test_what_the_docstrings_show(lab, tmp_path, monkeypatch):
    """All in one session, in the order of the file: each function goes on with the folder that `train` left."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pandas")
    found = [test for test in doctest.DocTestFinder(exclude_empty=True).find(lab) if test.examples]
    found.sort(key=lambda test: test.lineno)
    assert len(found) >= 4 and {test.name.rpartition(".")[2] for test in found} >= {"train", "load", "evaluate"}
    session, runner = {lab.__name__: lab}, doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in found:
        test.globs = session
        runner.run(test, clear_globs=False)
    assert runner.summarize().failed == 0


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return rl_lab.train(*PLAN, f"hydra.run.dir={tmp_path_factory.mktemp('python')}/run").absolute()


def test_a_study_stands_for_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["loop.total_steps=40", "loop.eval_every=null", "loop.eval_episodes=1", "hydra/launcher=basic"]
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", "-m", "agent=q_learning,sarsa", "tracker=none", *few]) == 0
    (study,) = Path("runs/studies/sweep").iterdir()
    assert len({row["run"] for row in rl_lab.metrics(study)}) == 2
    assert rl_lab.film(study, out="both.png") == Path("both.png") and Path("both.png").exists()
    assert len(rl_lab.compare(study)) == 2


def test_importing_the_labs_imports_no_torch():
    words = "import sys, rl_lab, gen_lab; print(sorted({'torch', 'hydra', 'pandas', 'wandb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", words], capture_output=True, text=True).stdout == "[]\n"


def test_a_run_is_resumed_by_its_folder_and_says_what_was_typed(tmp_path):
    before, few = list(sys.argv), ["env=cliff_walking", "agent=q_learning", "loop.eval_episodes=1", "tracker=none"]
    folder = rl_lab.train(*few, "loop.total_steps=200", f"hydra.run.dir={tmp_path}/run")
    assert rl_lab.train(f"run={folder}", "loop.total_steps=400") == folder and sys.argv == before
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["step"] >= 400 and summary["command"] == f"rl-lab train run={folder} loop.total_steps=400"
    assert rl_lab.train(folder, "loop.total_steps=600") == folder and rl_lab.metrics(f"run={folder}")[-1]["step"] >= 600


def test_metrics_are_the_rows_of_the_file(planned):
    rows: dict[int, dict] = {}  # of one step there may be several
    for row in map(json.loads, (planned / "metrics.jsonl").read_text().splitlines()):
        rows.setdefault(row["step"], {}).update(row)
    records = rl_lab.metrics(planned, settings=["env.time_limit", "env.obs"])
    head = {"run", "name", "seed", "experiment", "planner", "env", "env.time_limit", "env.obs"}
    assert [{k: v for k, v in record.items() if k not in head} for record in records] == [*rows.values()]
    assert {(r["planner"], r["env"], r["env.time_limit"], r["env.obs"]) for r in records} == {
        ("value_iteration", "russell_norvig", 200, "one_hot")
    }


def test_a_frame_without_pandas_names_the_extra(planned, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"rl-lab\[pandas\]"):
        rl_lab.frame(planned)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda run: rl_lab.train("agent=dqnn"), "no choice 'dqnn' for agent; did you mean agent=dqn?"),
        (lambda run: rl_lab.train("agent=dqn", seed=1, name=None), 'each setting is a text; write ("agent=dqn", "seed=1", "name=null")'),
        (lambda run: rl_lab.build(env="windy"), 'each setting is a text; write ("env=windy")'),
        (lambda run: gen_lab.train(seed=1), 'each setting is a text; write ("seed=1")'),
        (lambda run: rl_lab.train("-m", "seed=0,1"), "-m is for the command line, rl-lab train; from Python each call is one run"),
        (lambda run: rl_lab.build("env=windy", "seed=0,1"), "seed=0,1 is several values, and from Python each call builds one agent; call build for each"),
        (lambda run: rl_lab.train("seed=0,1"), "seed=0,1 is several values, and from Python each call is one run; call train for each"),
        (lambda run: rl_lab.train("env.mdp.goal=3,4"), "call train for each, or write a list: env.mdp.goal=[3,4]"),
        (lambda run: rl_lab.load(run, "env=taxi"), "env=taxi would make it another run; of this one single settings may be changed"),
        (lambda run: rl_lab.train("study=gridworlds"), "study=gridworlds is for the command line"),
        (lambda run: rl_lab.train("hydra.mode=MULTIRUN", "seed=0,1"), "hydra.mode=MULTIRUN is for the command line"),
        (lambda run: rl_lab.load(f"{run}s"), "no run folder"),
        (lambda run: rl_lab.load(f"{run}/*"), "this takes one run"),
        (lambda run: rl_lab.load(run, num_envs=0), "num_envs=0"),
        (lambda run: rl_lab.load(run, "env.sise=3"), "no setting 'env.sise'"),
        (lambda run: rl_lab.evaluate(run, episodes=0), "episodes=0"),
        (lambda run: rl_lab.metrics(run, settings=["env.time"]), "no setting 'env.time'; did you mean env.time_limit?"),
        (lambda run: gen_lab.load(run), "is a run of rl-lab: rl-lab train resumes it, rl-lab evaluate judges it"),
        (lambda run: gen_lab.train(f"run={run}"), "is a run of rl-lab: rl-lab train resumes it"),
        (lambda run: gen_lab.evaluate(run), "and from Python rl_lab.load opens it"),
        (lambda run: rl_lab.load(run, seed="x"), "seed=x must be a whole number"),
        (lambda run: rl_lab.load(run, seed=-1), "seed=-1 must be at least 0"),
        (lambda run: rl_lab.load(run, seed=True), "seed=True must be a whole number"),
        (lambda run: rl_lab.load(run, num_envs="4"), "num_envs='4' must be a whole number"),
        (lambda run: rl_lab.load(run, device="gpu"), "device=gpu is not a choice; choose from auto, cpu"),
        (lambda run: rl_lab.load(run, device=None), "device=None is not a choice; choose from auto, cpu"),
        (lambda run: rl_lab.load(run, 5), 'each setting is a text, "setting=value", and 5 is not one'),
        (lambda run: rl_lab.load(run, ["env.size=3"]), "and ['env.size=3'] is a list; a * before it gives them one by one"),
        (lambda run: rl_lab.load(run, "env.size"), "'env.size' sets nothing; write setting=value"),
        (lambda run: rl_lab.load(run, "--help"), "'--help' sets nothing; write setting=value"),
        (lambda run: rl_lab.load(run, "env.num_envs=3"), "'env.num_envs=3' is no setting of the run, but an argument; write num_envs=... outside the quotes"),
        (lambda run: rl_lab.load(run, "seed=3"), "'seed=3' is no setting of the run, but an argument; write seed=... outside the quotes"),
        (lambda run: rl_lab.load(None), "each run is the path of its folder, a pattern of paths or wandb:<entity>/<project>/<run>, and None is not one"),
        (lambda run: rl_lab.load([run]), "is a list; a * before it"),
        (lambda run: rl_lab.evaluate(run, "episodes=5"), "'episodes=5' is no setting of the run, but an argument"),
        (lambda run: rl_lab.evaluate(run, "+episodes=5"), "but an argument; write episodes=... outside the quotes"),
        (lambda run: rl_lab.evaluate(run, "loop.total_steps=5"), "'loop.total_steps=5' would be ignored, as nothing is trained; leave it out"),
        (lambda run: rl_lab.evaluate(run, "device=cpu"), "'device=cpu' is no setting of the run, but an argument"),
        (lambda run: gen_lab.evaluate(run, "iwae_samples=5"), "'iwae_samples=5' is no setting of the run"),
        (lambda run: rl_lab.train(["agent=dqn"]), "and ['agent=dqn'] is a list; a * before it gives them one by one"),
        (lambda run: gen_lab.train(None), 'each setting is a text, "setting=value", and None is not one'),
        (lambda run: rl_lab.train(""), "and '' is not one"),
        (lambda run: rl_lab.build(["env=windy"]), "is a list; a * before it"),
        (lambda run: rl_lab.build("-m", "env=windy"), "'-m' sets nothing; write setting=value"),
        (lambda run: rl_lab.build("study=gridworlds"), "study=gridworlds is for the command line, rl-lab train; build makes one environment"),
        (lambda run: rl_lab.build("env=gym", "env.id=CartPol-v1", "agent=dqn_mlp"), "did you mean CartPole"),
        (lambda run: rl_lab.build("env=four_rooms", "env.mdp.map=nothere.txt", "agent=dqn"), "nothere.txt"),
        (lambda run: rl_lab.build(f"run={run}"), "is a run that is there: load opens it"),
        (lambda run: rl_lab.build("planner=value_iteration"), "planner=value_iteration takes no agent that could be built; leave it out"),
        (lambda run: rl_lab.build("experiment=value_iteration_four_rooms"), "planner=value_iteration takes no agent"),
        (lambda run: rl_lab.metrics(), "which run? name its folder"),
        (lambda run: rl_lab.metrics(None), "and None is not one"),
        (lambda run: rl_lab.metrics([run]), "is a list; a * before it"),
        (lambda run: rl_lab.metrics(f"{run}*/nothing*"), "no run folder"),
        (lambda run: rl_lab.metrics(run, settings=5), "no setting '5'"),
        (lambda run: gen_lab.frame("wandb:x"), "wandb:x names no run; write run=wandb:<entity>/<project>/<run>"),
        (lambda run: rl_lab.compare(None), "and None is not one"),
        (lambda run: rl_lab.film(run, out=3), "out=3 must be a path"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(planned, mistake, words):
    with pytest.raises(UserError) as error:
        mistake(planned)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: rl_lab.train("experiment=nope"),
        lambda: gen_lab.train("agent=dqn"),
        lambda: rl_lab.build("agent.gamm=1"),
        lambda: rl_lab.build("env=windy,taxi"),
        lambda: rl_lab.build("env=gym", "env.id=CartPol-v1", "agent=dqn_mlp"),
        lambda: rl_lab.build("agent=sb3_dqn"),
        lambda: rl_lab.build("env.mdp.map=a(b"),
    ],
)
def test_a_mistake_shows_no_error_of_hydra_above_it(mistake):
    with pytest.raises(UserError) as error:
        mistake()
    assert "UserError: " in (shown := "".join(traceback.format_exception(error.value)))
    assert "The above exception" not in shown and "During handling" not in shown


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    """It was taken for an agent that another loop trains."""

    def broken(*args, **kwargs):
        raise TypeError("a fault of ours")

    monkeypatch.setattr("rl_lab.agents.random.generator", broken)
    with pytest.raises(TypeError, match="a fault of ours"):
        rl_lab.build("env=windy", "agent=random")


def test_what_is_built_is_what_any_loop_takes():
    """A crew's environments are a list."""
    env, agent = rl_lab.build("loop=crew", "env=cartpole", "env.num_envs=2", "agent=a2c")
    assert agent.act(env.reset(seed=0)).shape == (2,)
    env.close()


def test_runs_are_named_by_patterns_and_settings_by_one_word(planned, monkeypatch):
    monkeypatch.chdir(planned.parent)
    by_folder = rl_lab.metrics("run", settings=["env.time_limit"])
    assert by_folder and rl_lab.metrics("r?n", settings="env.time_limit") == by_folder
    assert gen_lab.metrics("ru*", settings="env.time_limit") == by_folder
    assert rl_lab.compare("r*")[0]["seeds"] == 1
    assert rl_lab.load(planned.parent).folder == planned, "a folder that holds one run stands for it"


def test_numbers_of_numpy_and_devices_of_torch_are_taken(planned):
    player = rl_lab.load(planned, num_envs=np.int64(2), seed=np.int32(3), device=torch.device("cpu"))
    assert player.env.device == torch.device("cpu")
    player.env.close()


@pytest.fixture(scope="module")
def player(planned):
    player = rl_lab.load(planned, num_envs=1, device="cpu")
    yield player
    player.env.close()


@pytest.mark.parametrize(
    ("obs", "given"),
    [
        (lambda obs: obs[0], "tensor float32 [12]; torch.as_tensor(obs)[None] is one"),
        (lambda obs: obs.double(), "tensor float64 [1, 12]; torch.as_tensor(obs).to(torch.float32) is one"),
        (lambda obs: obs[:, :3], "tensor float32 [1, 3]"),
        (lambda obs: obs.numpy(), "ndarray float32 [1, 12]; torch.as_tensor(obs) is one"),
        (lambda obs: None, "NoneType"),
    ],
)
def test_a_player_acts_on_observations_of_its_environment_alone(player, obs, given):
    seen = obs(player.env.reset(seed=0))
    for use in player.act, player.view:
        with pytest.raises(UserError) as error:
            use(seen)
        wanted = "obs must be a tensor float32 [N, 12], as env.reset and env.step give it, and is "
        assert str(error.value) == f"{wanted}{given}"


def test_a_view_of_another_kind_is_refused(player):
    class Blind(type(player.agent)):
        def view(self, obs):
            return {}

    agent = Blind.__new__(Blind)
    vars(agent).update(vars(player.agent))
    with pytest.raises(UserError, match=r"Blind.view gives dict, and must give rl_lab.types.View\(bars, value, kind\)"):
        player._replace(agent=agent).view(player.env.reset(seed=0))


def test_a_step_before_the_reset_blames_no_environment():
    env, _ = rl_lab.build("env=cartpole", "agent=random")
    with pytest.raises(UserError, match=r"env.id=CartPole-v1: reset\(seed=0\) comes before step\(\)"):
        env.step(torch.zeros(env.num_envs, dtype=torch.long))


@pytest.mark.parametrize(
    ("action", "given"),
    [
        ([0], "list"),
        (torch.tensor(0), "tensor int64 []"),
        (torch.tensor([0, 1]), "tensor int64 [2]"),
        (torch.tensor([0.0]), "tensor float32 [1]"),
        (torch.tensor([True]), "tensor bool [1]"),
        (torch.tensor([4]), "[4]"),
        (torch.tensor([-1]), "[-1]"),
    ],
)
def test_the_environment_of_a_player_takes_its_actions_alone(player, action, given):
    player.env.reset(seed=0)
    with pytest.raises(UserError) as error:
        player.env.step(action)
    assert str(error.value).startswith("action must be a tensor int64 [1] of 0 to 3 (") and "\n" not in str(error.value)
    assert str(error.value).endswith(f"), and is {given}")


def test_the_environment_of_a_player_is_the_run_s_own(player):
    """What a world offers is asked by its members, and a copy goes its own way."""
    assert isinstance(player.env, Tabular) and type(player.env).__name__ == "MDPEnv"
    player.env.reset(seed=0)
    apart = copy.deepcopy(player.env)
    before = player.env.observe()
    apart.step(torch.tensor([0], dtype=torch.int32))
    assert torch.equal(player.env.observe(), before)
    with pytest.raises(UserError, match="seed=x must be a whole number"):
        player.env.reset(seed="x")
