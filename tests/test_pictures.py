"""Where each thing must be, by its colour: worlds, values, policies, Q-values, films of sweeps."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from stated import stated
from tiers import later

from rl_lab.core.errors import UserError
from rl_lab.envs.abilities import Map
from rl_lab.envs.tabular.gridworld import MOVES
from rl_lab.envs.tabular.mdp import Layout
from rl_lab.looking import panels, pictures, plan_pictures
from rl_lab.looking.panels import INK, PAPER
from rl_lab.looking.pictures import FLOOR, GOAL, PIT, VIRIDIS, WALL, Board
from rl_lab.looking.plan_pictures import Sweeps, draw, triangles
from rl_lab.looking.worlds import picture
from rl_lab.planning import Plan

gridworld = stated("env/base/gridworld", "mdp")
value_iteration = stated("planner/value_iteration")

BOOK = {"map": "...G\n.#.X\nS...", "living_reward": -0.04, "noise": 0.2, "convention": "state", "gamma": 1.0}
UP, RIGHT, DOWN, LEFT = range(4)
NAMES = tuple(MOVES)


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def solved(mdp):
    """Value, Q and policy, as arrays."""
    *_, plan = value_iteration(mdp)
    return plan.value.numpy(), plan.q.numpy(), plan.policy.numpy()


def square(board: Board, y: int, x: int) -> np.ndarray:
    """The pixels of a cell inside its lines."""
    cell, (middle_x, middle_y) = board.cell, board.centre(y, x)
    top, left = middle_y - cell // 2 + 1, middle_x - cell // 2 + 1
    return np.array(board.picture)[top : top + cell - 1, left : left + cell - 1]


def count(pixels: np.ndarray, colour: str) -> int:
    return int((pixels == rgb(colour)).all(-1).sum())


# -- boards


def test_pictures_are_enlarged_by_whole_pixels():
    pixels = np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)
    picture = np.array(panels.enlarged(pixels))
    assert picture.shape == (422, 322, 3)  # twice, and a frame of one pixel
    assert np.array_equal(picture[1:-1:2, 1:-1:2], pixels) and np.array_equal(picture[2:-1:2, 2:-1:2], pixels)
    assert (picture[0] == rgb(panels.EDGE)).all()


def test_the_four_by_three_world():
    mdp = gridworld(**BOOK)
    value, q, _ = solved(mdp)
    board = Board(mdp.layout, mdp.actions, value, q)
    assert board.cell == 96 and board.picture.size == (4 * 96 + 6, 3 * 96 + 6 + 34)
    assert np.array_equal(
        np.array(board.with_agent(mdp.layout.cell(11))), np.array(board.picture)
    )  # the world has ended
    assert board.with_agent(mdp.layout.cell(0)).getpixel(board.centre(0, 0)) == rgb(panels.AGENT)
    assert board.picture.getpixel(board.centre(0, 0)) != rgb(panels.AGENT)
    assert (square(board, 1, 1) == rgb(WALL)).all()
    for (y, x), colour in {(0, 2): VIRIDIS[-1], (2, 3): VIRIDIS[0]}.items():  # .918 and .388
        assert (square(board, y, x)[3, 3] == colour).all()
    for (y, x), colour in {(0, 3): GOAL, (1, 3): PIT}.items():
        assert (square(board, y, x)[2, 2] == rgb(colour)).all() and (square(board, y, x)[12, 12] == rgb(PAPER)).all()
    middling = (0.6603 - 0.3879) / (0.9178 - 0.3879)  # (1, 2), between them
    shade = [np.interp(8 * middling, range(9), channel) for channel in VIRIDIS.T]
    assert np.abs(square(board, 1, 2)[3, 3] - shade).max() < 3


def test_what_is_not_known_is_pale_and_counts_in_no_scale():
    layout = gridworld("S...G").layout
    value, known = np.array([0.0, 1.0, 1e6, 2.0, 0.0]), np.array([True, True, False, True, True])
    board = Board(layout, NAMES, value, np.eye(4)[[RIGHT] * 5], known=known)
    assert board.limits == (0.0, 2.0) and board.picture.height == 96 + 6 + 54
    assert (square(board, 0, 2) == rgb(FLOOR)).all()  # without an arrow or a number
    assert (square(board, 0, 3)[3, 3] == VIRIDIS[-1]).all() and count(square(board, 0, 3), INK) > 50


@pytest.mark.parametrize("action", [UP, RIGHT, DOWN, LEFT])
def test_an_arrow_points_where_the_action_goes(action):
    """Its head, where most of its pixels are, lies on that side of the cell."""
    layout = gridworld("S.\n.G").layout
    board = Board(layout, NAMES, None, np.eye(4)[[action] * 4])
    pixels = square(board, 0, 1)
    ys, xs = np.nonzero((pixels == rgb(INK)).all(-1))
    off = np.array([ys.mean(), xs.mean()]) - (len(pixels) - 1) / 2
    assert np.round(off / np.abs(off).max()).tolist() == [list(move) for move in MOVES.values()][action]


def test_ties_get_an_arrow_each_and_ends_none():
    layout = gridworld("S.\n.G").layout
    bars = np.array([[1.0, 0, 1, 0], [1, 1 - 1e-7, 1, 0.5], [1, 0.99, 0, 0], [1, 0, 0, 0]])
    board = Board(layout, NAMES, None, bars)
    ring = 28
    drawn = {}
    for y, x in ((0, 0), (0, 1), (1, 0)):
        middle_x, middle_y = board.centre(y, x)
        drawn[y, x] = [name for name, (dy, dx) in MOVES.items()
                       if board.picture.getpixel((middle_x + ring * dx, middle_y + ring * dy)) == rgb(INK)]  # fmt: skip
    assert drawn == {(0, 0): ["up", "down"], (0, 1): ["up", "right", "down"], (1, 0): ["up"]}
    assert count(square(board, 1, 1), INK) == 0


def test_arrows_go_by_the_names_of_the_actions():
    """FrozenLake counts left, down, right, up."""
    layout = gridworld("S.\n.G").layout
    ours = Board(layout, NAMES, None, np.eye(4)[[RIGHT, DOWN, RIGHT, UP]])
    lake = Board(layout, ("left", "down", "right", "up"), None, np.eye(4)[[2, 1, 2, 3]])
    assert ours.picture.tobytes() == lake.picture.tobytes()


def test_actions_that_are_no_moves_are_written():
    """As the cars moved overnight: 21 x 21 cells, each with the name of its best action."""
    rows = ("." * 21,) * 21
    layout = Layout(rows, tuple((y, x) for y in range(21) for x in range(21)), {})
    actions = tuple(f"{n:+d}" for n in range(-5, 6))
    bars = np.eye(11)[np.arange(441) % 11]
    board = Board(layout, actions, np.zeros(441), bars)
    same = [square(board, 0, x).tobytes() for x in (3, 14)]  # -2 in both
    assert same[0] == same[1] != square(board, 0, 4).tobytes()
    assert all((square(board, 0, x) != square(board, 0, x)[0, 0]).any(-1).sum() > 10 for x in range(11))


def test_rewards_that_end_nothing_are_tagged_on_their_value():
    mdp = gridworld("SA.\n..G", rewards={"A": 10.0, "G": 1.0}, ends=["G"])
    board = Board(mdp.layout, mdp.actions, np.array([0.0, 1, 2, 3, 4, 5]), None)
    assert count(square(board, 0, 1)[:20], PAPER) > 100 and count(square(board, 0, 1)[:20], GOAL) > 10
    assert (square(board, 0, 1)[60, 10] == pictures.viridis(np.array(0.25), 0, 1)).all()  # 1 of 0 to 4: the end is out
    assert count(square(board, 0, 2)[:20], PAPER) == 0


@pytest.mark.parametrize(
    ("rewards", "colours"),
    [({"G": 1.0, "H": 0.0}, (GOAL, panels.FAINT)), ({"G": -1.0, "H": -100.0}, (GOAL, PIT)),
     ({"G": 10.0, "H": 1.0}, (GOAL, GOAL))],
)  # fmt: skip
def test_goals_pits_and_holes(rewards, colours):
    """An end that pays as much as any is a goal, as where every step costs 1."""
    board = Board(gridworld("S.\nGH", rewards=rewards).layout)
    assert [tuple(square(board, 1, x)[2, 2]) for x in (0, 1)] == [rgb(c) for c in colours]


def test_a_jump_is_drawn_from_cell_to_cell():
    mdp = gridworld("SA.\n...\n.a.", jumps={"A": ["a", 10.0]}, rewards={}, bump=-1.0)
    bare = mdp.layout._replace(jumps={})
    seen, unseen = (np.array(Board(layout).picture).astype(int) for layout in (mdp.layout, bare))
    ys, xs = np.nonzero(np.abs(seen - unseen).sum(-1) > 100)
    board = Board(bare)
    (x, top), (_, bottom) = board.centre(0, 1), board.centre(2, 1)
    assert abs(ys.min() - top) < 8 and abs(ys.max() - bottom) < 8 and x + 20 < xs.min() and xs.max() < x + 70


def test_numbers_stand_in_cells_of_forty_pixels():
    """A cell's colour with something on it, or nothing but the colour."""
    for side, written in ((12, True), (13, False)):
        layout = gridworld(
            "\n".join(["S" + "." * (side - 1), *["." * side] * (side - 2), "." * (side - 1) + "G"])
        ).layout
        board = Board(layout, NAMES, np.full(side * side, 0.25), None)
        assert (board.cell >= 40) == written == (len({tuple(p) for p in square(board, 5, 5).reshape(-1, 3)}) > 1)


