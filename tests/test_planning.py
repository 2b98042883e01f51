"""The planners against the books, against each other, and against their own bounds."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from stated import stated
from torch.nn.functional import one_hot

from rl_lab.__main__ import COMMANDS
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli, composition
from rl_lab.envs.tabular.mdp import MDP, stack
from rl_lab.planning import Regret, backup, evaluate_policy, follow

finite_horizon = stated("planner/finite_horizon")
gridworld = stated("env/base/gridworld", "mdp")
linear_programming = stated("planner/linear_programming")
modified_policy_iteration = stated("planner/modified_policy_iteration")
policy_evaluation = stated("planner/policy_evaluation")
policy_iteration = stated("planner/policy_iteration")
prioritised_sweeping = stated("planner/prioritised_sweeping")
q_iteration = stated("planner/q_iteration")
toy_text = stated("env/frozen_lake", "mdp", options=None)
value_iteration = stated("planner/value_iteration")

BOOK = "...G\n.#.X\nS..."
FOUR = {"map": BOOK, "living_reward": -0.04, "noise": 0.2}


def last(plans):
    *_, plan = plans
    return plan


def test_russell_and_norvig_third_edition():
    """Artificial Intelligence: A Modern Approach, figure 17.3: rewards in the states."""
    plan = last(value_iteration(gridworld(**FOUR, convention="state"), gamma=1.0))
    expected = [0.8116, 0.8678, 0.9178, 1.0, 0.7616, 0.6603, -1.0, 0.7053, 0.6553, 0.6114, 0.3879, 0.0]
    torch.testing.assert_close(plan.q.max(-1).values, torch.tensor(expected).double(), atol=1e-4, rtol=0)
    up, right, left = 0, 1, 3
    policy = plan.policy.tolist()
    assert [policy[s] for s in (0, 1, 2, 4, 5, 7, 8, 9, 10)] == [right, right, right, up, up, up, left, left, left]


def test_russell_and_norvig_fourth_edition():
    """Rewards on the transitions: every value is .04 higher."""
    plan = last(value_iteration(gridworld(**FOUR), gamma=1.0))
    expected = [0.8516, 0.9078, 0.9578, 0.0, 0.8016, 0.7003, 0.0, 0.7453, 0.6953, 0.6514, 0.4279]
    torch.testing.assert_close(plan.q.max(-1).values, torch.tensor(expected).double(), atol=1e-4, rtol=0)
    assert plan.q[9].tolist() == pytest.approx([0.6325, 0.4375, 0.5935, 0.6514], abs=1e-4)  # at (3, 1): N E S W


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0.9, [0.5094, 0.6496, 0.7954, 1, 0.3985, 0.4864, -1, 0.2965, 0.2540, 0.3448, 0.1299, 0]),
        (0.99, [0.7762, 0.8439, 0.9051, 1, 0.7166, 0.6413, -1, 0.6507, 0.5927, 0.5601, 0.3380, 0]),
    ],
)
def test_discounted_book_world(gamma, expected):
    mdp = gridworld(**FOUR, convention="state")
    for plan in (last(value_iteration(mdp, gamma=gamma)), last(policy_iteration(mdp, gamma=gamma))):
        torch.testing.assert_close(plan.q.max(-1).values, torch.tensor(expected).double(), atol=1e-4, rtol=0)


def random_mdp(seed: int, states: int = 20, actions: int = 3, successors: int = 4) -> MDP:
    rng = torch.Generator().manual_seed(seed)
    p = torch.rand(states, actions, successors, generator=rng, dtype=torch.float64)
    return MDP(
        torch.randint(states, (states, actions, successors), generator=rng), p / p.sum(-1, keepdim=True),
        torch.randn(states, actions, successors, generator=rng, dtype=torch.float64), torch.zeros(states, dtype=torch.bool),
        torch.full((states,), 1 / states, dtype=torch.float64), tuple("abc"),
    )  # fmt: skip


PLANNERS = {
    "value iteration": value_iteration,
    "in place": partial(value_iteration, sweep="in_place"),
    "symmetric, from below": partial(value_iteration, sweep="symmetric", initial="pessimistic"),
    "prioritised": prioritised_sweeping,
    "prioritised, small blocks": partial(prioritised_sweeping, block=3),
    "Q-iteration": q_iteration,
    "policy iteration": policy_iteration,
    "modified policy iteration": modified_policy_iteration,
    "linear programme": linear_programming,
}
BOUNDED = [name for name in PLANNERS if name != "linear programme"]


@pytest.mark.parametrize(("gamma", "seeds"), [(0.9, 6), (0.99, 2), pytest.param(0.5, 54, marks=pytest.mark.slow)])
def test_every_planner_finds_the_same_values(gamma, seeds):
    for seed in range(seeds):
        mdp = random_mdp(seed)
        exact = evaluate_policy(mdp, last(policy_iteration(mdp, gamma=gamma)).policy, gamma)
        torch.testing.assert_close(backup(mdp._replace(gamma=gamma), exact).max(-1).values, exact, atol=1e-11, rtol=0)
        for name, planner in PLANNERS.items():
            plan = last(planner(mdp, gamma=gamma))
            torch.testing.assert_close(plan.value, exact, atol=1e-8, rtol=0, msg=name)
            torch.testing.assert_close(plan.q.max(-1).values, exact, atol=1e-8, rtol=0, msg=name)


@pytest.mark.parametrize("name", BOUNDED)
def test_the_bounds_of_every_sweep_hold(name):
    for seed in range(5):
        mdp = random_mdp(seed)
        exact = last(policy_iteration(mdp, gamma=0.9)).value
        for plan in PLANNERS[name](mdp, gamma=0.9):
            assert (plan.value + plan.low <= exact + 1e-12).all() and (exact <= plan.value + plan.high + 1e-12).all()


def test_bounds_hold_where_episodes_end():
    """A terminal state's own 0 belongs to the bounds: without it CliffWalking would stop after one sweep."""
    mdp = gridworld("S..\n.XG", rewards={"G": 0.0, "X": -50.0}, living_reward=-1.0, gamma=0.99)
    exact = last(policy_iteration(mdp)).value
    for plan in value_iteration(mdp, stop="span", epsilon=1e-6):
        inner = ~mdp.terminal
        assert (plan.value + plan.low <= exact + 1e-12)[inner].all()
        assert (exact <= plan.value + plan.high + 1e-12)[inner].all()
    torch.testing.assert_close(plan.value, exact, atol=1e-6, rtol=0)


