"""Collect against its plain-Python reference, its published facts and its exact optimum."""

import json
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from collect_reference import Board, Rules
from omegaconf import OmegaConf
from PIL import ImageColor
from scipy import ndimage
from torch._subclasses.fake_tensor import FakeTensorMode

from rl_lab import render
from rl_lab.__main__ import COMMANDS
from rl_lab.agents.collectors import Greedy, Optimal
from rl_lab.agents.random import Random
from rl_lab.core import cli
from rl_lab.core.errors import UserError
from rl_lab.envs import collect_mazes
from rl_lab.envs.collect import Collect, Walkers
from rl_lab.looking import maze_pictures, panels, pictures
from rl_lab.loops import play
from rl_lab.player import load
from rl_lab.stage import of_world

UP, RIGHT, DOWN, LEFT = range(4)
WORLD = {"time_limit": 20, "goal_reward": 2.0, "living_reward": -0.2}
SMALL = {"mazes": 500}  # a quick pool
STOCHASTIC = {"slip": 0.3, "drift": 0.3}


def place(cell: int) -> tuple[int, int] | None:
    """(y, x) on the map, border included, of a cell of the board."""
    return None if cell == 64 else (cell // 8 + 1, cell % 8 + 1)


def cell(y: int, x: int) -> int:
    return 8 * (y - 1) + x - 1


def board_of(env: Collect, walkers: Walkers, i: int) -> Board:
    open, width = int(walkers.open[i]), env.width
    rows = ["#" * env.size, *(f"#{''.join('#.'[open >> 8 * y + x & 1] for x in range(width))}#" for y in range(width))]
    if env.drift:
        goals = [place(c) for c in walkers.places[i].tolist()]
    else:
        goals = [place(c) for c in range(64) if int(walkers.goals[i]) >> c & 1]
    return Board([*rows, rows[0]], place(int(walkers.agent[i])), goals, int(walkers.left[i]))


def walkers_of(env: Collect, *maps: str, left: int = 20) -> Walkers:
    """'#' wall, 'A' agent, 'g' goal, '.' floor; rows apart by blanks, without the border."""
    open, agent, goals = [], [], []
    for text in maps:
        cells = {(y, x): glyph for y, row in enumerate(text.split(), 1) for x, glyph in enumerate(row, 1)}
        masks = [sum(1 << cell(*at) for at, g in cells.items() if g in glyphs) for glyphs in (".Ag", "g")]
        signed = [mask - (mask >> 63 << 64) for mask in masks]
        open, goals = [*open, signed[0]], [*goals, signed[1]]
        agent.append(next(cell(*at) for at, g in cells.items() if g == "A"))
    open, agent, goals = (torch.tensor(x) for x in (open, agent, goals))
    places = [[c for c in range(64) if mask >> c & 1] for mask in goals.tolist()]
    places = torch.tensor([(row + [64] * env.goals)[: env.goals] for row in places])
    zeros = torch.zeros_like(agent)
    return Walkers(open, agent, goals, places if env.drift else places[:, :0], zeros + left, zeros)


# -- against the reference


@pytest.mark.parametrize(
    "settings",
    [{}, STOCHASTIC, {"options": False}, {"options": False, "drift": 0.5}, {"slip": 0.4}, {"drift": 1.0},
     {"size": 8, "goals": 3, "time_limit": 9, "holes": 2}, {"size": 6, "goals": 2, "time_limit": 3, **STOCHASTIC},
     {"goals": 1, "option_gamma": 0.5, "goal_reward": 5.0, "living_reward": -1.0, "bump": -3.0}],
    ids=["deterministic", "stochastic", "primitive", "primitive_drift", "slip", "always_drift", "small", "tiny",
         "rewards"],
)  # fmt: skip
def test_every_step_is_that_of_the_plain_reference(settings):
    env = Collect(24, mazes=200, **settings)
    names = Rules.__dataclass_fields__.keys() & settings.keys()
    rules, rng = Rules(**{name: settings[name] for name in names}), torch.Generator().manual_seed(0)
    env.reset(7)
    boards, ended, long = [board_of(env, env.walkers, i) for i in range(24)], 0, 0
    for _ in range(60):
        action, draws = torch.randint(4, (24,), generator=rng), env.draw()
        answer = env.advance(env.walkers, action, *draws)
        seen = env.look(answer.successor).numpy()
        slips, drifts = (None if x is None else x.movedim(-1, 0).tolist() for x in draws)
        for i, board in enumerate(boards):
            told = board.option(int(action[i]), rules, slips and slips[i], drifts and drifts[i])
            reward, duration, last = (x[i].item() for x in (answer.reward, answer.duration, answer.last))
            assert (pytest.approx(reward, abs=1e-5), duration, last) == told
            assert answer.discount[i].item() == pytest.approx(0.0 if last else 0.98 ** (duration - 1))
            assert (board.planes(env.time_limit) == seen[i]).all()
            if env.drift:
                assert [place(c) for c in answer.successor.places[i].tolist()] == board.goals
            if last:
                boards[i] = board_of(env, answer.walkers, i)
            ended, long = ended + last, long + (duration > 2)
        env.walkers = answer.walkers
    assert ended > 20 and (long > 20 or not rules.options)


def test_mazes_are_those_of_plain_python():
    """The same generator without compilation, from the same random numbers."""
    made = collect_mazes.pool(8, 5, 40, 3)
    again = [np.zeros_like(x) for x in made]
    carve, pierce = collect_mazes.carve.py_func, collect_mazes.pierce.py_func
    rng = np.random.default_rng(3)
    for maze in range(40):
        carve(again[0][maze], rng)
        for _ in range(5):
            pierce(again[0][maze], rng)
        rng.random(int(made.count[maze]) - 1)  # their order
    assert (again[0] == made.open).all()


# -- when options stop, on maps drawn by hand


@pytest.mark.parametrize(
    ("drawn", "action", "at", "duration", "reward"),
    [
        ("A..... #####.", RIGHT, (1, 6), 5, -0.2 * 5),  # a bend: wall ahead
        ("A....", RIGHT, (1, 5), 4, -0.2 * 4),  # a dead end
        (".A...", LEFT, (1, 1), 1, -0.2),
        ("A.... ##.##", RIGHT, (1, 3), 2, -0.2 * 2),  # a junction of three ways
        ("##.## A.... ##.##", RIGHT, (2, 3), 2, -0.2 * 2),  # of four
        ("##A## ##.## ..... ##.##", DOWN, (3, 3), 2, -0.2 * 2),
        ("A.g..", RIGHT, (1, 3), 2, -0.2 + 2.0),  # a goal halfway down the corridor
        ("Ag...", RIGHT, (1, 2), 1, 2.0),
        ("A....", UP, (1, 1), 1, -0.5),  # a bump into the border
        ("A.... #####", DOWN, (1, 1), 1, -0.5),  # and into a wall
        ("........ ........ .......A", LEFT, (3, 7), 1, -0.2),  # of an open field all is a junction
        (".......# .######. .######. .######. .######. .######. .######. #.#####A", UP, (2, 8), 6, -0.2 * 6),
        ("g####### A####### .####### .####### .####### .####### .####### .#######", DOWN, (8, 1), 6, -0.2 * 6),
        ("A####### .####### .####### .####### .####### .####### .####### g#######", DOWN, (8, 1), 7, -0.2 * 6 + 2.0),
        ("######## ######## ######## ######## ######## ######## ######## g......A", LEFT, (8, 1), 7, -0.2 * 6 + 2.0),
        ("######## ######## ######## ######## ######## ######## ######## A......g", RIGHT, (8, 8), 7, -0.2 * 6 + 2.0),
        ("......A# #######g", RIGHT, (1, 7), 1, -0.5),  # a row does not go on in the next
        ("#######g A.......", LEFT, (2, 1), 1, -0.5),
    ],
)
def test_when_an_option_stops(drawn, action, at, duration, reward):
    env = Collect(1, option_gamma=1.0, **SMALL)
    env.reset(0)
    walkers = walkers_of(env, drawn)
    if "g" not in drawn:
        walkers = walkers._replace(goals=torch.tensor([1 << cell(7, 7)]))  # out of reach
    answer = env.advance(walkers, torch.tensor([action]), None, None)
    assert int(answer.successor.agent) == cell(*at)
    assert int(answer.duration) == duration and float(answer.reward) == pytest.approx(reward, abs=1e-6)


def test_the_time_is_up_in_the_middle_of_an_option_and_that_is_the_end():
    env = Collect(1, **SMALL)
    env.reset(0)
    answer = env.advance(walkers_of(env, "A.....g", left=3), torch.tensor([RIGHT]), None, None)
    assert int(answer.successor.agent) == cell(1, 4) and int(answer.duration) == 3 and int(answer.successor.left) == 0
    assert bool(answer.last) and float(answer.discount) == 0
    assert float(answer.reward) == pytest.approx(-0.2 * (1 + 0.99 + 0.99**2))
    assert int(answer.walkers.left) == 20 and int(answer.walkers.number) == 1
    assert int(answer.successor.goals) == 1 << cell(1, 7)


def test_the_last_goal_ends_the_episode():
    env = Collect(2, goals=2, **SMALL)
    env.reset(0)
    answer = env.advance(walkers_of(env, "A.g....", "A.g.g.."), torch.tensor([RIGHT, RIGHT]), None, None)
    assert answer.last.tolist() == [True, False]
    assert answer.discount.tolist() == pytest.approx([0.0, 0.98])
    assert answer.reward.tolist() == pytest.approx([-0.2 + 0.99 * 2] * 2)


def test_an_option_slips_past_a_junction_and_nothing_else():
    env = Collect(1, slip=0.3, **SMALL)
    env.reset(0)
    walkers = walkers_of(env, "A...... ##.#.#g")
    for slips, at in (([0.9] * 7, 3), ([0.9, 0.2] + [0.9] * 5, 5), ([0.2] * 7, 7), ([0.2, 0.3] + [0.0] * 5, 3)):
        answer = env.advance(walkers, torch.tensor([RIGHT]), torch.tensor(slips)[:, None], None)
        assert int(answer.successor.agent) == cell(1, at)
    answer = env.advance(walkers_of(env, "A.g...."), torch.tensor([RIGHT]), torch.zeros(7, 1), None)
    assert int(answer.successor.agent) == cell(1, 3)


def test_goals_go_to_free_cells_only_one_after_another():
    """In a corridor g1 is hemmed in by the agent and g2; that goes on, into the one free cell, and leaves its own."""
    env = Collect(1, drift=0.3, goals=2, options=False, **SMALL)
    env.reset(0)
    walkers = walkers_of(env, "A.gg.")
    all_move, none = torch.zeros(1, 2, 1), torch.full((1, 2, 1), 0.3)
    for draws, places in ((all_move, [cell(1, 3), cell(1, 5)]), (none, [cell(1, 3), cell(1, 4)])):
        answer = env.advance(walkers, torch.tensor([RIGHT]), None, draws)
        assert answer.successor.places.tolist() == [places]
        assert int(answer.successor.goals) == sum(1 << p for p in places)
    swapped = walkers._replace(places=walkers.places.flip(1))  # the other order: the second can follow the first
    answer = env.advance(swapped, torch.tensor([RIGHT]), None, all_move)
    assert answer.successor.places.tolist() == [[cell(1, 5), cell(1, 4)]]


@pytest.mark.parametrize(
    ("drawn", "free"), [(".## .gA .#.", 1), (".#A .g. .#.", 2), ("#A# .g. ...", 3), ("..A .g. ...", 4)]
)
def test_a_goal_moves_to_each_free_cell_alike(drawn, free):
    env = Collect(2_400, drift=0.3, goals=1, options=False, **SMALL)
    env.reset(0)
    walkers = Walkers(*(x.expand(2_400, *x.shape[1:]) for x in walkers_of(env, drawn)))  # who all bump
    draws = ((torch.arange(2_400) + 0.5) / 2_400).view(1, 1, -1)
    after = env.advance(walkers, torch.full((2_400,), UP), None, draws).successor.places.flatten()
    moved = after[after != int(walkers.places[0])]
    assert len(moved) == 720 and sorted(moved.bincount()[moved.unique()].tolist()) == [720 // free] * free


# -- mazes and first states


def neighbours(open: np.ndarray) -> np.ndarray:
    """How many open cells are beside each, [P, 8, 8]."""
    return ndimage.convolve(open.astype(int), [[[0, 1, 0], [1, 0, 1], [0, 1, 0]]], mode="constant")


def test_mazes_obey_the_laws_of_the_generator():
    """Means known from 4,000 mazes of each kind. All hang together, with one ring a hole, where it finds a place."""
    means = {0: 40.75, 1: 41.66, 2: 42.61, 3: 43.45, 5: 44.51}
    for holes, mean in means.items():
        made = collect_mazes.pool(8, holes, 4_000, 0)
        assert (made.open.sum((1, 2)) == made.count).all()
        assert abs(made.count.mean() - mean) < 4 * 2**0.5 * made.count.std() / 4_000**0.5
        assert all(ndimage.label(maze)[1] == 1 for maze in made.open[:300])
        edges = (made.open & np.roll(made.open, 1, 1))[:, 1:].sum((1, 2))
        edges += (made.open & np.roll(made.open, 1, 2))[:, :, 1:].sum((1, 2))
        rings = edges - made.count + 1
        assert (rings <= holes).all()
        for maze in made.open[rings < holes][:20]:  # nowhere left for one more
            assert not collect_mazes.pierce.py_func(maze.copy(), np.random.default_rng(0))
    ways = neighbours(made.open)
    assert abs(made.count.std() - 1.49) < 0.08 and made.count.min() >= 35 and made.count.max() <= 50
    for cells, mean in (((ways >= 3) & made.open, 11.65), ((ways == 1) & made.open, 8.12)):
        counts = cells.sum((1, 2))
        assert abs(counts.mean() - mean) < 4 * 2**0.5 * counts.std() / 4_000**0.5


def test_no_corridor_zigzags():
    """A corridor that turned goes straight on, as long as it is carved without going back."""

    class Watched(np.ndarray):
        def __setitem__(self, at, value):
            path.append(at)
            super().__setitem__(at, value)

    bends = 0
    for seed in range(40):
        path = []
        collect_mazes.carve.py_func(np.zeros((8, 8), bool).view(Watched), np.random.default_rng(seed))
        moves = [tuple(np.subtract(b, a)) for a, b in pairwise(path)]
        for a, b, c in zip(moves, moves[1:], moves[2:], strict=False):
            if all(abs(dy) + abs(dx) == 1 for dy, dx in (a, b, c)) and a != b:
                bends += 1
                assert b == c
    assert bends > 100


def test_small_mazes_lie_within_their_border():
    made = collect_mazes.pool(4, 3, 300, 0)
    assert not made.open[:, 4:].any() and not made.open[:, :, 4:].any() and made.count.min() > 7
    env = Collect(300, size=6, goals=2, mazes=300)
    walls = env.reset(0)[:, 0]
    assert walls.shape == (300, 6, 6) and (walls[:, [0, -1]] == 1).all() and (walls[:, :, [0, -1]] == 1).all()


def test_first_states():
    """Agent and goals lie apart, on open cells; all eight symmetries of all mazes come alike; time is whole."""
    env = Collect(20_000, mazes=2)
    obs = env.reset(0)
    walls, agent, goals, left = obs.unbind(1)
    assert (agent.sum((1, 2)) == 1).all() and (goals.sum((1, 2)) == 8).all() and (left == 1).all()
    assert not (walls * (agent + goals)).any() and not (agent * goals).any()
    masks, counts = env.walkers.open.unique(return_counts=True)
    assert len(masks) == 16 and (counts - 1_250).abs().max() < 4 * 1_250**0.5
    images = collect_mazes.pool(8, 5, 2, 0).open
    wanted = {np.rot90(m, k).tobytes() for maze in images for m in (maze, maze.T) for k in range(4)}
    assert {w.tobytes() for w in walls[:, 1:-1, 1:-1].numpy() == 0} == wanted


def test_agent_and_goals_are_uniform_over_the_open_cells():
    """With chi-square, of many mazes: which of the open cells, in the order of the map, the agent and the goals take."""
    env = Collect(40_000, mazes=20_000)
    walls, agent, goals, _ = env.reset(1).unbind(1)
    open = (walls == 0).flatten(1)
    rank, count = open.cumsum(1) - 1, open.sum(1)
    for things in (agent, goals):
        share = (rank / count.unsqueeze(1))[things.flatten(1) > 0]  # in [0, 1), by tenths
        observed = (10 * share).long().bincount(minlength=10).double()
        expected = torch.zeros(10, dtype=torch.float64)
        for n, mazes in zip(*count.unique(return_counts=True), strict=True):
            tenths = (10 * torch.arange(int(n)) / n).long().bincount(minlength=10)
            expected += tenths * mazes / n * (things[0].sum())
        assert ((observed - expected) ** 2 / expected).sum() < 9 + 4 * 18**0.5


def test_the_same_mazes_whatever_the_policy_and_the_number_of_envs():
    def firsts(num_envs, seed, policy):
        env, seen = Collect(num_envs, **SMALL), {}
        obs = env.reset(seed)
        rng = torch.Generator().manual_seed(policy)
        while len(seen) < 40:
            for i in range(num_envs):
                assert int(env.walkers.number[i]) % num_envs == i
                if env.walkers.left[i] == 20:
                    seen[int(env.walkers.number[i])] = obs[i]
            obs = env.step(torch.randint(4, (num_envs,), generator=rng)).obs
        return torch.stack([seen[k] for k in range(20)])

    assert torch.equal(firsts(4, 5, 0), firsts(10, 5, 1)) and not torch.equal(firsts(4, 5, 0), firsts(4, 6, 0))


# -- the published facts


def score(agent, episodes, seed=0, **settings):
    env = Collect(episodes, option_gamma=1.0, mazes=8_192, **settings)
    player = agent(env.spec, env.device, seed=seed)
    returns, lengths = play(env, player.act, episodes, seed)
    return returns.double(), lengths.double(), player.view(env.reset(seed)).value


def optimal(spec, device, seed, ties="earliest"):
    return Optimal(spec, device, seed, ties=ties, **WORLD)


def any_tie(spec, device, seed):
    return optimal(spec, device, seed, "any")


FACTS = [  # mean, its standard error, episodes, options an episode
    pytest.param(Random, {}, -3.21, 0.05, 4_000, 15.4, id="random"),
    pytest.param(Random, STOCHASTIC, -2.59, 0.05, 2_000, 14.3, id="random_stochastic"),
    pytest.param(Greedy, {}, 8.61, 0.045, 2_000, 14.2, id="greedy"),
    pytest.param(Greedy, STOCHASTIC, 7.625, 0.05, 2_000, None, id="greedy_stochastic"),
    pytest.param(optimal, {}, 9.72, 0.04, 2_000, None, id="optimal"),
    pytest.param(optimal, STOCHASTIC, 7.965, 0.095, 1_000, None, id="earliest_stochastic"),
    pytest.param(any_tie, STOCHASTIC, 7.63, 0.095, 1_000, None, id="any_stochastic"),
    pytest.param(Greedy, {"goals": 5}, 5.34, 0.045, 1_000, None, id="greedy_fewer_goals"),
    pytest.param(optimal, {"goals": 5}, 5.82, 0.04, 1_000, None, id="optimal_fewer_goals"),
    pytest.param(optimal, {"holes": 2}, 8.98, 0.055, 1_000, None, id="optimal_more_walls"),
]


@pytest.mark.parametrize(("agent", "settings", "mean", "error", "episodes", "length"), FACTS)
def test_scores_are_those_known(agent, settings, mean, error, episodes, length):
    """Within 4 standard errors of both."""
    returns, lengths, _ = score(agent, episodes, **settings)
    assert abs(returns.mean() - mean) < 4 * (returns.var() / episodes + error**2) ** 0.5
    if length:
        assert abs(lengths.mean() - length) < 4 * (2 * lengths.var() / episodes) ** 0.5 + 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "settings", "mean", "error", "episodes", "length"), FACTS)