@pytest.mark.parametrize(
    ("x", "zero", "texts"),
    [([0.8116, -0.04], "0", ["0.812", "-0.040"]), ([0.8116, -0.04], "", [".812", "-.040"]),
     ([24.419, -0.02], "0", ["24.4", "0.0"]), ([421.3, 637.9], "0", ["421", "638"]), ([-1.0, 9.999], "0", ["-1.0", "10.0"]),
     ([0.0], "0", ["0.000"]), ([1.2e9], "0", [])],
)  # fmt: skip
def test_numbers_in_cells(x, zero, texts):
    assert panels.figures(np.array(x), 40, 12, zero)[0] == texts


def test_a_scale_may_be_set():
    layout = gridworld("S.\n.G").layout
    board = Board(layout, NAMES, np.array([-5.0, 1.0, 9.0, 0.0]), None, scale=(0.0, 2.0))
    shades = [tuple(square(board, y, x)[3, 3]) for y, x in ((0, 0), (0, 1), (1, 0))]
    assert shades == [tuple(VIRIDIS[0]), tuple(VIRIDIS[4]), tuple(VIRIDIS[-1])]


def test_values_that_differ_by_rounding_have_one_colour():
    board = Board(gridworld("S.\n.G").layout, NAMES, 20 + np.array([0, 1e-12, -1e-12, 0]), None)
    shades = {tuple(square(board, y, x)[3, 3]) for y, x in ((0, 0), (0, 1), (1, 0))}
    assert shades == {tuple(pictures.SHADES[128])}


