"""The worlds of conf/env by their published values."""

from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from scipy.stats import poisson
from stated import stated
from torch import Tensor

from rl_lab.core import checking
from rl_lab.core.launching import composition
from rl_lab.envs.tabular.mdp import MDP, checked

car_rental = stated("env/car_rental", "mdp")
gambler = stated("env/gambler", "mdp")
toy_text = stated("env/frozen_lake", "mdp", options=None)

CONF = composition.conf_dir()
NAMES = sorted(p.stem for p in (CONF / "env").glob("*.yaml"))
UNKNOWN = "atari", "gym", "cartpole", "acrobot", "mountain_car", "lunar_lander"  # whose model nobody wrote down
WORLDS = [
    name
    for name in NAMES
    if name not in (*UNKNOWN, "mdp_file") and not name.startswith("collect") and not name.endswith("_tensor")
]
FROZEN = "frozen_lake"


def build(name: str, *overrides: str) -> MDP:
    """The world of a YAML, as a run would have it."""
    node = composition.compose(CONF, "rl", [f"env={name}", "device=cpu", *overrides]).env
    checking.check(node, "env")
    return hydra.utils.instantiate(node).mdp


def backup(mdp: MDP, v: Tensor, gamma: float) -> Tensor:
    return (mdp.probability * (mdp.reward + gamma * v[mdp.next_state])).sum(-1)


def sweeps(mdp: MDP, count: int, gamma: float | None = None) -> tuple[Tensor, Tensor]:
    """v [S] and q [S, A] after that many synchronous sweeps from 0, or as soon as they change nothing."""
    v, old = torch.zeros_like(mdp.start), None
    for _ in range(count):
        q = backup(mdp, v, mdp.gamma if gamma is None else gamma)
        old, v = v, q.amax(-1)
        if torch.equal(old, v):
            break
    return v, q


def value_of(mdp: MDP, policy: Tensor, gamma: float | None = None) -> Tensor:
    """v [S] of probabilities [S, A], by a dense solve."""
    gamma = mdp.gamma if gamma is None else gamma
    weight = (policy[..., None] * mdp.probability)[~mdp.terminal]
    live = len(weight)
    p = torch.zeros(live, len(mdp.start), dtype=torch.float64)
    p.scatter_add_(1, mdp.next_state[~mdp.terminal].flatten(1), weight.flatten(1))
    v = torch.zeros_like(mdp.start)
    v[~mdp.terminal] = torch.linalg.solve(
        torch.eye(live, dtype=torch.float64) - gamma * p[:, ~mdp.terminal],
        (weight * mdp.reward[~mdp.terminal]).sum((1, 2)),
    )
    return v


def optimal(mdp: MDP, gamma: float | None = None) -> Tensor:
    return sweeps(mdp, 3_000, gamma)[0]


def uniform(mdp: MDP) -> Tensor:
    states, actions, _ = mdp.next_state.shape
    return torch.full((states, actions), 1 / actions, dtype=torch.float64)


def first_best(mdp: MDP, gamma: float | None = None) -> Tensor:
    """The first of the best actions [S, A], ties within 1e-12."""
    q = sweeps(mdp, 3_000, gamma)[1]
    return torch.nn.functional.one_hot((q >= q.amax(-1, keepdim=True) - 1e-12).int().argmax(-1), q.shape[1]).double()


def after(mdp: MDP, policy: Tensor, steps: int) -> Tensor:
    """Where a policy [S, A] is after so many steps, [S]."""
    at = mdp.start
    for _ in range(steps):
        flow = at[:, None, None] * policy[..., None] * mdp.probability
        at = torch.zeros_like(at).index_add_(0, mdp.next_state.flatten(), flow.flatten())
    return at


def numbers(text: str) -> Tensor:
    return torch.tensor([float(word) for word in text.replace("/", " ").split()], dtype=torch.float64)


def same(v: Tensor, text: str, atol: float = 5.1e-5) -> None:
    torch.testing.assert_close(v[: len(numbers(text))], numbers(text), atol=atol, rtol=0)


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_is_an_mdp(name):
    mdp = build(name)
    assert checked(mdp, name) is mdp
    if mdp.layout:
        states, cells = len(mdp.start), mdp.layout.cells
        assert states - len(cells) in (0, 1) and len(set(cells)) == len(cells)
        assert set(mdp.layout.ends) <= set(mdp.layout.cell_reward) <= set(cells)
        assert {cells[s] for s in mdp.terminal.nonzero().flatten().tolist() if s < len(cells)} <= mdp.layout.ends