def test_scores_are_those_known_on_more_mazes(agent, settings, mean, error, episodes, length):
    returns, _, _ = score(agent, 20_000, seed=9, **settings)
    assert abs(returns.mean() - mean) < 4 * (returns.var() / 20_000 + error**2) ** 0.5


def test_the_bands_of_the_acceptance_ladder():
    returns, _, value = score(optimal, 2_000)
    assert 9.5 < returns.mean() < 9.95
    goals = (returns + 4) / 2.2
    goals = torch.where(goals > 7.99, 8.0, goals.round())
    assert goals.mean() == pytest.approx(6.245, abs=0.1)
    shares = goals.long().bincount(minlength=9)[4:] / 2_000
    assert shares.tolist() == pytest.approx([0.018, 0.151, 0.455, 0.316, 0.059], abs=0.045)
    assert 8.4 < score(Greedy, 2_000)[0].mean() < 8.9


@pytest.mark.parametrize("settings", [{}, {"options": False}, {"goals": 3, "time_limit": 9, "size": 8}])
def test_no_policy_beats_the_optimum_on_any_maze_and_the_optimal_one_attains_it(settings):
    world = WORLD | {"time_limit": settings.get("time_limit", 20)}
    best = lambda spec, device, seed: Optimal(spec, device, seed, **world)  # noqa: E731
    returns, _, value = score(best, 500, **settings)
    assert torch.allclose(returns, value.double(), atol=1e-5)
    for agent in (Greedy, Random):
        assert (score(agent, 500, **settings)[0] <= value + 1e-5).all()