def alone(reward: float) -> MDP:
    """One state, one action, for ever: v* = reward / (1 - gamma)."""
    return MDP(torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, 1).double(), torch.full((1, 1, 1), reward).double(),
               torch.tensor([False]), torch.ones(1).double(), ("stay",))  # fmt: skip


def test_bounds_are_tight_on_one_state():
    """There the change is the same everywhere: MacQueen's bounds meet, and the rule `value` is exact to a factor gamma."""
    first = next(value_iteration(alone(3.0), gamma=0.9))
    assert first.value.item() == 3.0 and first.low.item() == first.high.item() == pytest.approx(27.0)
    for epsilon in (1.0, 1e-3, 1e-6):
        error = 30.0 - last(value_iteration(alone(3.0), gamma=0.9, epsilon=epsilon)).value.item()
        assert 0.9 * epsilon * 0.999 <= error < epsilon
        assert 0 < 30.0 - last(prioritised_sweeping(alone(3.0), gamma=0.9, epsilon=epsilon)).value.item() <= epsilon
        error = 30.0 - last(value_iteration(alone(3.0), gamma=0.9, epsilon=epsilon, stop="policy")).value.item()
        assert 0.45 * epsilon * 0.999 <= error < epsilon / 2


def test_the_last_sweep_is_looked_at_whenever_the_others_are():
    plans = [*value_iteration(alone(0.0), gamma=0.9, check_every=16, max_sweeps=10)]
    assert len(plans) == 10 and plans[-1].value == 0
    with pytest.raises(UserError, match="has not converged: values change by 3 after 1 sweeps"):
        last(value_iteration(alone(3.0), gamma=0.9, check_every=16, max_sweeps=1))


