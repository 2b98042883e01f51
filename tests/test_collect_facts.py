"""Collect's mazes, published scores and exact optimum, and the policies that reach it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from collect_cases import SMALL, STOCHASTIC, WORLD, any_tie, board_of, optimal, walkers_of
from collect_reference import Board, Rules
from scipy import ndimage
from stated import stated

from rl_lab.agents.collectors import Greedy
from rl_lab.agents.random import Random
from rl_lab.envs.collect import mazes as collect_mazes
from rl_lab.loops.judging import play

Collect = stated("env/collect")
Optimal = stated("agent/optimal_collector")

# -- mazes and first states


def neighbours(open: np.ndarray) -> np.ndarray:
    """How many open cells are beside each, [P, 8, 8]."""
    return ndimage.convolve(open.astype(int), [[[0, 1, 0], [1, 0, 1], [0, 1, 0]]], mode="constant")


def test_mazes_obey_the_laws_of_the_generator():
    """Means known from 4,000 mazes of each kind. All hang together, with one ring a hole, where it finds a place."""
    means = {0: 40.75, 1: 41.66, 2: 42.61, 3: 43.45, 5: 44.51}
    for holes, mean in means.items():
        made = collect_mazes.pool(8, holes, 4_000, 0)
        assert (made.open.sum((1, 2)) == made.sizes).all()
        assert abs(made.sizes.mean() - mean) < 4 * 2**0.5 * made.sizes.std() / 4_000**0.5
        assert all(ndimage.label(maze)[1] == 1 for maze in made.open[:300])
        edges = (made.open & np.roll(made.open, 1, 1))[:, 1:].sum((1, 2))
        edges += (made.open & np.roll(made.open, 1, 2))[:, :, 1:].sum((1, 2))
        rings = edges - made.sizes + 1
        assert (rings <= holes).all()
        for maze in made.open[rings < holes][:20]:  # nowhere left for one more
            assert not collect_mazes.pierce.py_func(maze.copy(), np.random.default_rng(0))
    ways = neighbours(made.open)
    assert abs(made.sizes.std() - 1.49) < 0.08 and made.sizes.min() >= 35 and made.sizes.max() <= 50
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
    assert not made.open[:, 4:].any() and not made.open[:, :, 4:].any() and made.sizes.min() > 7
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