def brute_force(board: Board, rules: Rules) -> float:
    """The best return, by all sequences of moves."""
    if board.over:
        return 0.0
    best = -np.inf
    for action in range(4):
        after = Board(board.rows, board.agent, list(board.goals), board.left)
        reward, _ = after.primitive(action, rules, None)
        best = max(best, reward + brute_force(after, rules))
    return best


def test_the_optimum_is_that_of_all_sequences_of_moves():
    env = Collect(12, size=6, goals=3, time_limit=6, mazes=300)
    obs = env.reset(0)
    player = Optimal(env.spec, env.device, 0, **WORLD | {"time_limit": 6})
    found = player.view(obs).value.tolist()
    assert found == pytest.approx([brute_force(board_of(env, env.walkers, i), Rules(time_limit=6)) for i in range(12)])
    assert len(set(found)) > 3


# -- policies


def first_moves(agent, drawn, left=20):
    env = Collect(1, **SMALL)
    env.reset(0)
    obs = env.look(walkers_of(env, drawn, left=left))
    return agent(env.spec, env.device, 0).view(obs)


def test_greedy_goes_to_the_nearest_goal_and_draws_lots_between_equals():
    assert first_moves(Greedy, "g..A.g").bars.tolist() == [[0, 1, 0, 0]]
    assert first_moves(Greedy, "g.A.g").bars.tolist() == [[0, 0.5, 0, 0.5]]
    assert first_moves(Greedy, "A. .g").bars.tolist() == [[0, 0.5, 0.5, 0]]  # two ways to one goal
    assert first_moves(Greedy, "A.g .g#").bars.tolist() == [[0, 0.75, 0.25, 0]]  # one way to one, two to the other
    assert first_moves(Greedy, "#g#A #.#. #...").bars.tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("left", "bars", "value"),
    [(20, [0, 0, 0, 1], 3 * 2 - 0.2 * 6), (9, [0, 0, 0, 1], 3 * 2 - 0.2 * 6), (8, [0, 1, 0, 0], 2 * 2 - 0.2 * 6),
     (4, [0, 0, 0, 1], 1 * 2 - 0.2 * 3), (1, [0, 0.5, 0, 0.5], -0.2)],
)  # fmt: skip
def test_the_optimal_policy_takes_what_time_allows(left, bars, value):
    view = first_moves(optimal, "g.A...gg", left=left)
    assert view.bars.tolist() == [bars] and view.value.tolist() == pytest.approx([value])