def test_fifty_cells_a_side_keep_their_arrows():
    layout = gridworld("\n".join(["S" + "." * 49, *["." * 50] * 48, "." * 49 + "G"])).layout
    start = time.perf_counter()
    board = Board(layout, NAMES, np.zeros(2500), np.eye(4)[[RIGHT] * 2500])
    assert time.perf_counter() - start < 2 and board.cell == 18
    assert count(square(board, 20, 20), PAPER) >= 10 and count(square(board, 20, 20), PAPER) < 100


@pytest.mark.slow
@pytest.mark.parametrize(("side", "zoom"), [(51, 17), (200, 4), (1000, 1)])
def test_a_large_world_is_an_image(side, zoom):
    """Each cell a square of the colour of its value, nothing else but rings around the ends."""
    wall = np.random.default_rng(0).random((side, side)) < 0.15
    wall[0, 0] = wall[-1, -1] = wall[30:34, 30:34] = False
    wall[20, 25] = True
    rows = tuple("".join(row) for row in np.where(wall, "#", "."))
    cells = tuple(map(tuple, np.argwhere(~wall).tolist()))
    end = (side - 1, side - 1)
    value = np.linspace(-3, 2, len(cells))
    start = time.perf_counter()
    board = Board(Layout(rows, cells, {end: 1.0}, frozenset([end])), NAMES, value, np.zeros((len(cells), 4)))
    assert time.perf_counter() - start < 2
    inside = np.array(board.picture)[3 : 3 + side * zoom, board.left : board.left + side * zoom]
    assert (inside[-1, -1] == rgb(GOAL)).all()
    shades = np.stack([np.interp(np.linspace(0, 8, len(cells)), range(9), channel) for channel in VIRIDIS.T], 1)
    seen = inside[::zoom, ::zoom][~wall]
    away = np.abs(np.array(cells) - end).sum(1) > 40
    assert np.abs(seen - shades)[away].max() < 6  # of 256 shades
    assert (seen[0] == VIRIDIS[0]).all()
    assert (inside[::zoom, ::zoom][wall & (np.add.outer(range(side), range(side)) < 2 * side - 60)] == rgb(WALL)).all()
    assert np.array_equal(inside[: 20 * zoom : zoom], inside[zoom - 1 : 20 * zoom : zoom])