# -- Russell and Norvig, Berkeley, Sutton and Barto


@pytest.mark.parametrize(
    ("name", "gamma", "values"),
    [
        ("russell_norvig", 1.0, ".8116 .8678 .9178 1 / .7616 .6603 -1 / .7053 .6553 .6114 .3879"),
        ("russell_norvig_transition", 1.0, ".8516 .9078 .9578 0 / .8016 .7003 0 / .7453 .6953 .6514 .4279"),
        ("russell_norvig", 0.9, ".5094 .6496 .7954 1 / .3985 .4864 -1 / .2965 .2540 .3448 .1299"),
        ("russell_norvig", 0.99, ".7762 .8439 .9051 1 / .7166 .6413 -1 / .6507 .5927 .5601 .3380"),
    ],
)
def test_russell_and_norvig(name, gamma, values):
    mdp = build(name)
    assert mdp.gamma == 1.0
    same(optimal(mdp, gamma), values)


def test_russell_and_norvig_policy():
    mdp = build("russell_norvig")
    q = sweeps(mdp, 200)[1]
    other = sweeps(build("russell_norvig_transition"), 200)[1]
    same(other[9], ".6325 .4375 .5935 .6514")  # (3, 1): up, right, down, left
    same(q[9], ".5925 .3975 .5535 .6114")  # less the cost of living in the state
    letters = "".join("NESW"[a] for a in q.argmax(-1)[[7, 4, 0, 1, 2, 5, 8, 9, 10]])
    assert letters == "NNEEENWWW"
    assert mdp.start[7] == 1 and mdp.layout.ends == {(0, 3), (1, 3)}


@pytest.mark.parametrize(
    ("count", "values"),
    [
        (1, "0 0 0 1 / 0 0 -1 / 0 0 0 0"),
        (2, "0 0 .72 1 / 0 0 -1 / 0 0 0 0"),
        (5, ".5076 .7155 .8409 1 / .2687 .5532 -1 / 0 .2221 .3698 .1321"),
        (100, ".6450 .7444 .8478 1 / .5663 .5719 -1 / .4907 .4308 .4755 .2773"),
    ],
)
def test_book_grid(count, values):
    mdp = build("book")
    v, q = sweeps(mdp, count)
    same(v, values)
    if count == 100:
        same(q[7], ".4907 .4053 .4362 .4484")


@pytest.mark.parametrize(
    ("name", "noise", "way"),
    [("bridge", 0.2, "left"), ("bridge", 0.0, "right"), ("cliff", 0.2, "up"), ("cliff", 0.0, "right"),
     ("discount", 0.2, "up"), ("discount", 0.0, "right"), ("maze", 0.2, "right")],
)  # fmt: skip
def test_berkeley_grids(name, noise, way):
    """The way from the start: straight on without noise, and with it away from the edge."""
    mdp = build(name, f"env.mdp.noise={noise}")
    assert mdp.actions[sweeps(mdp, 200)[1][mdp.start.argmax()].argmax()] == way


def test_berkeley_rewards():
    assert {cell: build("bridge").layout.cell_reward[cell] for cell in [(0, 1), (1, 0), (1, 6), (2, 5)]} == {
        (0, 1): -100, (1, 0): 1, (1, 6): 10, (2, 5): -100}  # fmt: skip
    assert build("cliff").layout.cell_reward == {(1, 4): 10} | {(2, x): -100 for x in range(5)}
    assert build("discount").layout.cell_reward == {(2, 2): 1, (2, 4): 10} | {(4, x): -10 for x in range(5)}


def test_sutton_and_barto_5x5():
    mdp = build("sutton_barto_5x5")
    same(value_of(mdp, uniform(mdp)),
         "3.309 8.789 4.428 5.322 1.492 / 1.522 2.992 2.250 1.908 .547 / .051 .738 .673 .358 -.403 / "
         "-.974 -.435 -.355 -.586 -1.183 / -1.858 -1.345 -1.229 -1.423 -1.975", 5.1e-4)  # fmt: skip
    best = optimal(mdp)
    same(best,
         "21.977 24.419 21.977 19.419 17.477 / 19.780 21.977 19.780 17.802 16.022 / 17.802 19.780 17.802 16.022 "
         "14.419 / 16.022 17.802 16.022 14.419 12.977 / 14.419 16.022 14.419 12.977 11.680", 5.1e-4)  # fmt: skip
    assert best[1].item() == pytest.approx(10 / (1 - 0.9**5), abs=1e-9)
    assert mdp.layout.jumps == {(0, 1): (4, 1), (0, 3): (2, 3)} and not mdp.terminal.any() and not mdp.layout.ends