def test_ties_between_sets_of_goals():
    """Four moves reach one goal either way, the left one in two."""
    assert first_moves(optimal, "g.A...g", left=4).bars.tolist() == [[0, 0, 0, 1]]
    assert first_moves(any_tie, "g.A...g", left=4).bars.tolist() == [[0, 0.5, 0, 0.5]]


def test_policies_draw_from_a_stream_of_their_own_and_it_is_saved():
    env = Collect(50, **SMALL)
    obs = env.reset(0)
    one, two = (Greedy(env.spec, env.device, seed) for seed in (0, 1))
    one.act(obs)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.act(obs), two.act(obs)) and one.act(obs).dtype == torch.int64


# -- the device, stopping and going on


@pytest.mark.parametrize("settings", [{}, STOCHASTIC, {"options": False}])
def test_no_step_waits_for_the_device(settings):
    from test_stepper import NoSync

    env = Collect(8, time_limit=4, goals=3, **SMALL, **settings)
    env.reset(0)
    with NoSync():
        for _ in range(6):
            env.step(torch.randint(4, (8,)))
    with FakeTensorMode(allow_non_fake_inputs=True), NoSync():
        env.step(torch.zeros(8, dtype=torch.int64))


def test_a_compiled_step_is_the_step():
    env = Collect(50, size=5, goals=2, time_limit=4, **SMALL)
    env.reset(0)
    advance, walkers = torch.compile(env.advance, fullgraph=True, backend="aot_eager"), env.walkers
    for _ in range(30):
        action = torch.randint(4, (50,))
        fast, plain = advance(walkers, action, None, None), env.advance(walkers, action, None, None)
        assert all(torch.equal(a, b) for a, b in zip(fast[2:] + fast[0], plain[2:] + plain[0], strict=True))
        walkers = plain.walkers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("settings", [{}, STOCHASTIC])