# -- Q-values


def test_triangles_have_the_colours_of_their_values():
    """Each on the side its move leads to, whatever the order of the actions."""
    layout = gridworld("S.\n.G").layout
    actions = ("left", "down", "right", "up")
    q = np.zeros((4, 4))
    q[1] = [0.0, 4.0, 8.0, 2.0]
    picture, cell = np.array(triangles(layout, actions, q)), 112
    left, top = 3 + (picture.shape[1] - 2 * cell - 6) // 2 + cell, 3  # of cell (0, 1)
    for (dy, dx), shade in {(-1, 0): 2, (0, 1): 8, (1, 0): 4, (0, -1): 0}.items():
        y, x = top + int((0.5 + 0.16 * dy) * cell), left + int((0.5 + 0.16 * dx) * cell)
        assert (picture[y, x] == VIRIDIS[shade]).all()
    best = picture[top + 10 : top + cell - 10, left + cell - 8 : left + cell - 1]  # the outline, on the right alone
    other = picture[top + 10 : top + cell - 10, left + 1 : left + 8]
    assert count(best, INK) > 100 and count(other, INK) == count(other, PAPER) == 0


def test_triangles_only_of_four_moves_and_fifty_cells():
    layout = gridworld("S.\n.G").layout
    assert triangles(layout, ("-1", "0", "+1", "+2"), np.zeros((4, 4))) is None
    wide = gridworld("S" + "." * 49 + "G").layout
    assert triangles(wide, NAMES, np.zeros((51, 4))) is None
    assert triangles(gridworld("S" + "." * 48 + "G").layout, NAMES, np.zeros((50, 4))) is not None


def test_a_plan_is_drawn_with_and_without_a_map():
    mdp = gridworld(**BOOK)
    value, q, policy = solved(mdp)
    assert list(draw(mdp.layout, mdp.actions, q, value, policy)) == ["values", "q"]
    assert list(draw(mdp.layout, ("a", "b", "c", "d"), q, value, policy)) == ["values"]
    chart = draw(None, ("-1", "0", "+1", "+2"), q, value, policy)
    assert list(chart) == ["values"] and chart["values"].size == (960, 624)


