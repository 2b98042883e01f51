"""Without discount, or next to it: planners and evaluations against rational numbers, by trying every policy."""

import time
from fractions import Fraction
from functools import partial

import pytest
import torch
from exact_planning import best_values, policy_values
from stated import stated
from tiers import later

from rl_lab.core.errors import UserError
from rl_lab.envs.tabular.mdp import MDP, stack
from rl_lab.planning import Regret, evaluate_policy, values
from rl_lab.planning.elimination import eliminated

finite_horizon = stated("planner/finite_horizon")
gridworld = stated("env/base/gridworld", "mdp")
linear_programming = stated("planner/linear_programming")
modified_policy_iteration = stated("planner/modified_policy_iteration")
policy_evaluation = stated("planner/policy_evaluation")
policy_iteration = stated("planner/policy_iteration")
prioritised_sweeping = stated("planner/prioritised_sweeping")
q_iteration = stated("planner/q_iteration")
value_iteration = stated("planner/value_iteration")

PLANNERS = {
    "value iteration": value_iteration,
    "value iteration, by the span": partial(value_iteration, stop="span"),
    "in place": partial(value_iteration, sweep="in_place"),
    "symmetric": partial(value_iteration, sweep="symmetric"),
    "prioritised": prioritised_sweeping,
    "Q-iteration": q_iteration,
    "policy iteration": policy_iteration,
    "modified policy iteration": modified_policy_iteration,
    "modified policy iteration, by the span": partial(modified_policy_iteration, stop="span"),
    "linear programme": linear_programming,
}
GAMMAS = Fraction(1), Fraction(999_999, 1_000_000), Fraction(9, 10)
LEFT = 3


def last(plans):
    *_, plan = plans
    return plan


def certain(actions: list[int], of: int) -> list[list[Fraction]]:
    return [[Fraction(int(a == b)) for b in range(of)] for a in actions]


def agree(mdp: MDP, gamma: Fraction) -> bool:
    """Every planner finds v* and a policy worth it, both exactly; or, where v* is infinite, says so. Whether it is not."""
    exact = best_values(mdp, gamma)
    for name, planner in PLANNERS.items():
        if exact is None:
            with pytest.raises(UserError, match="gamma=1"):
                last(planner(mdp, gamma=float(gamma)))
            continue
        plan = last(planner(mdp, gamma=float(gamma)))
        expected = torch.tensor([float(x) for x in exact], dtype=torch.float64)
        scale = 1 + expected.abs().max()
        assert (plan.value - expected).abs().max() < 1e-8 * scale, name
        worth = policy_values(mdp, certain(plan.policy.tolist(), len(mdp.actions)), gamma)
        assert max(abs(float(x) - float(y)) for x, y in zip(worth, exact, strict=True)) < 1e-8 * scale, name
    return exact is not None


def tiny(seed: int, rewards: list[float]) -> MDP:
    """Four states and an end, two actions, chances of quarters; one may wander for ever."""
    rng, states = torch.Generator().manual_seed(seed), 5
    onto = torch.randint(states, (states, 2, 2), generator=rng)
    chance = torch.randint(1, 5, (states, 2), generator=rng).double() / 4
    paid = torch.tensor(rewards, dtype=torch.float64)[torch.randint(len(rewards), (states, 2, 2), generator=rng)]
    onto[-1], paid[-1] = states - 1, 0.0
    ends = torch.arange(states) == states - 1
    return MDP(onto, torch.stack([chance, 1 - chance], -1), paid, ends, (~ends).double() / 4, ("a", "b"), 1.0)


REWARDS = [0.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [-1.0], [0.0, -1.0, 2.0, -3.0]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("rewards", REWARDS)
def test_every_planner_agrees_with_the_enumeration_of_all_policies(rewards, gamma):
    finite = [agree(tiny(seed, rewards), gamma) for seed in range(2)]
    assert gamma == 1 or all(finite)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [*GAMMAS, Fraction(99, 100)])