def test_a_gpu_plays_the_same_episodes(settings):
    one, two = (Collect(64, **SMALL, **settings, device=device) for device in ("cpu", "cuda"))
    assert torch.equal(one.reset(3), two.reset(3).cpu())
    for _ in range(40):
        action, draws = torch.randint(4, (64,)), one.draw()
        a = one.advance(one.walkers, action, *draws)
        b = two.advance(two.walkers, action.cuda(), *(x if x is None else x.cuda() for x in draws))
        assert all(torch.equal(x, y.cpu()) for x, y in zip((*a[0], *a[1], *a[2:]), (*b[0], *b[1], *b[2:]), strict=True))
        one.walkers, two.walkers = a.walkers, b.walkers


@pytest.mark.parametrize("settings", [{}, STOCHASTIC, {"size": 6, "goals": 2, "options": False}])
def test_a_restored_env_goes_on_as_if_nothing_happened(settings):
    one, two = (Collect(9, **SMALL, **settings) for _ in range(2))
    one.reset(0), two.reset(1)
    actions = torch.randint(4, (60, 9))
    for action in actions[:30]:
        one.step(action)
    two.load_state_dict({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in one.state_dict().items()})
    three = Collect(9, **SMALL, **settings)  # as a new process: never reset
    three.load_state_dict(two.state_dict())
    assert torch.equal(one.observe(), two.observe())
    for action in actions[30:]:
        steps = [env.step(action) for env in (one, two, three)]
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*steps, strict=True))