def test_a_chart_shows_the_first_of_equal_actions_and_no_ends():
    from rl_lab.looking.charts import Chart

    chart = Chart(("1", "5", "10"), np.arange(4.0), np.array([False, True, True, True]))
    chart.draw(np.arange(4.0), np.array([0, 1, 2, 0]))
    assert chart.steps.get_ydata()[1:].tolist() == [5, 10, 1] and np.isnan(chart.steps.get_ydata()[0])
    assert np.isnan(chart.line.get_ydata()[0]) and chart.line.get_ydata()[1:].tolist() == [1, 2, 3]
    q = np.array([[0, 0, 0], [1, 1 + 1e-12, 0], [0, 1, 1], [3, 2, 1.0]])
    pictured = draw(None, ("1", "5", "10"), q, np.arange(4.0), np.array([0, 1, 2, 2]))["values"]
    chart = Chart(("1", "5", "10"), np.arange(4.0), np.array([False, True, True, True]))
    wanted = chart.draw(np.arange(4.0), np.array([0, 0, 1, 2]))  # the last policy is not greedy, and is left alone
    assert pictured.tobytes() == wanted.tobytes()


# -- films of sweeps


def after(value: torch.Tensor, q: torch.Tensor) -> Plan:
    return Plan(None, value, torch.tensor(1.0), q=q)


def swept(layout, sweeps: int, states: int = 4) -> Sweeps:
    film = Sweeps(layout, NAMES)
    for k in range(1, sweeps + 1):
        film.add(k, after(torch.full((states,), float(k)), q=torch.eye(4)[torch.zeros(states, dtype=torch.int64)]))
    return film


