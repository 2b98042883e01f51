"""What a map can say, what it cannot, and random mazes."""

import time

import numpy as np
import pytest
import torch
from scipy import ndimage
from stated import stated
from test_worlds import build, same

from rl_lab.core.errors import UserError
from rl_lab.envs.tabular.mazes import maze

gridworld = stated("env/base/gridworld", "mdp")
scattered = stated("env/scattered", "mdp.map")


def test_letters_that_pay_and_do_not_end():
    """T is a toll, paid on entering it or on leaving it; O ends without a reward."""
    text = "ST.O"
    entering = gridworld(text, rewards={"T": -2, "O": 0}, ends=["O"], living_reward=-1)
    assert entering.reward[:, 1, 0].tolist() == [-2, -1, 0, 0] and entering.reward[1, 0, 0] == -2  # stays in T
    assert entering.terminal.tolist() == [False, False, False, True]
    assert entering.layout.ends == {(0, 3)} and entering.layout.cell_reward == {(0, 1): -2.0, (0, 3): 0.0}
    leaving = gridworld(text, rewards={"T": -2, "O": 0}, ends="O", living_reward=-1, convention="state")
    assert leaving.reward[:, 1, 0].tolist() == [-1, -2, -1, 0, 0]
    assert leaving.next_state[:, 1, 0].tolist() == [1, 2, 3, 4, 4]
    endless = gridworld("ST", rewards={"T": -2}, ends=[], convention="state")
    assert not endless.terminal.any() and len(endless.start) == 2


def test_slips_of_every_direction():
    slip = {"left": 0.3, "right": 0.3, "back": 0.2, "stay": 0.1, "forward": 0.1}
    mdp = gridworld("...\n.S.\n...", noise=0.5, slip=slip)
    mass = torch.zeros(9, dtype=torch.float64).index_add_(0, mdp.next_state[4, 1], mdp.probability[4, 1])  # right
    same(mass, "0 .15 0 / .1 .05 .55 / 0 .15 0", 1e-12)
    same(gridworld("S", noise=0.2).probability[0, 0], ".8 .1 .1", 1e-12)
    same(gridworld("S", noise=0.2, slip="uniform").probability[0, 0], ".85 .05 .05 .05", 1e-12)
    assert gridworld("S").next_state.shape == (1, 4, 1)  # without noise one successor


def test_bump_and_wall():
    mdp = gridworld("S#G", bump=-3, living_reward=-1)
    assert mdp.reward[0, :, 0].tolist() == [-3, -3, -3, -3] and mdp.reward[1].abs().sum() == 0
    mdp = gridworld("S#G", bump=-3, convention="state")
    assert mdp.reward[1, :, 0].tolist() == [1, 1, 1, 1] and mdp.next_state[1, :, 0].tolist() == [2, 2, 2, 2]


def test_a_wall_stops_the_wind():
    mdp = gridworld("...\n##.\nS..\n...", wind="222")
    up, right, down, left = mdp.next_state[:, :, 0].T
    at = {cell: s for s, cell in enumerate(mdp.layout.cells)}
    assert right[at[3, 0]] == at[2, 1]  # across, then up to the wall
    assert right[at[3, 1]] == at[1, 2] and down[at[2, 0]] == at[2, 0] and left[at[2, 2]] == at[2, 1]


@pytest.mark.parametrize("convention", ["transition", "state"])
def test_jumps(convention):
    mdp = gridworld("AS.a", rewards={}, jumps={"A": ["a", 10]}, noise=0.2, living_reward=-1, convention=convention)
    assert (mdp.next_state[0] == 3).all() and (mdp.reward[0] == 10).all()
    assert mdp.reward[1, 3, 0] == -1 and mdp.next_state[1, 3, 0] == 0  # entering A is a step like others
    assert mdp.layout.jumps == {(0, 0): (0, 3)} and mdp.layout.cell_reward == {(0, 0): 10.0}