def test_a_state_of_other_walkers_is_refused():
    one, two = Collect(8, **SMALL), Collect(9, **SMALL)
    one.reset(0)
    with pytest.raises(ValueError, match="8 walkers, not env.num_envs=9"):
        two.load_state_dict(one.state_dict())


def test_a_later_step_leaves_what_was_seen_as_it_was():
    env = Collect(5, **SMALL)
    env.reset(0)
    step = env.step(torch.zeros(5, dtype=torch.int64))
    seen = step.obs.clone(), step.next_obs.clone()
    for a in (1, 2, 3):
        env.step(torch.full((5,), a))
    assert torch.equal(step.obs, seen[0]) and torch.equal(step.next_obs, seen[1])


def test_the_true_successor_is_kept_where_an_episode_ends():
    env = Collect(30, time_limit=2, **SMALL)
    obs = env.reset(0)
    for _ in range(8):
        step = env.step(torch.randint(4, (30,)))
        assert torch.equal(step.obs[~step.last], step.next_obs[~step.last])
        assert torch.equal(step.next_obs[:, 0], obs[:, 0])  # still the same walls
        assert (step.next_obs[:, 3].amax((1, 2)) == 0)[step.last].all() and (step.obs[:, 3] == 1)[step.last].all()
        obs = step.obs