@pytest.mark.parametrize("rewards", REWARDS)
def test_every_planner_agrees_with_the_enumeration_of_all_policies_in_many_worlds(rewards, gamma):
    for seed in range(100, 140):
        agree(tiny(seed, rewards), gamma)


MAPS = {
    "ties": {"map": "S.G"},
    "ties, and a pit": {"map": "S.G\n..X"},
    "a pit alone": {"map": "S.X"},
    "a goal out of reach": {"map": "S#G"},
    "a goal that pays nothing": {"map": "S.G", "rewards": {"G": 0.0}},
    "slips": {"map": "S.G", "noise": 0.2},
    "slips beside a pit": {"map": "S.X", "noise": 0.2},
    "slips any way": {"map": "X.S", "noise": 0.1, "slip": "uniform"},
}


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("living", later([-1.0, 0.0, 0.25], 0.25))
@pytest.mark.parametrize("name", MAPS)
def test_every_planner_agrees_on_small_maps(name, living, gamma):
    agree(gridworld(**MAPS[name], living_reward=living), gamma)


def test_where_actions_tie_each_planner_arrives():
    """S..G without discount: any action is worth 1 that still gets there, and action 0, up, never does."""
    mdp = gridworld("S..G", gamma=1.0)
    horizon = partial(finite_horizon, horizon=50)
    given = partial(policy_evaluation, policy=[1, 1, 1, 0])
    for name, planner in (PLANNERS | {"horizon": horizon, "evaluation": given}).items():
        plan = last(planner(mdp))
        assert plan.value[:3].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-12), name
        assert plan.policy[:3].tolist() == [1, 1, 1], name
        assert evaluate_policy(mdp, plan.policy)[:3].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-12), name


@pytest.mark.parametrize("gamma", [1.0, 1 - 1e-13])
def test_who_arrives_at_last_by_slips_alone_does_not_do(gamma):
    """Any policy gets to the goal some day, so that all are worth 1; each planner's does within a time limit."""
    mdp = gridworld("S....\n.....\n....G", noise=0.1, slip="uniform", gamma=gamma)
    for name, planner in (PLANNERS | {"horizon": partial(finite_horizon, horizon=5_000)}).items():
        plan = last(planner(mdp))
        assert plan.value[0].item() == pytest.approx(1.0, abs=1e-9), name
        steps = -evaluate_policy(gridworld("S....\n.....\n....G", rewards={"G": -1.0}, living_reward=-1.0, noise=0.1,
                                           slip="uniform"), plan.policy, 1.0)[0]  # fmt: skip
        assert 6 <= steps < 7, name


def test_beside_a_pit_alone_it_is_best_never_to_arrive():
    for planner in PLANNERS.values():
        plan = last(planner(gridworld("S.X", gamma=1.0)))
        assert plan.value.tolist() == [0.0, 0.0, 0.0] and 1 not in plan.policy[1:2].tolist()


def test_who_arrives_already_keeps_the_action():
    """Two ways round, alike: the first greedy action stays, as ever."""
    plan = last(value_iteration(gridworld("S..\n.#.\n..G", living_reward=-1.0, gamma=1.0)))
    assert plan.policy[0] == 1 and plan.policy.tolist() == plan.q.argmax(-1).tolist()


def test_waiting_for_a_reward_that_is_never_taken_is_worth_nothing():
    """From A one may wait for free, or go on to earn 1 and then pay 10: sweeps from zeros would settle at 1."""
    onto = torch.tensor([[[0], [1]], [[2], [2]], [[3], [3]], [[3], [3]]])
    paid = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-10.0, -10.0], [0.0, 0.0]], dtype=torch.float64)[..., None]
    ends = torch.tensor([False, False, False, True])
    wait = MDP(onto, torch.ones_like(paid), paid, ends, torch.tensor([1.0, 0, 0, 0]).double(), ("wait", "go"), 1.0)
    for name, planner in PLANNERS.items():
        plan = last(planner(wait))
        assert plan.value.tolist() == [0.0, -9.0, -10.0, 0.0] and plan.policy[0] == 0, name