def test_a_map_from_a_file(tmp_path):
    path = tmp_path / "map.txt"
    path.write_text("S.\n.G\n")
    assert gridworld(str(path)).layout.rows == ("S.", ".G")
    mdp = build("book", f"env.mdp.map={path}", "env.mdp.noise=0.5", "+env.mdp.slip={back: 0.5, stay: 0.5}")
    assert mdp.layout.rows == ("S.", ".G")
    same(mdp.probability[0, 0], ".5 .25 .25", 1e-12)
    path.write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, line in {
        "map.txt": f"env.mdp.map={path}: the file is empty; draw a map of '#', 'S', '.' and letters in it",
        "none.txt": f"env.mdp.map={tmp_path}/none.txt: cannot be read (No such file or directory)",
        "binary.txt": f"env.mdp.map={tmp_path}/binary.txt: cannot be read (it is not text)",
    }.items():
        with pytest.raises(UserError) as error:
            gridworld(str(tmp_path / name))
        assert str(error.value) == line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"map": "S.\n..."}, "env.mdp.map: all rows must have the same length, not [2, 3]"),
        ({"map": "###\nS G"}, "env.mdp.map: all rows must have the same length, not [1, 3]; a free cell is a '.', not a space"),
        ({"map": "S?"}, "env.mdp.map: ? has no meaning; give it a reward in env.mdp.rewards"),
        ({"map": "..G"}, "env.mdp.map: no start cell; mark at least one with S"),
        ({"rewards": {"G": "much"}}, "env.mdp.rewards.G=much must be a number"),
        ({"rewards": {"G": "inf"}}, "env.mdp.rewards.G=inf must be finite"),
        ({"rewards": 3}, "env.mdp.rewards=3 must be a mapping, such as {G: 1}"),
        ({"rewards": {"#": 1}}, "env.mdp.rewards.#: only single letters have rewards, except '#', 'S' and '.', which have a meaning"),
        ({"rewards": {"GG": 1}}, "env.mdp.rewards.GG: only single letters have rewards, except '#', 'S' and '.', which have a meaning"),
        ({"ends": ["H"]}, "env.mdp.ends: H has no reward; give it one in env.mdp.rewards, which may be 0"),
        ({"ends": 5}, "env.mdp.ends=5 must be a list of letters"),
        ({"slip": "sidewise"}, "env.mdp.slip=sidewise is not a choice; did you mean sideways?"),
        ({"slip": {"lft": 1.0}}, "no setting 'env.mdp.slip.lft'; did you mean left?"),
        ({"slip": {"left": 0.5}}, "env.mdp.slip: its shares of the noise must sum to 1, not 0.5"),
        ({"slip": {"left": 1.5, "back": -0.5}}, "env.mdp.slip.back=-0.5 must be at least 0"),
        ({"jumps": 1}, "env.mdp.jumps=1 must be a mapping, such as {G: 1}"),
        ({"jumps": {"A": "a"}}, "env.mdp.jumps.A=a must be a cell and a reward, such as [a, 10]"),
        ({"jumps": {"A": ["a", "x"]}}, "env.mdp.jumps.A[1]=x must be a number"),
        ({"jumps": {"A": ["a", 1]}}, "env.mdp.jumps.A: the map must show its target a once, not 0 times"),
        ({"jumps": {"A": [".", 1]}, "map": "S.."}, "env.mdp.jumps.A: the map must show its target . once, not 2 times"),
        ({"jumps": {"G": ["S", 1]}}, "env.mdp.jumps.G: an episode ends there; leave it out of env.mdp.ends"),
        ({"wind": "01"}, "env.mdp.wind=01 must be a digit for each of the map's 3 columns"),
        ({"wind": "0-1"}, "env.mdp.wind=0-1 must be a digit for each of the map's 3 columns"),
    ],
)  # fmt: skip
def test_impossible_maps(arguments, line):
    with pytest.raises(UserError) as error:
        gridworld(**{"map": "S.G"} | arguments)
    assert str(error.value) == line


def test_a_million_cells_in_seconds():
    text = scattered(1_000, seed=0)
    begun = time.perf_counter()
    mdp = gridworld(text, living_reward=-0.01, noise=0.2)
    assert time.perf_counter() - begun < 10  # about one, on one core
    shape, ends, last = mdp.next_state.shape, mdp.terminal.nonzero().tolist(), mdp.layout.cells[-1]
    held = mdp.probability.untyped_storage().nbytes()
    del mdp  # which a failing assert would print
    assert shape == (849_479, 4, 3) and held == 3 * 8
    assert ends == [[849_478]] and last == (999, 999)


# -- random mazes


def parts(text: str) -> tuple[np.ndarray, int]:
    """Free cells [H, W] and how many connected parts they make."""
    free = np.array([list(row) for row in text.split()]) != "#"
    return free, ndimage.label(free)[1]


@pytest.mark.parametrize(("height", "width", "seed"), [(3, 5, 0), (5, 3, 1), (15, 15, 2), (31, 61, 3)])
def test_mazes_are_perfect(height, width, seed):
    text = maze(height, width, seed)
    free, count = parts(text)
    doors = (free[1:] & free[:-1]).sum() + (free[:, 1:] & free[:, :-1]).sum()
    assert free.shape == (height, width) and count == 1
    assert doors == free.sum() - 1  # connected, and without a cycle
    assert not (free[0].any() or free[-1].any() or free[:, 0].any() or free[:, -1].any())
    rows = text.split()
    assert rows[1][1] == "S" and rows[-2][-2] == "G" and free[1::2, 1::2].all()


def test_mazes_by_seed():
    assert maze(15, 15, 0) == maze(15, 15, 0) and len({maze(15, 15, seed) for seed in range(20)}) == 20
    assert scattered(10, 0) == scattered(10, 0) and len({scattered(10, seed) for seed in range(20)}) == 20


@pytest.mark.parametrize("seed", range(5))
def test_scattered_is_connected(seed):
    text = scattered(40, seed, walls=0.35)
    free, count = parts(text)
    assert count == 1 and free.shape == (40, 40)
    glyphs = text.replace("#", "").replace("\n", "")
    assert glyphs[0] == "S" and glyphs[-1] == "G" and set(glyphs[1:-1]) == {"."}
    raw = np.random.default_rng(seed).random((40, 40)) >= 0.35
    sizes = np.bincount(ndimage.label(raw)[0].ravel())[1:]
    assert (free <= raw).all() and free.sum() == sizes.max()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: maze(8, 9, 0), "env.mdp.map.height=8 must be odd and at least 3, as walls and corridors alternate from wall to wall; take 9"),
        (lambda: maze(9, 1, 0), "env.mdp.map.width=1 must be odd and at least 3, as walls and corridors alternate from wall to wall; take 3"),
        (lambda: maze(3, 3, 0), "env.mdp.map: a maze of 3 x 3 has one room, and needs two; take a width of 5"),
        (lambda: scattered(5, 0, walls=1.0), "env.mdp.map: no two free cells touch at size=5, walls=1; lower walls"),
    ],
)  # fmt: skip
def test_impossible_mazes(make, line):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == line