# -- as others see it


def test_gymnasium_sees_the_same_world():
    world = {"mazes": 64, "maze_seed": 3}
    theirs, ours = gymnasium.make("rl_lab/Collect-v0", render_mode="ansi", **world), Collect(1, **world)
    seen, _ = theirs.reset(seed=5)
    seed = int(np.random.default_rng(np.random.SeedSequence(5)).integers(2**62))
    assert (seen == ours.reset(seed)[0].numpy()).all() and theirs.observation_space.contains(seen)
    assert theirs.render() == "\n".join(drawn(board_of(ours, ours.walkers, 0))) + "\n"
    over = False
    for t in range(40):
        if over:
            seen, _ = theirs.reset()
            break
        seen, reward, terminated, truncated, info = theirs.step(t % 4)
        step = ours.step(torch.tensor([t % 4]))
        assert (seen == step.next_obs[0].numpy()).all() and reward == float(step.reward) and not truncated
        assert (terminated, info) == (bool(step.last), {"duration": int(step.duration)})
        over = terminated
    assert over and seen[3].min() == 1


def drawn(board: Board) -> list[str]:
    things = {goal: "G" for goal in board.goals if goal} | {board.agent: "@"}
    return ["".join(things.get((y, x), glyph) for x, glyph in enumerate(row)) for y, row in enumerate(board.rows)]


def test_gymnasiums_vector_resets_in_each_of_its_ways():
    world = {"mazes": 64, "time_limit": 4}
    same, later, never = (
        gymnasium.make_vec("rl_lab/Collect-v0", 6, autoreset_mode=mode, **world)
        for mode in ("SameStep", "NextStep", "Disabled")
    )
    ours = Collect(6, **world)
    obs = ours.reset(2)
    assert all((env.reset(seed=2)[0] == obs.numpy()).all() for env in (same, later, never))
    over, rng, ended = np.zeros(6, bool), np.random.default_rng(0), 0
    while ended < 20:
        action = rng.integers(4, size=6)
        step, (seen, reward, terminated, truncated, info) = ours.step(torch.from_numpy(action)), same.step(action)
        assert (seen == step.obs.numpy()).all() and (reward == step.reward.double().numpy()).all()
        assert (terminated == step.last.numpy()).all() and not truncated.any()
        for i in np.flatnonzero(terminated):
            assert (info["final_obs"][i] == step.next_obs[i].numpy()).all()
        ended += terminated.sum()
    while not over.any():
        action = rng.integers(4, size=6)
        seen, _, over, *_ = later.step(action)
        assert (seen == never.step(action)[0]).all()
    seen, reward, terminated, *_ = later.step(action)
    fresh, _ = never.reset(options={"reset_mask": over})
    assert (reward[over] == 0).all() and not terminated[over].any() and (seen[over, 3] == 1).all()
    assert (fresh[over, 3] == 1).all() and (fresh[~over, 3] < 1).all()


