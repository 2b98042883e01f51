"""Anyone's agent in a world of ours: exact figures in known worlds, honest ones elsewhere, a line where it is none."""

import json
import sys
import textwrap

import numpy as np
import pytest
import stable_baselines3
import torch

from rl_lab.__main__ import COMMANDS
from rl_lab.core import folders
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.core.launching.building import built
from rl_lab.planning import Regret
from rl_lab.playing.guests import Guest, actions, distributions
from rl_lab.playing.player import load

MINE = """
    import numpy as np
    import torch

    class Right:  # in the corridor of four cells below the best there is
        def act(self, obs):
            return np.ones(len(obs), int)

    class Coin:
        def __init__(self, spec, device, seed):
            self.num_actions, self.rng = spec.num_actions, torch.Generator().manual_seed(seed)

        def act(self, obs):
            return torch.randint(self.num_actions, (len(obs),), generator=self.rng)

    class FairCoin(Coin):
        def probabilities(self, obs):
            return torch.full((len(obs), self.num_actions), 1 / self.num_actions)

    class Lists(Right):
        def act(self, obs):
            return [1] * len(obs)

    class Far(Right):
        def act(self, obs):
            return np.full(len(obs), 4)

    class Halves(Right):
        def act(self, obs):
            return np.full(len(obs), 0.5)

    class One(Right):
        def act(self, obs):
            return 1

    class Breaks(Right):
        def act(self, obs):
            return obs.no_such

    class Odd(Coin):
        def probabilities(self, obs):
            return torch.full((len(obs), self.num_actions), 0.3)

    class Picky(Right):
        def __init__(self, depth):
            self.depth = depth

    class Fails(Right):
        def __init__(self):
            raise ValueError("no model here")

    class Mute:
        pass

    def function(obs):
        return obs
"""
CORRIDOR = ["env=four_rooms", "env.mdp.map='S..G'", "env.mdp.noise=0", "env.mdp.gamma=0.5", "env.time_limit=20"]


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, ["evaluate", "device=cpu", *arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with modules, tables and models of somebody else."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mine_of_someone.py").write_text(textwrap.dedent(MINE))
    (folder / "broken_of_someone.py").write_text("import no_such_module_at_all\n")
    (folder / "other.zip").write_text("no zip")
    env, _ = built("rl", CORRIDOR, "env")
    states, count = env[0].mdp.next_state.shape[:2]
    uniform, low, missing = (
        np.full((states, count), 0.25),
        np.full((states, count), 0.25),
        np.full((states, count), 0.25),
    )
    low[2], missing[1, 1] = (1.25, -0.25, 0, 0), np.nan
    np.savez(folder / "uniform", uniform)
    np.savez(folder / "right", policy=np.ones(states, int), q=np.zeros((states, count)))
    np.savez(folder / "far", np.full(states, 4))
    np.savez(folder / "below", low)
    np.savez(folder / "missing", missing)
    np.savez(folder / "sums", uniform * 1.2)
    np.savez(folder / "shape", uniform[:, :3])
    np.savez(folder / "two", a=uniform, b=uniform)
    np.savez(folder / "object", np.array([{}], dtype=object))
    settings = {"device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, **settings).learn(8).save(
        folder / "cart"
    )
    stable_baselines3.DQN("MlpPolicy", "FrozenLake-v1", buffer_size=10, **settings).save(folder / "lake")
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return home


def found(home, name: str) -> dict:
    return json.loads((home / name / "evaluation.json").read_text())["scores"]


def test_a_class_is_judged_exactly_and_leaves_a_row(here, capsys):
    assert rl_lab("agent=mine_of_someone:Right", *CORRIDOR, "out=right", "episodes=32") == 0
    scores = found(here, "right")
    assert scores == {
        "eval/return": 1.0,
        "eval/return_se": 0.0,
        "eval/length": 3.0,
        "eval/regret": 0.0,
        "eval/value": 0.25,
    }
    assert "exact value 0.25, of the optimum 0.25" in capsys.readouterr().out
    run = folders.read_run(here / "right")
    assert (run.name, run.finished, run.choices) == ("Right", True, {"env": "four_rooms", "agent": "Right"})
    assert run.curves["eval/value"].values.tolist() == [0.25] and run.settings["env.mdp.map"] == "S..G"
    with pytest.raises(UserError, match="holds what was found of a guest"):
        load(here / "right", max_envs=1, device="cpu")