def test_sutton_and_barto_4x4():
    mdp = build("sutton_barto_4x4")
    assert mdp.gamma == 1.0
    exact = "0 -14 -20 -22 / -14 -18 -20 -20 / -20 -20 -18 -14 / -22 -20 -14 0"
    same(value_of(mdp, uniform(mdp)), exact, 1e-9)
    v = torch.zeros(16, dtype=torch.float64)
    seen = {}
    for k in range(1, 11):
        v = backup(mdp, v, 1.0).mean(-1)
        seen[k] = v
    same(seen[2], "0 -1.75 -2 -2 / -1.75 -2 -2 -2", 1e-12)
    same(seen[3], "0 -2.4375 -2.9375 -3 / -2.4375 -2.875 -3 -2.9375", 1e-12)
    same(seen[10], "0 -6.138 -8.352 -8.967 / -6.138 -7.737 -8.428 -8.352", 5.1e-4)
    same(optimal(mdp), "0 -1 -2 -3 / -1 -2 -3 -2 / -2 -3 -2 -1 / -3 -2 -1 0", 0.0)


def test_windy():
    mdp = build("windy")
    assert mdp.start @ sweeps(mdp, 100)[0] == -15.0
    right, down = mdp.actions.index("right"), mdp.actions.index("down")
    assert mdp.layout.cells[mdp.next_state[36, right, 0]] == (1, 7)  # from (3, 6), wind 2
    assert mdp.layout.cells[mdp.next_state[66, down, 0]] == (5, 6)  # on the lower rim: 1 down and 2 up
    assert mdp.layout.cells[mdp.next_state[3, down, 0]] == (0, 3)  # on the upper rim: 1 down and 1 up


# -- Gymnasium's toy texts


def test_frozen_lake():
    mdp = build(FROZEN)
    same(optimal(mdp), ".5420 .4988 .4707 .4569 / .5585 0 .3583 0 / .5918 .6431 .6152 0 / 0 .7417 .8628 0")
    assert (mdp.start @ optimal(mdp)).item() == pytest.approx(0.542026, abs=5e-7)
    assert mdp.actions == ("left", "down", "right", "up")
    assert first_best(mdp).argmax(-1).tolist() == [0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0]
    assert mdp.layout.rows == ("S...", ".H.H", "...H", "H..G") and mdp.layout.cell_reward[3, 3] == 1.0
    assert mdp.layout.ends == {(1, 1), (1, 3), (2, 3), (3, 0), (3, 3)}


@pytest.mark.parametrize(
    ("gamma", "start", "unlimited", "limited"),
    [(0.99, 0.542026, 14 / 17, 0.740165), (0.9, 0.068891, 0.780488, 0.729766), (0.95, 0.180472, 0.780488, 0.729766)],
)
def test_frozen_lake_success(gamma, start, unlimited, limited):
    mdp = build(FROZEN, f"env.mdp.gamma={gamma}")
    policy = first_best(mdp)
    assert (mdp.start @ optimal(mdp)).item() == pytest.approx(start, abs=5e-7)
    assert (mdp.start @ value_of(mdp, policy, 1.0)).item() == pytest.approx(unlimited, abs=5e-7)
    assert after(mdp, policy, 100)[15].item() == pytest.approx(limited, abs=5e-7)


def test_frozen_lake_otherwise():
    mdp = build(FROZEN)
    assert (mdp.start @ sweeps(mdp, 100, 1.0)[0]).item() == pytest.approx(0.744190, abs=5e-7)  # 100 steps to go
    assert after(mdp, uniform(mdp), 100)[15].item() == pytest.approx(0.01394, abs=5e-6)
    dry = build(FROZEN, "env.mdp.options.is_slippery=false")
    assert dry.next_state.shape[2] == 1 and (dry.start @ optimal(dry)).item() == pytest.approx(0.99**5, abs=1e-12)
    own = toy_text("FrozenLake-v1", options={"desc": ["SG"], "is_slippery": False})
    assert own.next_state[:, 2, 0].tolist() == [1, 1] and own.reward[0, 2, 0] == 1


def test_frozen_lake_merges_what_bounces():
    """In a corner two of three slips stay; in the table they are one successor of 2/3."""
    mdp = build(FROZEN)
    rows = zip(mdp.next_state[0, 0].tolist(), mdp.probability[0, 0].tolist(), strict=True)
    assert {to: round(p, 12) for to, p in rows if p} == {0: 0.666666666667, 4: 0.333333333333}