@pytest.mark.parametrize(
    ("rule", "of_value", "of_policy"), [("value", 1.0, None), ("policy", 0.5, 1.0), ("span", 0.5, 1.0)]
)
def test_stopping_rules_keep_their_word(rule, of_value, of_policy):
    worst_value = worst_policy = 0.0
    for gamma, epsilon in itertools.product((0.5, 0.9, 0.99), (1.0, 1e-2, 1e-5)):
        for seed in range(4):
            mdp = random_mdp(seed)
            exact = last(policy_iteration(mdp, gamma=gamma)).value
            for planner in (value_iteration, modified_policy_iteration):
                plan = last(planner(mdp, gamma=gamma, epsilon=epsilon, stop=rule))
                loss = (exact - evaluate_policy(mdp, plan.policy, gamma)).max().item() / epsilon
                assert loss <= (of_policy or 2 * gamma / (1 - gamma)) + 1e-9
                worst_policy = max(worst_policy, loss)
                error = (plan.value - exact).abs().max().item() / epsilon
                assert error <= of_value + 1e-6
                worst_value = max(worst_value, error)
    assert worst_value > 0.4 * of_value


@pytest.mark.parametrize("planner", [value_iteration, modified_policy_iteration, policy_evaluation])
def test_stopped_by_the_span_the_values_are_in_the_middle(planner):
    """Every state earns 1 for ever: the span is 0 at once, with values that are a sweep's, and not 100."""
    plan = last(planner(stack([alone(1.0), alone(-1.0)]), gamma=0.99, stop="span"))
    assert plan.value.tolist() == [[pytest.approx(100.0)], [pytest.approx(-100.0)]]


def test_sweeps_contract_and_keep_the_order():
    mdp, gamma = random_mdp(0), 0.8
    residuals = [plan.residual.item() for plan in value_iteration(mdp, gamma=gamma)]
    assert all(b <= gamma * a + 1e-14 for a, b in itertools.pairwise(residuals))
    low = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    high = low + torch.rand(20, generator=torch.Generator().manual_seed(1)).double()
    assert (backup(mdp, low) <= backup(mdp, high)).all()


def test_from_below_values_only_rise():
    mdp = gridworld("S.X\n..G", living_reward=-0.1, noise=0.2)
    exact = last(policy_iteration(mdp)).value
    for sweep in ("synchronous", "in_place", "symmetric"):
        values = [p.value for p in value_iteration(mdp, sweep=sweep, initial="pessimistic", epsilon=1e-6)]
        assert all((b >= a - 1e-15).all() for a, b in itertools.pairwise(values))
        assert (values[-1] <= exact + 1e-12).all() and values[0].min() > -10.0


def test_good_news_travels_with_the_order_of_the_sweep():
    """A corridor of 30 cells: backwards along it in one sweep, forwards a cell a sweep."""
    corridor = gridworld("S" + 28 * "." + "G")
    count = lambda **order: len(list(value_iteration(corridor, **order)))
    assert count(sweep="symmetric") <= 4 < 28 < count(sweep="in_place")


def test_what_waits_is_passed_on_to_those_who_read():
    """A one-way street, block by block: state i leads to i + 1, and the last one pays."""
    states = 12
    onward = torch.arange(1, states + 1).clamp(max=states - 1).view(-1, 1, 1)
    pays = torch.zeros(states, 1, 1, dtype=torch.float64)
    pays[-2] = 1.0
    ends = torch.arange(states) == states - 1
    street = MDP(onward, torch.ones_like(pays), pays, ends, (~ends).double() / (states - 1), ("on",), 0.5)
    exact = [0.5 ** (states - 2 - s) for s in range(states - 1)] + [0.0]
    assert last(prioritised_sweeping(street, block=2)).value.tolist() == pytest.approx(exact, abs=1e-9)


