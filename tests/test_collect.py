"""Collect against its plain-Python reference, and when its options stop."""

import numpy as np
import pytest
import torch
from collect_cases import DOWN, LEFT, RIGHT, SMALL, STOCHASTIC, UP, WORLD, board_of, cell, optimal, place, walkers_of
from collect_reference import Rules
from stated import stated
from torch._subclasses.fake_tensor import FakeTensorMode

from rl_lab.agents.collectors import Greedy
from rl_lab.core.errors import UserError
from rl_lab.envs.collect import mazes as collect_mazes
from rl_lab.envs.collect.world import Walkers

Collect = stated("env/collect")
Optimal = stated("agent/optimal_collector")

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
            assert answer.discount[i].item() == 1.0 - last
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
        rng.random(int(made.sizes[maze]) - 1)  # their order
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
    assert answer.discount.tolist() == [0.0, 1.0]
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
        steps = [[x for x in env.step(action) if x is not None] for env in (one, two, three)]
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


# -- mistakes


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"goals": 64}, "env.goals=64 must be at most 63: a maze of env.size=10 has 64 cells, and the agent needs one"),
        ({"goals": 47}, "env.goals=47 must be at most 3"),
        (
            {"size": 4, "goals": 4},
            "env.goals=4 must be at most 3: a maze of env.size=4 has 4 cells, and the agent needs",
        ),
    ],
)
def test_mistakes_are_named(settings, line):
    with pytest.raises(UserError) as error:
        Collect(2, **SMALL, **settings).reset(0)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_policies_know_where_they_belong():
    env = Collect(1, **SMALL)
    wrong = env.spec._replace(obs_shape=(4,))
    with pytest.raises(UserError, match="^agent=greedy_collector plays only Collect; take env=collect$"):
        Greedy(wrong, env.device, 0)
    with pytest.raises(UserError, match="^env.living_reward=0.1 must be at most 0 and at most env.goal_reward"):
        Optimal(env.spec, env.device, 0, **WORLD | {"living_reward": 0.1})
    crowded = Collect(1, goals=17, **SMALL)
    with pytest.raises(UserError, match="^env.goals=17 must be at most 16, since all orders of them are tried$"):
        optimal(crowded.spec, crowded.device, 0).act(crowded.reset(0))
