"""Fitted Q iteration: exact where the regression is, the forest scikit-learn's own, and policies that are good."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesRegressor
from stated import stated
from tiers import later
from transitions import transition

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.fitted_q import Forest, LeastSquares, fitted_q, forest_of
from rl_lab.core.launching import cli
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.networks.torsos import linear
from rl_lab.types import Spec, Transition

ExtraTrees = stated("agent/fitted_q_trees")
Network = stated("agent/fitted_q_mlp")
gridworld = stated("env/base/gridworld", "mdp")
mlp = stated("agent/fitted_q_mlp", "network")
q_iteration = stated("planner/q_iteration")
toy_text = stated("env/frozen_lake", "mdp", options=None)

CPU = torch.device("cpu")
ROOM = "S..#...\n...#...\n......G\n...#..."


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


def spec(size: int, actions: int) -> Spec:
    return Spec((size,), torch.float32, tuple(map(str, range(actions))))


def everything(mdp: MDP) -> tuple[Transition, torch.Tensor]:
    """Each possible transition once, one-hot, and its probability as a weight."""
    state, action, which = (mdp.probability * ~mdp.terminal[:, None, None]).nonzero(as_tuple=True)
    successor, obs = mdp.next_state[state, action, which], torch.eye(len(mdp.start))
    ends = mdp.terminal[successor]
    batch = transition(obs[state], action, mdp.reward[state, action, which], 1.0 - ends.double(), ends, obs[successor])
    return batch, mdp.probability[state, action, which]


# -- exactness


@pytest.mark.parametrize(
    ("mdp", "value"),
    [
        (toy_text("FrozenLake-v1", options={"map_name": "4x4", "is_slippery": True}, gamma=0.99), 0.542026),
        (gridworld(ROOM, rewards={"G": 1.0}, gamma=0.9), 0.9**7),
    ],
    ids=["by probability", "deterministic"],
)
def test_on_all_transitions_it_is_q_iteration(mdp, value):
    batch, weight = everything(mdp)
    table = LeastSquares(spec(len(mdp.start), len(mdp.actions)), CPU, 0)
    if (weight == 1).all():
        weight = None
    iterates, sweeps = fitted_q(batch, table, mdp.gamma, weight), 0
    for plan in q_iteration(mdp, epsilon=1e-9):
        next(iterates)
        sweeps += 1
        assert torch.allclose(table.weight.T, plan.q, rtol=0, atol=1e-9)
    assert sweeps > 5
    assert float(mdp.start @ table.predict(torch.eye(len(mdp.start))).max(-1).values) == pytest.approx(value, abs=1e-6)


def test_by_hand():
    """A state that pays 1 and stays, gamma 1/2, and one that ends with 3: Q_k = 2 - 2^(1 - k), and 3."""
    obs = torch.eye(2)
    batch = transition(obs, torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0]),
                       torch.tensor([False, True]), obs)  # fmt: skip
    iterates = fitted_q(batch, LeastSquares(spec(2, 1), CPU, 0), 0.5)
    found = [next(iterates) for _ in range(3)]
    assert [x.q.tolist() for x in found] == [[1, 3], [1.5, 3], [1.75, 3]]
    assert [float(x.change) for x in found] == [3, 0.5, 0.25]
    assert [float(x.residual) for x in found] == pytest.approx([0.5 / 2**0.5, 0.25 / 2**0.5, 0.125 / 2**0.5])


def test_least_squares():
    """Weighted means where rows repeat, a line where they do not, 0 for what was never seen."""
    table = LeastSquares(spec(3, 2), CPU, 0)
    obs = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    table.fit(obs, torch.tensor([0, 0, 1]), torch.tensor([1.0, 4, 7]).double(), torch.tensor([2.0, 1, 5]).double())
    assert torch.allclose(table.predict(torch.eye(3)), torch.tensor([[2.0, 0], [0, 7], [0, 0]]).double())
    line = LeastSquares(spec(2, 1), CPU, 0)
    x = torch.tensor([[0.0, 1], [1, 1], [2, 1]])
    line.fit(x, torch.zeros(3, dtype=torch.int64), torch.tensor([1.0, 2, 6]).double(), torch.ones(3).double())
    assert line.weight.tolist()[0] == pytest.approx([2.5, 0.5])


# -- regressors


def sample(seed: int, rows: int = 400) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    obs, action = torch.randn(rows, 3, generator=rng), torch.randint(3, (rows,), generator=rng)
    target = (obs[:, 0] * (action - 1) + obs[:, 1] ** 2).double()
    return obs, action, target, torch.rand(rows, generator=rng).double()


def test_the_forest_is_scikit_learns():
    obs, action, target, weight = sample(0)
    trees = ExtraTrees(spec(3, 3), CPU, 7, trees=20, min_samples_split=4, max_features=0.5)
    model = ExtraTreesRegressor(20, min_samples_split=4, max_features=0.5, random_state=7)
    model.fit(torch.cat([obs, action[:, None]], 1).numpy(), target.numpy(), weight.numpy())
    trees.fit(obs, action, target, weight)
    new = sample(1)[0]
    found = trees.predict(new)
    for a in range(3):
        expected = model.predict(np.column_stack([new.numpy(), np.full(len(new), a)]))
        assert np.abs(found[:, a].numpy() - expected).max() < 1e-12
    walked = Forest(*trees.forest)._replace(depth=trees.forest[-1] - 1).predict(torch.cat([obs, action[:, None]], 1))
    assert not torch.equal(walked, forest_of(model).predict(torch.cat([obs, action[:, None]], 1)))  # its depth is least


def test_what_equals_the_threshold_goes_left():
    leaf, long = torch.zeros(3).double(), torch.int64
    stump = Forest(torch.zeros(3, dtype=long), leaf + 0.5, torch.tensor([[1, 2], [1, 1], [2, 2]]),
                   torch.tensor([0.0, 10, 20]).double(), torch.zeros(1, dtype=long), 1)  # fmt: skip
    assert stump.predict(torch.tensor([[0.5], [0.6]])).tolist() == [10, 20]


def test_trees_travel_as_tensors(tmp_path):
    trees, again = (ExtraTrees(spec(3, 3), CPU, seed, trees=5) for seed in (0, 1))
    obs, *rest = sample(0)
    trees.fit(obs, *rest)
    torch.save(trees.state_dict(), tmp_path / "x.pt")
    again.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    assert torch.equal(trees.predict(obs), again.predict(obs)) and again.fits == 1


@pytest.mark.parametrize("field", ["feature", "child", "root", "threshold"])
def test_trees_of_something_else_are_refused(field):
    trees = ExtraTrees(spec(3, 3), CPU, 0, trees=5)
    trees.fit(*sample(0))
    forest = Forest(*trees.forest)
    wrong = (
        forest.threshold[:-1] if field == "threshold" else getattr(forest, field) + (4 if field == "feature" else 10**6)
    )
    with pytest.raises(ValueError, match="not of these observations"):
        trees.load_state_dict({"forest": tuple(forest._replace(**{field: wrong})), "fits": 1})


def test_network_is_trained_until_it_fits():
    """A linear one on two states and two actions, whose weights are all but ignored where they are 0."""
    net = Network(spec(2, 2), CPU, 0, network=linear, optimizer=torch.optim.Rprop, max_epochs=500, tolerance=1e-3)
    obs, action = torch.eye(2)[[0, 0, 1, 1, 1]], torch.tensor([0, 1, 0, 1, 1])
    net.fit(obs, action, torch.tensor([1.0, -2, 3, 5, 9]).double(), torch.tensor([1.0, 1, 1, 1, 0]).double())
    assert torch.allclose(net.predict(torch.eye(2)), torch.tensor([[1.0, -2], [3, 5]]), atol=0.02)


@pytest.mark.parametrize("warm", [True, False])
def test_a_cold_network_forgets(warm):
    obs, action, target, weight = sample(0)
    net = Network(spec(3, 3), CPU, 0, network=mlp, optimizer=torch.optim.Rprop, max_epochs=1, patience=1, warm=warm)
    losses = []
    for _ in range(30):
        net.fit(obs, action, target, weight)
        q = net.predict(obs)[torch.arange(len(obs)), action]
        losses.append(float((q - target).square().mean()))
    assert (losses[-1] < 0.3 * losses[0]) == warm


# -- the loop

TINY = "tracker=none", "device=cpu", "loop.eval_episodes=32"


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last(folder: Path) -> dict:
    return {name: x for name, x in rows(folder)[-1].items() if name != "seconds"}


def test_from_a_recording(tmp_path, capsys):
    data, folder = tmp_path / "data", tmp_path / "run"
    assert rl_lab("record", "env=russell_norvig", "steps=4000", f"out={data}", "device=cpu") == 0
    common = [*TINY, "experiment=fitted_q_russell_norvig", "agent=fitted_q_linear", f"loop.data={data}"]
    assert rl_lab("train", *common, f"hydra.run.dir={folder}") == 0
    assert last(folder)["eval/regret"] < 0.02 * 0.7053
    assert rl_lab("train", *common, "env=four_rooms", f"hydra.run.dir={tmp_path / 'no'}") == 2
    assert "has observations [12], and this environment [104]" in capsys.readouterr().err
    assert rl_lab("train", *common, "loop.data=nowhere", f"hydra.run.dir={tmp_path / 'no'}") == 2
    assert "nowhere is not a recording: it has no recording.json; rl-lab record makes one" in capsys.readouterr().err


@pytest.mark.parametrize("agent", ["fitted_q_trees", "fitted_q_mlp", "fitted_q_linear"])
def test_a_longer_run_goes_on(agent, tmp_path):
    common = [*TINY, "experiment=fitted_q_russell_norvig", f"agent={agent}", "loop.random_steps=500"]
    common += ["agent.max_epochs=5"] if agent == "fitted_q_mlp" else []
    for name, iterations in {"a": 3, "b": 6}.items():
        arguments = [*common, f"hydra.run.dir={tmp_path / name}", f"loop.iterations={iterations}"]
        assert rl_lab("train", *arguments) == 0
    assert rl_lab("train", f"run={tmp_path / 'a'}", "loop.iterations=6") == 0
    assert last(tmp_path / "a") == last(tmp_path / "b")


@pytest.mark.parametrize("agent", later(["fitted_q_trees", "fitted_q_mlp", "fitted_q_linear"], "fitted_q_trees"))
def test_its_policy_is_the_best(agent, tmp_path):
    """From random episodes of Russell and Norvig's world, whose start is worth .7053."""
    common = [*TINY, "experiment=fitted_q_russell_norvig", f"agent={agent}", f"hydra.run.dir={tmp_path}"]
    common += ["loop.iterations=20", "loop.eval_every=20"]
    common += ["agent.trees=20"] if agent == "fitted_q_trees" else []
    assert rl_lab("train", *common) == 0
    assert last(tmp_path)["eval/regret"] < 0.02 * 0.7053


def test_a_player_reads_its_run(tmp_path):
    assert rl_lab("train", *TINY, "experiment=fitted_q_russell_norvig", "loop.random_steps=500", "loop.iterations=3",
                  f"hydra.run.dir={tmp_path}") == 0  # fmt: skip
    assert rl_lab("evaluate", f"run={tmp_path}", "episodes=5", "device=cpu") == 0
    assert rl_lab("render", f"run={tmp_path}", "tracker=none", f"out={tmp_path / 'x.png'}", "device=cpu") == 0
    assert rl_lab("record", f"run={tmp_path}", "episodes=5", "device=cpu") == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_trees_balance_the_pole(seed, tmp_path):
    """From five thousand random steps, 22 to an episode."""
    assert rl_lab("train", *TINY, "experiment=fitted_q_cartpole", f"seed={seed}", f"hydra.run.dir={tmp_path}") == 0
    assert last(tmp_path)["eval/return"] > 150