def test_rewards_that_cancel_for_ever_have_no_sum():
    """Round and round at +1 and -1, or out at -5: the sum of the former does not settle."""
    onto = torch.tensor([[[1], [2]], [[0], [0]], [[2], [2]]])
    paid = torch.tensor([[1.0, -5.0], [-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)[..., None]
    ends = torch.tensor([False, False, True])
    round_ = MDP(onto, torch.ones_like(paid), paid, ends, torch.tensor([1.0, 0, 0]).double(), ("on", "out"), 1.0)
    assert values(round_._replace(gamma=torch.ones((), dtype=torch.float64)), torch.tensor([0, 0, 0])).isnan().tolist() == [
        True, True, False,
    ]  # fmt: skip
    for planner in PLANNERS.values():
        assert last(planner(round_)).value.tolist() == [-5.0, -6.0, 0.0]


def test_a_batch_of_undiscounted_worlds_is_as_each_alone():
    worlds = [gridworld("S..G", gamma=1.0), gridworld("S.X", gamma=1.0), gridworld("S.G", gamma=0.5)]
    for name, planner in PLANNERS.items():
        together = last(planner(stack(worlds)))
        assert together.value.tolist() == [[1.0, 1.0, 1.0, 0.0], [0.0] * 4, [0.5, 1.0, 0.0, 0.0]], name
        assert together.policy[0, :3].tolist() == [1, 1, 1], name


# -- chains that hardly ever end


@pytest.mark.parametrize("dots", [10, 20])
@pytest.mark.parametrize("noise", ["1/10", "1/100", "1/2", "9/10"])
@pytest.mark.parametrize("living", [0.0, -1.0])
def test_a_policy_that_hardly_ever_arrives_is_worth_what_it_is_exactly(dots, noise, living):
    """Always left, away from the goal, which only slips lead to: with ten dots and noise .1 once in 2e17 steps."""
    mdp = gridworld(f"S{'.' * dots}G", noise=float(Fraction(noise)), slip="uniform", living_reward=living, gamma=1.0)
    exact = policy_values(mdp, certain([LEFT] * (dots + 2), 4), Fraction(1))
    found = evaluate_policy(mdp, torch.full((dots + 2,), LEFT))
    assert found.tolist() == pytest.approx([float(x) for x in exact], rel=1e-10)
    if not living:
        assert found[0].item() == pytest.approx(1.0, abs=1e-10)


def test_no_corridor_is_too_long_to_be_exact():
    mdp = gridworld("S" + 400 * "." + "G", noise=0.1, slip="uniform", gamma=1.0)  # once in 1e636 steps
    assert evaluate_policy(mdp, torch.full((402,), LEFT))[:-1].tolist() == pytest.approx([1.0] * 401, abs=1e-12)


@pytest.mark.parametrize("sweep", ["synchronous", "in_place"])
def test_the_sweeps_of_an_evaluation_do_not_stop_short(sweep):
    """Nothing moves by 1e-9 in any sweep, and yet the value is 1."""
    mdp = gridworld("S" + 10 * "." + "G", noise=0.1, slip="uniform", gamma=1.0)
    plan = last(policy_evaluation(mdp, policy=[LEFT] * 12, sweep=sweep))
    assert plan.value[0].item() == pytest.approx(1.0, abs=1e-12)


def test_elimination_is_that_of_gauss():
    """On a dense chain of 200 states with rewards of both signs, several blocks long."""
    rng = torch.Generator().manual_seed(0)
    chance = torch.rand(200, 201, generator=rng, dtype=torch.float64)
    chance = (chance / chance.sum(1, keepdim=True)).numpy()
    reward = torch.randn(200, generator=rng, dtype=torch.float64).numpy()
    from scipy.sparse import csr_array

    found = eliminated(csr_array(chance[:, :-1]), chance[:, -1], reward, chance[:, -1] > 0.005)
    exact = torch.linalg.solve(torch.eye(200).double() - torch.from_numpy(chance[:, :-1]), torch.from_numpy(reward))
    torch.testing.assert_close(torch.from_numpy(found), exact, atol=1e-10, rtol=0)


def test_a_policy_that_rests_is_worth_what_it_got_before():
    mdp = gridworld("S.G", gamma=1.0)
    assert evaluate_policy(mdp, torch.tensor([0, 0, 0])).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(UserError, match="gamma=1: the policy to evaluate never ends"):
        evaluate_policy(gridworld("S.G", living_reward=-1.0, gamma=1.0), torch.tensor([0, 1, 0]))


# -- regret


def uniform(mdp: MDP) -> torch.Tensor:
    return torch.full((len(mdp.start), len(mdp.actions)), 1 / len(mdp.actions))


@pytest.mark.parametrize("gamma", [1.0, 0.999999, 1 - 1e-12, 0.99])
@pytest.mark.parametrize("name", [name for name in MAPS if name != "a goal out of reach"])
def test_regret_is_never_negative_and_0_at_the_best(name, gamma):
    for living in (-1.0, 0.0):
        mdp = gridworld(**MAPS[name], living_reward=living, gamma=gamma)
        regret = Regret(mdp, horizon=100)
        assert regret(last(policy_iteration(mdp)).policy) <= 1e-9
        for action in range(4):
            assert regret(torch.full_like(mdp.start, action, dtype=torch.int64)) >= 0.0
        assert regret(uniform(mdp)) >= 0.0


def test_without_discount_who_never_arrives_gives_everything_away():
    mdp = gridworld("S..G", gamma=1.0)
    regret = Regret(mdp, horizon=100)
    assert regret(torch.tensor([0, 0, 0, 0])) == 1.0 and regret(torch.tensor([1, 1, 1, 0])) == 0.0
    assert regret(uniform(mdp)) == pytest.approx(0.0, abs=1e-12)  # it arrives some day


def test_where_to_go_on_costs_less_than_to_arrive_in_time_the_horizon_judges_both():
    """A pit of -100 is the only end: 70 steps at -1 each are the best there is in 70 steps."""
    mdp = gridworld("S.X", rewards={"X": -100.0}, living_reward=-1.0, gamma=1.0)
    assert Regret(mdp, horizon=70)(torch.zeros(3, dtype=torch.int64)) == 0.0
    assert Regret(mdp, horizon=170)(torch.zeros(3, dtype=torch.int64)) == pytest.approx(170 - 101)


def test_what_the_start_never_meets_does_not_matter():
    """Left of the start the policy goes round for ever at a cost, and the start goes right."""
    mdp = gridworld("..S.G", living_reward=-1.0, gamma=1.0)
    assert Regret(mdp, horizon=100)(torch.tensor([0, 0, 1, 1, 0])) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "living"), [(1.0, -0.01), (1 - 1e-9, -0.01), (0.999999, 0.0), (0.999999, 0.01)])