def test_who_draws_is_judged_by_its_probabilities_alone(here, capsys):
    assert rl_lab("agent=mine_of_someone:Coin", *CORRIDOR, "out=coin") == 0
    assert "eval/regret is left out: Coin.act answers one observation in two ways" in capsys.readouterr().err
    assert "eval/regret" not in found(here, "coin")
    assert rl_lab("agent=mine_of_someone:FairCoin", *CORRIDOR, "out=fair") == 0
    assert rl_lab("policy=uniform.npz", *CORRIDOR, "out=uniform") == 0
    # v = (1 + v right + 3 v stay, left or up and down) of three cells: v1 = (3 v1 + v2) / 8, and so on
    a = np.array([[1 - 3 / 8, -1 / 8, 0], [-1 / 8, 1 - 2 / 8, -1 / 8], [0, -1 / 8, 1 - 2 / 8]])
    value = np.linalg.solve(a, [0, 0, 1 / 4])[0]
    for name in ("fair", "uniform"):
        assert found(here, name)["eval/value"] == pytest.approx(value, abs=1e-12)
        assert found(here, name)["eval/regret"] == pytest.approx(0.25 - value, abs=1e-12)


def test_a_table_of_actions_is_the_policy_of_an_npz_that_holds_more(here):
    assert rl_lab("policy=right.npz", *CORRIDOR, "out=table", "episodes=1") == 0
    assert found(here, "table")["eval/return_se"] is None and found(here, "table")["eval/regret"] == 0


def test_a_model_of_sb3_is_evaluated_with_a_warning(here, capsys):
    assert (
        rl_lab(
            "agent=sb3", "agent.path=lake.zip", "agent.algorithm=dqn", "env=frozen_lake", "env.obs=index", "out=lake"
        )
        == 0
    )
    assert "lake.zip is loaded because you named it: such a zip can run code" in capsys.readouterr().err
    env, _ = built("rl", ["env=frozen_lake", "env.obs=index"], "env")
    chosen, _ = stable_baselines3.DQN.load(here / "lake.zip").predict(np.arange(16), deterministic=True)
    policy, regret = torch.from_numpy(chosen), Regret(env[0].mdp, env[0].time_limit)
    assert found(here, "lake")["eval/regret"] == pytest.approx(regret(policy), abs=1e-12)
    assert (
        rl_lab("agent=sb3", "agent.path=cart.zip", "agent.algorithm=PPO", "env=cartpole", "out=cart", "episodes=8") == 0
    )
    assert folders.read_run(here / "cart").curves["eval/return"].steps.tolist() == [8]
    assert "eval/regret" not in found(here, "cart")