def test_from_below_is_below_where_all_rewards_are_good_but_end():
    """One step that pays 1 and ends: 1 for ever would be too much."""
    next_state = torch.tensor([[[1]], [[1]]])
    once = MDP(next_state, torch.ones(2, 1, 1).double(), torch.tensor([[[1.0]], [[0.0]]]).double(), torch.tensor([False, True]),
               torch.tensor([1.0, 0.0]).double(), ("go",), 0.9)  # fmt: skip
    for plan in value_iteration(once, sweep="in_place", initial="pessimistic"):
        assert plan.value.tolist() == [1.0, 0.0]
    assert last(prioritised_sweeping(once, max_sweeps=1)).value.tolist() == [1.0, 0.0]
    assert next(value_iteration(once, initial="pessimistic")).residual == 1.0  # from 0, not from 10


@pytest.mark.parametrize(
    ("id", "counts"),
    [
        ("FrozenLake-v1", {"policy": 258, "value": 238, "span": 238, "iteration": 7, 5: 45, 20: 16, 100: 8}),
        ("Taxi-v4", {"span": 19, "iteration": 17}),
        ("CliffWalking-v1", {"span": 15, "iteration": 15}),
    ],
)
def test_numbers_of_sweeps(id, counts):
    """gamma .99, epsilon 1e-3, from zeros and from the policy of zeros."""
    mdp = toy_text(id)
    for kind, count in counts.items():
        if kind == "iteration":
            plans = list(policy_iteration(mdp, gamma=0.99))
        elif isinstance(kind, int):
            plans = list(
                modified_policy_iteration(mdp, gamma=0.99, epsilon=1e-3, stop="policy", evaluation_sweeps=kind)
            )
        else:
            plans = list(value_iteration(mdp, gamma=0.99, epsilon=1e-3, stop=kind))
        assert len(plans) == count, kind


GRID = {"map": "TSSS SSSS SSSS SSST", "rewards": {"T": -1.0}, "living_reward": -1.0, "gamma": 1.0}


def test_policy_evaluation_of_sutton_and_barto():
    """Reinforcement Learning, figure 4.1: the random policy on the 4x4 world, sweep by sweep."""
    mdp = gridworld(**GRID)
    plans = list(policy_evaluation(mdp, stop="residual", epsilon=1e-4))
    assert len(plans) == 173
    assert len(list(policy_evaluation(mdp, stop="residual", epsilon=1e-4, sweep="in_place"))) == 114
    assert plans[1].value[[1, 2, 5]].tolist() == [-1.75, -2.0, -2.0]
    assert plans[2].value[[1, 2, 5, 6]].tolist() == [-2.4375, -2.9375, -2.875, -3.0]
    expected = [-6.138, -8.352, -8.967, -6.138, -7.737, -8.428, -8.352]
    assert plans[9].value[1:8].tolist() == pytest.approx(expected, abs=5e-4)
    exact = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    uniform = torch.full((16, 4), 0.25).double()
    torch.testing.assert_close(evaluate_policy(mdp, uniform), torch.tensor(exact).double())
    assert plans[-1].value.tolist() == pytest.approx(exact, abs=2e-2)
    greedy = evaluate_policy(mdp, plans[-1].policy)  # one improvement of the random policy is already optimal
    torch.testing.assert_close(greedy, last(value_iteration(mdp)).value)


def test_policy_evaluation_of_given_actions():
    mdp = gridworld("S.G", gamma=0.5)
    right, left = 1, 3
    assert last(policy_evaluation(mdp, policy=[right] * 3)).value.tolist() == [0.5, 1.0, 0.0]
    assert last(policy_evaluation(mdp, policy=[left] * 3)).value.tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(
        UserError, match="planner.policy must be `random`, or one of the actions 0 to 3 for each of 3 states"
    ):
        last(policy_evaluation(mdp, policy=[4, 0, 0]))