def test_regret_of_the_largest_worlds_takes_seconds(gamma, living):
    rows = ["S" + 69 * "."] + 68 * [70 * "."] + [69 * "." + "G"]
    mdp = gridworld("\n".join(rows), noise=0.1, slip="uniform", living_reward=living, gamma=gamma)
    begun = time.perf_counter()
    regret = Regret(mdp, horizon=1_000)
    best, random = last(policy_iteration(mdp)).policy if living < 0 else None, regret(uniform(mdp))
    assert time.perf_counter() - begun < 60  # a few, on an idle machine; by sweeps alone minutes
    assert random > 0 or living == 0.0
    if best is not None:
        assert regret(best) <= 1e-9


def test_regret_next_to_gamma_1_takes_no_sweeps_to_settle():
    """A million steps count: 900 states, of which none ends what is paid for ever."""
    rows = ["S" + 29 * "."] + 28 * [30 * "."] + [29 * "." + "G"]
    mdp = gridworld("\n".join(rows), noise=0.1, slip="uniform", living_reward=0.01, gamma=0.999999)
    begun, regret = time.perf_counter(), Regret(mdp, horizon=1_000)
    assert regret.optimum.item() == pytest.approx(0.01 / 1e-6, rel=1e-9)  # never to arrive
    assert regret(uniform(mdp)) > 9_000 and time.perf_counter() - begun < 60  # one, on an idle machine