@pytest.mark.parametrize("sweeps", later([1, 7, 120, 121, 258, 5_000, 100_000], 100_000))
def test_few_sweeps_are_kept(sweeps):
    """All of the first, then equally many of each doubling; the values are those of their sweep."""
    film = swept(gridworld("S.\n.G").layout, sweeps)
    kept = [s.sweep for s in film.snapshots]
    assert len(kept) <= 120 and kept[:4] == list(range(1, 1 + min(4, sweeps)))
    assert sweeps > 120 or kept == list(range(1, sweeps + 1))
    assert sweeps < 258 or len(kept) > 55
    assert all(after <= before + max(1, before // 4) for before, after in zip(kept, kept[1:], strict=False))
    assert [s.value[0] for s in film.snapshots] == kept and film.snapshots[0].value.dtype == np.float32


def test_a_large_world_keeps_fewer():
    film = Sweeps(None, NAMES)
    value = torch.zeros(1)
    film._snapshot = lambda *latest: plan_pictures.Snapshot(latest[0], value.numpy(), value.numpy(), 1.0)
    for k in range(1, 301):
        film.add(k, after(value.expand(2**20), q=value))
    assert 10 < len(film.snapshots) <= 32


def test_snapshots_are_copies():
    film, value = Sweeps(None, NAMES), torch.zeros(3)
    for k in range(1, 4):
        film.add(k, after(value.fill_(k), q=torch.eye(4)[:3]))  # a planner that works in place
    assert [s.value[0] for s in film.snapshots] == [1, 2, 3]


def test_a_film_has_one_scale_and_ends_on_the_last_sweep(tmp_path):
    import av

    mdp = gridworld(**BOOK)
    film = Sweeps(mdp.layout, mdp.actions)
    film._density = 1  # 1, 2, 4, 8, 16, 32
    for k, plan in enumerate(value_iteration(mdp), 1):
        film.add(k, plan)
    film.write(tmp_path / "sweeps.mp4")
    assert [s.sweep for s in film.snapshots] == [1, 2, 4, 8, 16, 32, k] and k > 32
    frames = [np.array(frame) for frame in film.frames()]
    left, top = 16 + 3 + 4, 56 + 3 + 4
    corner = [frame[top, left] for frame in frames]  # of cell (0, 0): .812 in the end
    assert (corner[0] == VIRIDIS[0]).all() or corner[0].sum() < corner[-1].sum()
    lowest = min(np.delete(s.value, [3, 6, 11]).min() for s in film.snapshots)  # of all but the ends
    best = Board(mdp.layout, mdp.actions, film.snapshots[-1].value, None, scale=(lowest, 0.9178)).picture
    assert np.abs(frames[-1][top, left].astype(int) - np.array(best)[7, 7]).max() < 4
    with av.open(str(tmp_path / "sweeps.mp4")) as file:
        rate = float(file.streams.video[0].average_rate)
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert rate == 2 and len(decoded) == 7 + 4  # two seconds more of the last
    assert np.abs(decoded[-1][top, left].astype(int) - frames[-1][top, left]).max() < 30
    with Image.open(tmp_path / "sweeps.gif") as gif:
        assert gif.n_frames >= 7


def test_a_film_draws_anew_only_what_looks_different():
    """A picture after others is the picture drawn from nothing; where nothing looks different it is not drawn."""
    layout = gridworld("SA.\n..G\n.a.", rewards={"A": 10.0, "G": 1.0}, ends=["G"], jumps={"A": ["a", 10.0]}).layout
    rng = np.random.default_rng(0)
    value, bars = rng.random((20, 9)), rng.integers(2, size=(20, 9, 4)).astype(float)
    bars[10:] = bars[9]
    value[15:] = value[14] + 1e-5 * rng.random((5, 9))
    board, drawn = Board(layout, NAMES, value[0], bars[0], scale=(0.0, 2.0)), []
    for v, q in zip(value[1:], bars[1:], strict=True):
        before = board.picture
        drawn.append(board.show(v, q))
        assert (board.picture is not before) == drawn[-1]
        assert board.picture.tobytes() == Board(layout, NAMES, v, q, scale=(0.0, 2.0)).picture.tobytes()
    assert all(drawn[:14]) and not all(drawn[14:])


def test_a_film_leaves_out_sweeps_in_which_nothing_moves():
    film, layout = Sweeps(gridworld("S.\n.G").layout, NAMES), torch.eye(4)[[0, 0, 0, 0]]
    for k, value in enumerate((0.1, 0.5, 0.5, 0.5 + 1e-7, 0.9, 0.9, 0.9), 1):
        film.add(k, after(torch.tensor([value, 0.0, 1.0, 0.0]), q=layout))
    assert len(film.snapshots) == 7 and len(list(film.frames())) == 4  # 1, 2, 5, and the last of all
    assert len(list(film.frames(freeze=3))) == 7


def test_the_colours_of_a_gif_of_boards():
    """Every shade, and all that is drawn on it, is there to within a few of 256 levels."""
    wanted = [*map(tuple, pictures.SHADES), *map(rgb, (PAPER, INK, WALL, FLOOR, GOAL, PIT, panels.FAINT, panels.AGENT))]
    row = Image.fromarray(np.array(wanted, np.uint8)[None])
    shown = np.array(row.quantize(palette=pictures.palette(), dither=Image.Dither.NONE).convert("RGB")).astype(int)
    off = np.abs(shown[0] - wanted).max(-1)
    assert off[:256].max() <= 5 and off[256:].max() <= 1


def test_a_film_without_a_map():
    film = swept(None, 3)
    frames = list(film.frames(freeze=2))
    assert len(frames) == 5 and len({f.tobytes() for f in frames}) == 3 and {f.size for f in frames} == {frames[0].size}


def test_a_film_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^cannot write to {tmp_path}/file: File exists; make room or "):
        swept(None, 1).write(tmp_path / "file/sweeps.mp4")


# -- the bare world


def test_a_bare_world():
    layout = gridworld(**BOOK).layout
    seen, ended, moved = (np.array(picture(Map(layout, layout.cell(state)))) for state in (0, 11, 10))
    assert seen.shape == ended.shape == (294, 390, 3)
    assert (seen[51, 51] == rgb(panels.AGENT)).all() and (ended[51, 51] == rgb(FLOOR)).all()
    assert (ended[147, 147] == rgb(WALL)).all() and (ended[5, 200 + 96] == rgb(GOAL)).all()
    assert (moved[2 * 96 + 51, 3 * 96 + 51] == rgb(panels.AGENT)).all() and (moved[51, 51] == rgb(FLOOR)).all()
    start = time.perf_counter()
    for state in range(100):
        picture(Map(layout, layout.cell(state % 11)))
    assert time.perf_counter() - start < 0.5  # it is drawn once


# -- panels and pages


def test_bars_are_as_long_as_their_numbers():
    panel = panels.Panel(["step"], ["left", "right"], "probabilities", 300)
    picture = np.array(panel.draw(["1"], "", [0.25, 0.75], 1))
    taken, other = (np.all(picture == rgb(c), axis=-1) for c in (panels.AGENT, panels.BAR))
    lengths = [mask.sum(1).max() for mask in (other, taken)]
    whole = panel.right - panel.left
    assert lengths == pytest.approx([0.25 * whole + 1, 0.75 * whole + 1], abs=1)
    values = panels.Panel(["step"], ["left", "right"], "action values", 300)
    values.draw(["1"], "", [-2.0, 5.0], 1)
    values.draw(["2"], "", [0.0, 1.0], 1)
    assert (values.low, values.high) == (-2.0, 5.0)  # the scale does not shrink


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (2.0, 5.0, (0.0, 5.0)),
        (3.0, 5.0, (3.0, 5.0)),
        (-1.0, 5.0, (-1.0, 5.0)),
        (-5.0, -1.0, (-5.0, 0.0)),
        (1.0, 1.0, (1.0, 1.0)),
    ],
)
def test_an_axis_goes_on_to_0_where_that_leaves_half_of_it(low, high, ends):
    assert panels.axis(low, high) == ends