def test_taxi():
    mdp = build("taxi")
    starts = mdp.start > 0
    returns = sweeps(mdp, 100, 1.0)[0][starts]
    assert len(returns) == 300 and returns.sum() == 2379 and (returns.min(), returns.max()) == (3, 15)  # mean 7.93
    assert (mdp.start @ optimal(mdp)).item() == pytest.approx(6.3275, abs=5.1e-5)
    assert mdp.actions == ("south", "north", "east", "west", "pickup", "dropoff") and mdp.layout is None
    assert mdp.next_state.shape == (501, 6, 1) and mdp.terminal.nonzero().tolist() == [[500]]


def test_cliff_walking():
    mdp = build("cliff_walking")
    assert (mdp.start @ optimal(mdp)).item() == pytest.approx(-12.2479, abs=5.1e-5)
    assert mdp.start @ sweeps(mdp, 100, 1.0)[0] == -13
    assert (mdp.start @ value_of(mdp, uniform(mdp), 1.0)).item() == pytest.approx(-65_375, abs=0.5)
    assert mdp.next_state.shape == (48, 4, 1) and mdp.terminal.nonzero().tolist() == [[47]]
    assert mdp.layout.rows[3] == "SXXXXXXXXXXG" and mdp.layout.cell_reward[3, 5] == -100


# -- car rental and the gambler


def test_gambler():
    mdp = checked(gambler(), "gambler")
    v = optimal(mdp)
    same(v[[25, 50, 75]], ".16 .4 .64", 1e-12)
    assert mdp.actions[-1] == "50" and mdp.next_state[30, 49].tolist() == [60, 0]  # a stake of 50 out of 30 is 30
    assert mdp.next_state[80, 49].tolist() == [100, 60] and mdp.reward[80, 49].tolist() == [1, 0]
    bold = torch.zeros(101, 50, dtype=torch.float64)
    bold[:, 49] = 1
    torch.testing.assert_close(value_of(mdp, bold), v, atol=1e-9, rtol=0)  # bold play is optimal below one half


def test_car_rental():
    mdp = checked(car_rental(), "car_rental")
    action = torch.full((441,), 5)  # at first no car is moved
    for _ in range(5):  # policy iteration: 4 improvements lead to the best policy, the fifth changes nothing
        v = value_of(mdp, torch.nn.functional.one_hot(action, 11).double())
        before, action = action, backup(mdp, v, 0.9).argmax(-1)
    moved = (action - 5).view(21, 21)
    assert torch.equal(action, before)
    assert mdp.gamma == 0.9 and mdp.actions[0] == "-5" and mdp.actions[5:7] == ("0", "+1")
    assert (moved[20, 0], moved[0, 20], moved[0, 0], moved[20, 20], moved[10, 0]) == (5, -4, 0, 0, 4)
    assert moved.min() == -4 and moved.max() == 5
    same(v[[0, -1]], "421.414 636.990", 1e-3)
    assert mdp.layout.cells[20 * 21] == (0, 0) and mdp.layout.cells[20] == (20, 20)


def test_car_rental_by_enumeration():
    """One state and action, every number of requests and returns up to 45 counted out."""
    mdp = car_rental(capacity=4)
    state, action = 3 * 5 + 1, 5 + 2  # two of three cars go to the one: 1 and 3 in the morning
    joint, income = np.zeros((2, 2, 5))
    days = [poisson(m).pmf(np.arange(46)) for m in (3, 3, 4, 2)]
    for place, morning in enumerate((1, 3)):
        for asked, p in enumerate(days[2 * place]):
            for back, r in enumerate(days[2 * place + 1]):
                rented = min(asked, morning)
                evening = min(morning - rented + back, 4)
                joint[place, evening] += p * r
                income[place, evening] += p * r * rented * 10
    expected = np.outer(joint[0], joint[1])
    paid = (income / joint)[0][:, None] + (income / joint)[1] - 4
    np.testing.assert_allclose(mdp.probability[state, action].view(5, 5), expected, atol=1e-12)
    np.testing.assert_allclose(mdp.reward[state, action].view(5, 5), paid, atol=1e-9)
    torch.testing.assert_close(mdp.reward[0, 0], mdp.reward[0, 5] - 10)  # nothing to move costs as asked


def test_worlds_have_a_source():
    """The first line of each YAML says what the world is."""
    for name in NAMES:
        first, *rest = Path(CONF / "env" / f"{name}.yaml").read_text().splitlines()
        if name not in ("atari", "gym"):
            assert first.startswith("# ") and len(first) > 40
        assert "device: ${device}" in rest or any(line.startswith("defaults: [") for line in rest)