def test_to_follow_actions_is_to_follow_them_with_certainty():
    """But their successors alone are kept, in a batch too: K of them, not A K."""
    worlds = stack([gridworld(**FOUR), gridworld(**FOUR | {"noise": 0.4})])
    actions = torch.randint(4, (2, 11), generator=torch.Generator().manual_seed(0))
    chosen, certain = follow(worlds, actions), follow(worlds, one_hot(actions, 4).double())
    assert chosen.next_state.shape == (2, 11, 1, worlds.next_state.shape[-1])
    assert certain.next_state.shape == (2, 11, 1, 4 * worlds.next_state.shape[-1])
    v = torch.rand(2, 11, dtype=torch.float64)
    torch.testing.assert_close(backup(chosen, v), backup(certain, v), rtol=0, atol=1e-15)


def test_frozen_lake_within_its_time_limit():
    mdp = toy_text("FrozenLake-v1")
    plans = list(finite_horizon(mdp, horizon=100, gamma=1.0))
    assert len(plans) == 100 and (mdp.start @ plans[-1].value).item() == pytest.approx(0.744190, abs=1e-6)


def test_a_batch_is_as_each_alone():
    """Worlds of different size, gamma, noise and living reward, in one call."""
    worlds = [gridworld("S.G", gamma=0.9), gridworld("S..X\n..#G", noise=0.3, living_reward=-0.1, gamma=0.5),
              gridworld("S....\n.#.#G", noise=0.2, slip="uniform", living_reward=-1.0)]  # fmt: skip
    batch = stack(worlds)
    assert batch.next_state.shape == (3, 8, 4, 4) and (batch.probability.sum(-1) - 1).abs().max() < 1e-12
    for name, planner in PLANNERS.items():
        together = last(planner(batch))
        for b, world in enumerate(worlds):
            states = len(world.start)
            solo = last(planner(world))
            torch.testing.assert_close(together.value[b, :states], solo.value, atol=1e-8, rtol=0, msg=name)
            torch.testing.assert_close(together.q[b, :states], solo.q, atol=1e-8, rtol=0, msg=name)
            assert (together.value[b, states:] == 0).all()


def test_without_discount_an_end_must_be_in_reach():
    """A pocket that cannot be left and costs: no finite value, and each planner says so before it sweeps."""
    trap = gridworld("S.#.\n..#G", rewards={"G": 1.0}, living_reward=-1.0, gamma=1.0)
    for planner in PLANNERS.values():
        if "pessimistic" not in str(planner):
            with pytest.raises(
                UserError, match="gamma=1 needs an end that every state can reach, and state 0 reaches none"
            ):
                last(planner(trap))
    with pytest.raises(UserError, match="planner.initial=pessimistic needs gamma below 1"):
        last(value_iteration(gridworld("SG", gamma=1.0), initial="pessimistic"))


def test_without_discount_staying_must_not_pay():
    forever = gridworld("S.G", living_reward=1.0, gamma=1.0)
    for name, planner in PLANNERS.items():
        if "below" not in name:
            with pytest.raises(UserError, match="gamma=1: in state 0 it pays never to end, so its value is infinite"):
                last(planner(forever))


def test_sweeps_that_do_not_settle_say_so():
    for planner in (value_iteration, modified_policy_iteration, prioritised_sweeping, q_iteration):
        with pytest.raises(
            UserError, match="has not converged: .* after 50 .*; raise planner.max_sweeps or lower planner.gamma"
        ):
            last(planner(alone(1.0), gamma=0.999, max_sweeps=50))


def test_there_is_no_value_beyond_an_end():
    mdp = gridworld("S.G", gamma=0.5)
    assert backup(mdp, torch.full((3,), 8.0, dtype=torch.float64)).max(-1).values.tolist() == [4.0, 4.0, 0.0]


@pytest.mark.parametrize("name", [name for name in PLANNERS if "below" not in name])
def test_without_discount_the_book_world_is_solved(name):
    """And a corridor, where policy iteration could not even begin from going up, which never ends."""
    corridor = gridworld("S.G", living_reward=-1.0, gamma=1.0)
    assert last(PLANNERS[name](corridor)).value.tolist() == pytest.approx([0.0, 1.0, 0.0])
    plan = last(PLANNERS[name](gridworld(**FOUR), gamma=1.0))
    assert plan.value[[7, 8, 9, 10]].tolist() == pytest.approx([0.745308, 0.695308, 0.651416, 0.427925], abs=1e-6)