def test_bars_begin_at_0_and_elsewhere_are_dots():
    def lengths(limits, bars):
        panel = panels.Panel(["step"], ["left", "right"], "action values", 300, limits=limits)
        picture = np.array(panel.draw(["1"], "", bars, 1))
        masks = (np.all(picture == rgb(c), axis=-1) for c in (panels.BAR, panels.AGENT))
        return panel.right - panel.left, [np.flatnonzero(mask.any(0)) for mask in masks], panel.left

    whole, (other, taken), left = lengths((-2.0, 2.0), [-1.0, 2.0])
    assert (other.min(), other.max()) == pytest.approx((left + whole / 4, left + whole / 2), abs=2)
    assert (taken.min(), taken.max()) == pytest.approx((left + whole / 2, left + whole), abs=2)
    whole, (other, taken), left = lengths((90.0, 100.0), [92.0, 99.0])
    assert len(other) == len(taken) < 20 and other.mean() == pytest.approx(left + 0.2 * whole, abs=1)


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.0, "0.00"), (0.9176, "0.918"), (-12.34, "-12.3"), (123.4, "123"), (999.7, "1,000"), (1.2e-5, "1.20e-05")],
)
def test_numbers(x, text):
    assert panels.number(x) == text


def test_pages_stand_in_rows_of_equal_length():
    pages = [Image.new("RGB", (100, 40), colour) for colour in ("red", "lime", "blue", "cyan", "black")]
    assert [panels.in_rows(pages[:n], 330).size for n in (1, 3, 4, 5)] == [(100, 40), (300, 40), (200, 80), (300, 80)]
    sheet = panels.in_rows(pages, 330)
    assert sheet.getpixel((50, 60)) == (0, 255, 255) and sheet.getpixel((250, 60)) == (255, 255, 255)