def test_a_film_shows_the_guest_beside_the_optimum(here, capsys):
    assert rl_lab("agent=mine_of_someone:FairCoin", *CORRIDOR, "out=film", "film=true", "episodes=2") == 0
    assert "film/videos/FairCoin_step0.mp4" in capsys.readouterr().out
    import av

    with av.open(str(here / "film/videos/FairCoin_step0.mp4")) as file:
        film = file.streams.video[0]
        assert film.width > 1.5 * film.height  # two boards, the panels below


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["agent=mine_of_someone:Mute"], "agent=mine_of_someone:Mute: Mute has no act(obs), which gives an action for each of N"),
        (["agent=mine_of_someone:Rigth"], "agent=mine_of_someone:Rigth: mine_of_someone has no Rigth; did you mean Right?"),
        (["agent=mine_of_someone:function"], "agent=mine_of_someone:function: function is no class"),
        (["agent=mine_of_someone:Picky"], "Picky must be built without arguments, or with (spec, device, seed)"),
        (["agent=mine_of_someone:Fails"], "Fails() failed (ValueError: no model here, mine_of_someone.py line 5"),
        (["agent=mine_of_someone:Breaks"], "Breaks.act failed (AttributeError: 'Tensor' object has no attribute 'no_such'"),
        (["agent=mine_of_someone:Far"], "Far.act gives action 4, and there are actions 0 to 3"),
        (["agent=mine_of_someone:Halves"], "Halves.act gives float64, and actions are whole numbers"),
        (["agent=mine_of_someone:One"], "One.act is given 32 observations at once and must return 32 actions, of the shape [32]; it returned []"),
        (["agent=mine_of_someone:Odd"], "Odd.probabilities: row 0 sums to 1.2, and probabilities sum to 1"),
        (["agent=broken_of_someone:Any"], "agent=broken_of_someone:Any: broken_of_someone needs no_such_module_at_all; pip install"),
        (["agent=no_such_of_someone:Any"], "agent=no_such_of_someone:Any: no module no_such_of_someone, neither installed nor in"),
        (["agent=dqn"], "agent=dqn is one of the lab's own, and learns first: rl-lab train agent=dqn env=..., then run=<its folder> here"),
        (["agent=mine"], "agent=mine names no class; write agent=<module>:<class>, or agent=sb3"),
        (["agent=a:b", "policy=uniform.npz"], "who? one of agent=my_agent:Mine, agent=sb3 agent.path=model.zip, policy=<npz>"),
        (["agent=a:b", "agent.path=cart.zip"], "agent.path and agent.algorithm are for agent=sb3"),
        (["agent=a:b", "+agent.pth=x"], "no setting 'agent.pth'"),
        (["agent=a:b", "film=true"], "a film needs a folder: film=true out=runs/mine"),
        (["agent=a:b", "out=."], "out=. is not empty; choose a new folder"),
        (["agent=sb3"], "agent=sb3 needs agent.path=model.zip and agent.algorithm=PPO"),
        (["agent=sb3", "agent.path=cart.zip", "agent.algorithm=SAC"], "agent.algorithm=SAC is not a choice"),
        (["agent=sb3", "agent.path=none.zip", "agent.algorithm=PPO"], "agent.path=none.zip is no file"),
        (["agent=sb3", "agent.path=other.zip", "agent.algorithm=PPO"], "agent.path=other.zip is no zip of Stable-Baselines3"),
        (["agent=sb3", "agent.path=cart.zip", "agent.algorithm=DQN"], "agent.path=cart.zip is no model of agent.algorithm=DQN ("),
        (["agent=sb3", "agent.path=cart.zip", "agent.algorithm=PPO"], "it chooses from Discrete(2), and this world has 4 actions"),
        (["agent=sb3", "agent.path=cart.zip", "agent.algorithm=3", "env=cartpole"], "agent.algorithm=3 must be a text"),
        (["agent=sb3", "agent.path=cart.zip", "agent.algorithm=PPO", "env=collect"], "agent.path=cart.zip is a model of another environment: "),
        (["agent=sb3", "agent.path=lake.zip", "agent.algorithm=DQN"], "it observes Discrete(16), and this world has (4,) numbers; env.obs=index"),
        (["agent=sb3", "agent.path=lake.zip", "agent.algorithm=DQN", "env.obs=index"], "it observes Discrete(16), and this world has 4 states"),
        (["policy=far.npz"], "policy=far.npz gives action 4, and there are actions 0 to 3"),
        (["policy=below.npz"], "policy=below.npz: row 2 holds a probability below 0"),
        (["policy=missing.npz"], "policy=missing.npz: row 1 holds NaN"),
        (["policy=sums.npz"], "policy=sums.npz: row 0 sums to 1.2, and probabilities sum to 1"),
        (["policy=shape.npz"], "policy=shape.npz is [4, 3], and this world's 4 states and 4 actions want [4] or [4, 4]"),
        (["policy=two.npz"], "policy=two.npz holds a, b; call the array to use policy"),
        (["policy=object.npz"], "policy=object.npz cannot be read as an npz of numbers (Object arrays"),
        (["policy=nowhere.npz"], "policy=nowhere.npz is no file"),
        (["policy=other.zip"], "policy=other.zip is no npz, as numpy.savez writes it"),
        (["policy=uniform.npz", "env=cartpole"], "policy=uniform.npz needs a world of known states, such as env=four_rooms"),
    ],
)  # fmt: skip
def test_what_is_no_agent_is_a_line(here, capsys, arguments, line):
    world = [] if any(a.startswith("env=") for a in arguments) else CORRIDOR
    assert rl_lab(*world, *arguments) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1 + ("is loaded because" in said)


def test_guests_need_a_world_and_runs_have_their_own(here, capsys):
    assert rl_lab("agent=mine_of_someone:Right") == 2
    assert "in which world? rl-lab evaluate agent=my_agent:Mine env=four_rooms" in capsys.readouterr().err
    assert rl_lab("run=.", "agent=mine_of_someone:Right", *CORRIDOR[:1]) == 2
    assert "evaluate runs, or one guest in one world" in capsys.readouterr().err
    assert rl_lab("run=.", "film=true") == 2
    assert "rl-lab render films a run" in capsys.readouterr().err


def test_a_contradiction_is_seen_between_batches_and_within_one():
    (env,), _ = built("rl", CORRIDOR, "env")

    class Told:
        def __init__(self, *answers):
            self.answers = [*answers]

        def act(self, obs):
            return self.answers.pop(0)

    for answers, contradicts in ((([1, 1], [1, 1]), False), (([1, 1], [0, 0]), True), (([1, 0],), True)):
        guest = Guest(Told(*answers), env, "Told")
        for _ in answers:
            guest.act(env.all_observations()[:1].expand(2, -1))
        assert guest.contradicts is contradicts


def test_what_is_looked_at():
    assert actions(np.int64(1), 1, 2, "x").tolist() == [1] and actions([0, 1], 2, 2, "x").dtype == torch.int64
    assert distributions([[0.5, 0.500001]], (1, 2), "x").sum().item() == 1
    with pytest.raises(UserError, match="x gives str, not 2 actions"):
        actions("up", 2, 2, "x")