def test_regret_is_exact():
    """S.G, gamma .5: the best policy earns .5 from the start, standing still nothing, the random one 1/7 as much."""
    mdp = gridworld("S.G", gamma=0.5)
    regret = Regret(mdp, horizon=100)
    assert regret(torch.tensor([1, 1, 0])) == pytest.approx(0.0, abs=1e-15)
    assert regret(torch.tensor([0, 0, 0])) == pytest.approx(0.5, abs=1e-15)
    uniform = torch.full((3, 4), 0.25, dtype=torch.float64)  # v0 = (3 v0 + v1) / 8, v1 = (v0 + 2 v1 + 2) / 8
    assert regret(uniform) == pytest.approx(0.5 - 2 / 29, abs=1e-15)


def test_regret_without_discount_counts_what_the_time_limit_allows():
    mdp = gridworld("S.G", living_reward=-1.0, gamma=1.0)
    assert Regret(mdp, horizon=70)(torch.zeros(3, dtype=torch.int64)) == 70.0  # the best: -1 + 1


def test_a_plan_leaves_what_there_is_to_look_at(tmp_path):
    """plan.npz as documented, pictures, and a film; each sweep a row with bounds on what the start is worth."""
    arguments = [
        "train",
        "env=frozen_lake",
        "planner=value_iteration",
        "tracker=none",
        "loop.eval_episodes=1",
        f"hydra.run.dir={tmp_path}",
    ]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    found, exact = np.load(tmp_path / "plan.npz"), last(policy_iteration(toy_text("FrozenLake-v1")))
    assert {k: (x.dtype.name, x.shape) for k, x in found.items()} == {
        "q": ("float64", (16, 4)), "value": ("float64", (16,)), "policy": ("int64", (16,))
    }  # fmt: skip
    np.testing.assert_allclose(found["value"], exact.value, atol=1e-9)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(r["plan/start_low"] - 1e-6 <= 0.542026 <= r["plan/start_high"] + 1e-6 for r in rows)
    assert rows[-1]["eval/regret"] == pytest.approx(0.0, abs=1e-12) and rows[-1]["plan/seconds"] > 0
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"values.png", "q.png"}
    assert {p.name for p in (tmp_path / "videos").iterdir()} == {"sweeps.mp4", "sweeps.gif"}


CHOICES = [
    p.stem
    for p in (composition.conf_dir() / "planner").glob("*.yaml")
    if "\n_target_: rl_lab.planning." in p.read_text()
]


@pytest.mark.parametrize("planner", sorted(CHOICES))
def test_every_planner_is_a_choice(tmp_path, planner):
    arguments = ["train", "env=russell_norvig_transition", f"planner={planner}", "tracker=none", "loop.film=false",
                 "loop.eval_episodes=1", f"hydra.run.dir={tmp_path}"]  # fmt: skip
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    final = json.loads((tmp_path / "summary.json").read_text())["final"]
    assert final["eval/regret"] < (0.5 if planner == "policy_evaluation" else 1e-9)  # of one improvement, the former


def test_a_world_without_a_best_policy_is_planned_by_another_gamma(tmp_path, capsys):
    """By the world's own gamma of 1 it would pay never to end: no regret then, and it is said."""
    arguments = ["train", "env=russell_norvig", "env.mdp.living_reward=0.1", "planner=value_iteration", "planner.gamma=0.9",
                 "tracker=none", "loop.film=false", "loop.eval_episodes=1", f"hydra.run.dir={tmp_path}"]  # fmt: skip
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    assert "eval/regret is left out: with the world's own gamma there is no best policy" in capsys.readouterr().err
    assert "eval/regret" not in (tmp_path / "metrics.jsonl").read_text()