@pytest.fixture(scope="module")
def greedy_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "greedy"
    recipe = ["experiment=greedy_collect", "env.mazes=300", "loop.eval_episodes=500", "loop.eval_env.mazes=300"]
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", *recipe, "tracker=none", "device=cpu",
                                               f"hydra.run.dir={folder}"]) == 0  # fmt: skip
    return folder


def test_evaluation_reports_the_plain_sum_of_rewards(greedy_run):
    """Returns of k goals in all the time are 2.2 k - 4, and of all goals by time T 17.6 - 0.2 T; greedily, without bumps."""
    assert cli.main("rl-lab", "rl", COMMANDS, ["evaluate", f"run={greedy_run}", "episodes=500", "device=cpu"]) == 0
    returns = torch.tensor(json.loads((greedy_run / "evaluation.json").read_text())["returns"])
    sums = torch.cat([2.2 * torch.arange(8) - 4, 17.6 - 0.2 * torch.arange(8, 21)])
    assert (returns.unsqueeze(1) - sums).abs().min(1).values.max() < 1e-4
    assert 8.0 < returns.mean() < 9.2


def test_a_film_shows_where_the_agent_is_and_what_is_left(greedy_run):
    player = load(greedy_run, max_envs=1, device="cpu", camera=True)
    moments = list(render.play(player, episodes=1, seed=4, max_steps=100))
    obs = player.env.reset(4)
    assert moments[-1].ending == "terminated" and len(moments) > 5
    assert moments[0].picture.tobytes() == maze_pictures.maze(obs[0].numpy()).tobytes()
    assert len({moment.picture.tobytes() for moment in moments}) == len(moments)


def test_what_a_picture_shows():
    env = Collect(1, **SMALL)
    env.reset(0)
    obs = env.look(walkers_of(env, "A.g #.#", left=5))[0].numpy()
    board, picture = maze_pictures.bare(maze_pictures.board_rows(obs), panels.SIZE), maze_pictures.maze(obs)
    colours = {place: picture.getpixel(board.centre(*place)) for place in ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3))}
    wanted = [panels.AGENT, pictures.FLOOR, pictures.GOAL, pictures.FLOOR, pictures.WALL]
    assert list(colours.values()) == [ImageColor.getrgb(colour) for colour in wanted]
    bar = [picture.getpixel((x, picture.height - 5)) for x in range(10, picture.width - 10)]
    assert bar.count(ImageColor.getrgb(panels.AGENT)) / len(bar) == pytest.approx(0.25, abs=0.02)


def test_random_play_is_recorded_with_its_pictures():
    node = {"_target_": "rl_lab.envs.collect.Collect", "num_envs": 2, "size": 6, "goals": 2, "mazes": 50}
    stage = of_world(OmegaConf.create(node), 2, "cpu", True)
    (episode, *_) = stage.episodes([1, 1], 0, True)
    assert episode.frames.shape[0] == len(episode.action) and episode.frames.dtype == np.uint8
    assert (episode.frames[0] == np.asarray(maze_pictures.maze(episode.obs[0]))).all()


# -- mistakes


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"goals": 64}, "env.goals=64 is impossible: a maze of env.size=10 has 64 cells, and the agent needs one; "),
        ({"goals": 47}, "env.goals=47 is impossible: some mazes have 3"),
        ({"size": 4, "goals": 4}, "env.goals=4 is impossible: a maze of env.size=4 has 4 cells, and the agent needs"),
    ],
)
def test_mistakes_are_named(settings, line):
    with pytest.raises(UserError) as error:
        Collect(2, **SMALL, **settings).reset(0)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_policies_know_where_they_belong():
    env = Collect(1, **SMALL)
    wrong = env.spec._replace(obs_shape=(4,))
    with pytest.raises(UserError, match="^agent=greedy_collector knows one world, Collect; take env=collect$"):
        Greedy(wrong, env.device, 0)
    with pytest.raises(UserError, match="^env.living_reward=0.1 is beyond agent=optimal_collector, which takes time"):
        Optimal(env.spec, env.device, 0, **WORLD | {"living_reward": 0.1})
    crowded = Collect(1, goals=17, **SMALL)
    with pytest.raises(UserError, match="^env.goals=17 are too many to try all orders; take 16 at most$"):
        optimal(crowded.spec, crowded.device, 0).act(crowded.reset(0))
