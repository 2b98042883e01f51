"""Rewards and policies from demonstrations: literal numbers, worlds that can be counted out, and exact regret."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stated import stated
from torch import tensor

from rl_lab.__main__ import COMMANDS
from rl_lab.core.errors import UserError
from rl_lab.core.interrupts import Stopped
from rl_lab.core.launching import cli
from rl_lab.core.run import Run
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.loops.demonstrated import infer, walks
from rl_lab.loops.reward_design import design
from rl_lab.planning import Regret
from rl_lab.planning.soft import dynamics, soft_plan, visits
from rl_lab.wanted.demonstrations import Expert, Walks, features, first_states, left_off
from rl_lab.wanted.inverse import check_walks, dual, likelihood, rationalised
from rl_lab.wanted.tables import as_table, exact_plan, expected, rewarded, starc

MDPEnv = stated("env/base/tabular")
gridworld = stated("env/base/gridworld", "mdp")
maximum_entropy = stated("planner/maximum_entropy")
inverse_programming = stated("planner/inverse_programming")
behaviour_cloning = stated("planner/behaviour_cloning")
dagger = stated("planner/dagger")

BOOK, ROOMS = stated("env/russell_norvig", "mdp")(), stated("env/four_rooms", "mdp")()
BOOKS, FOUR_ROOMS = Regret(BOOK, 200), Regret(ROOMS, 200)


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


def paid(mdp: MDP) -> torch.Tensor:
    return (mdp.probability * mdp.reward).sum(-1)


def certain(regret: Regret) -> torch.Tensor:
    return torch.nn.functional.one_hot(regret.best.policy, 4).double()


def shown(mdp: MDP, policy: torch.Tensor, episodes: int, seed: int) -> Expert:
    play = partial(walks, MDPEnv(mdp=mdp, time_limit=200))
    return Expert(play(policy, episodes, seed), policy, play, seed)


# -- soft planning


@pytest.mark.parametrize(
    ("gamma", "alpha", "value"),
    [(0.9, 1, 12.936113), (0.95, 1, 25.436707), (0.99, 1, 124.983124), (1, 0.01, 0.721826), (1, 0.02, 0.776875),
     (1, 0.03, 0.989365)],
)  # fmt: skip
def test_soft_values_of_the_book(gamma, alpha, value):
    world = dynamics(BOOK, gamma)
    assert float(world.start @ soft_plan(paid(BOOK), world, alpha).value) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("alpha", "value", "lost"), [(1, 138.458817, 0.8838), (0.005, 0.914163, 0.0479), (0.001, 0.886106, 0.0008)])  # fmt: skip
def test_in_four_rooms_entropy_drowns_the_goal(alpha, value, lost):
    world = dynamics(ROOMS, 0.99)
    plan = soft_plan(paid(ROOMS), world, alpha)
    assert float(world.start @ plan.value) == pytest.approx(value, abs=1e-6)
    assert FOUR_ROOMS(plan.policy) == pytest.approx(lost, abs=1e-4)


def test_the_soft_policy_of_the_books_start():
    policy = soft_plan(paid(BOOK), dynamics(BOOK, 0.95), 1.0).policy[int(BOOK.start.argmax())]
    assert policy.tolist() == pytest.approx([0.281837, 0.188529, 0.257214, 0.272421], abs=1e-6)


def test_entropy_that_pays_more_than_a_step_costs_is_refused():
    with pytest.raises(UserError, match=r"alpha=0.04 is too large for gamma=1.*choose a smaller alpha"):
        soft_plan(paid(BOOK), dynamics(BOOK, 1.0), 0.04)


def test_in_a_deterministic_world_ways_are_as_likely_as_what_they_pay():
    """A corridor of two cells without discount: of all ways P is exp of their sum, over that of all."""
    world = dynamics(gridworld("S.G", rewards={"G": 1.0}, living_reward=-2.0, gamma=1.0), 1.0)
    reward = torch.full((3, 4), -2.0, dtype=torch.float64)
    reward[1, 1] = 1.0
    plan = soft_plan(reward, world, 1.0)
    assert float(plan.policy[0, 1] * plan.policy[1, 1]) == pytest.approx(float((reward[0, 1] + reward[1, 1] - plan.value[0]).exp()))  # fmt: skip
    a, stay = np.exp(-2), 3 * np.exp(-2)  # of z = exp v: z0 = stay z0 + a z1, z1 = a z0 + 2 a z1 + e
    by_hand = np.linalg.solve([[1 - stay, -a], [-a, 1 - 2 * a]], [0, np.exp(1)])
    assert plan.value[:2].exp().tolist() == pytest.approx(by_hand.tolist())


def test_visits_of_the_best_policy():
    found = visits(dynamics(BOOK, 0.95), certain(BOOKS))
    assert found.tolist() == pytest.approx([1.07129, 1.00516, 0.92572, 0.70355, 1.27568, 0.09717, 0.00923, 1.22569, 0.14375, 0, 0, 0], abs=1e-5)  # fmt: skip
    assert visits(dynamics(ROOMS, 0.99), certain(FOUR_ROOMS))[ROOMS.terminal].sum() == 0, "nobody acts in an end"


@pytest.mark.parametrize("form", ["state", "entered", "change"])
@pytest.mark.parametrize("fit", ["likelihood", "dual"])
def test_gradients_are_those_of_finite_differences(fit, form):
    world, rng = dynamics(BOOK, 0.95), torch.Generator().manual_seed(0)
    table = torch.randn(12, generator=rng, dtype=torch.float64).requires_grad_()
    counts, start = torch.rand(12, 4, generator=rng, dtype=torch.float64) * world.live[:, None], world.start
    end, demonstrated = torch.rand(2, 12, generator=rng, dtype=torch.float64)

    def loss(x):
        reward = expected(x, form, world)
        if fit == "likelihood":
            return likelihood(reward, world, 0.7, counts)
        return dual(reward, x @ demonstrated, world, 0.7, start, end / 9)

    assert torch.autograd.gradcheck(loss, table, eps=1e-6, atol=1e-5)


def test_shaping_leaves_the_soft_policy_and_a_constant_does_not():
    world, phi = dynamics(BOOK, 0.95), torch.linspace(-1, 1, 12, dtype=torch.float64).where(~BOOK.terminal, 0.0)
    plain = soft_plan(paid(BOOK), world, 1.0)
    shaped = soft_plan(paid(BOOK) + world.ahead @ phi - phi[:, None], world, 1.0)
    assert torch.allclose(shaped.policy[world.live], plain.policy[world.live], atol=1e-12)
    assert torch.allclose(shaped.value + phi, plain.value, atol=1e-11)
    more = soft_plan(paid(BOOK) + 1, world, 1.0).policy
    assert float((more - plain.policy)[world.live].abs().max()) == pytest.approx(0.21, abs=0.005)


# -- distances


def shifted(mdp: MDP, by: float) -> MDP:
    return mdp._replace(reward=(mdp.reward + by).masked_fill(mdp.terminal[:, None, None], 0.0))


def test_the_distance_of_rewards():
    world, phi = dynamics(BOOK, 0.95), torch.linspace(-1, 1, 12, dtype=torch.float64).where(~BOOK.terminal, 0.0)
    potential = (0.95 * phi[BOOK.next_state] - phi[:, None, None]) * world.live[:, None, None]
    assert starc(BOOK, BOOK._replace(reward=3 * BOOK.reward + potential)) < 1e-12
    assert starc(BOOK, BOOK._replace(reward=-BOOK.reward)) == pytest.approx(1)
    assert starc(BOOK, shifted(BOOK, 1)) == pytest.approx(0.785, abs=1e-3)
    assert starc(ROOMS, shifted(ROOMS, 1)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("by", "lost"), [(0.01, 0), (0.02, 0.8838)])
def test_the_level_of_a_reward_matters_where_episodes_end(by, lost):
    assert FOUR_ROOMS(exact_plan(shifted(ROOMS, by)).policy) == pytest.approx(lost, abs=1e-4)


def test_a_step_out_of_an_end_pays_nothing_and_an_own_reward_comes_back():
    for mdp, form in ((BOOK, "state"), (ROOMS, "entered")):
        again = rewarded(mdp, as_table(mdp, form), form)
        assert torch.allclose((again.reward - mdp.reward) * (mdp.probability > 0), torch.zeros(()).double())
    assert rewarded(ROOMS, torch.ones(104).double(), "entered").reward[ROOMS.terminal].sum() == 0


# -- inference


def test_from_exact_features_of_a_soft_expert_the_reward_returns():
    from rl_lab.wanted.inverse import minimised

    world = dynamics(BOOK, 0.95)
    soft = soft_plan(paid(BOOK), world, 1.0)
    mu, none = visits(world, soft.policy), torch.zeros(12, dtype=torch.float64)
    loss = lambda t: dual(expected(t, "state", world), t @ mu, world, 1.0, world.start, none) + 5e-10 * (t @ t)
    table, _ = minimised(loss, 12)
    found = rewarded(BOOK, table, "state")
    assert starc(found, BOOK) < 1e-3 and BOOKS(exact_plan(found).policy) < 1e-9


def test_a_time_limit_is_no_end():
    """Two steps of a walk to and fro that is cut: what would have followed counts as the model expects it."""
    world = dynamics(gridworld("S.", rewards={}, gamma=0.5), 0.5)
    walk = Walks(tensor([0, 1, 0]), tensor([1, 3, 1]), tensor([1, 0, 1]), tensor([0, 1, 0]))
    assert walk.episodes == 2 and walk.final.tolist() == [False, True, True]
    assert first_states(walk, 2).tolist() == [1, 0] and left_off(walk, world).tolist() == [0.125, 0.25]
    assert features(walk, world, "state").tolist() == [1, 0.25]
    assert features(walk, world, "entered").tolist() == [0.25, 1]
    reward = torch.full((2, 4), 1.0, dtype=torch.float64)  # pays 1 each step: only entropy is left to explain
    start, end = first_states(walk, 2), left_off(walk, world)
    loss = dual(reward, tensor(1.25).double(), world, 1.0, start, end)
    assert float(loss) == pytest.approx(1.25 * np.log(4))  # nats of the steps that were seen, discounted
    found = maximum_entropy(gridworld("S.", rewards={}, gamma=0.5), Expert(walk, None, None, 0), form="state",
                            fit="features", penalty=1e-3)  # fmt: skip
    table = as_table(found.reward, "state")
    assert found.metrics["wanted/feature_gap"] == pytest.approx(1e-3 * float(table.abs().max()), rel=0.01)


def test_what_never_ends_is_worth_no_plan():
    world = dynamics(gridworld("S.", rewards={}, gamma=0.5), 1.0)
    with pytest.raises(UserError, match="^alpha=1 is too large for gamma=1: "):
        soft_plan(torch.zeros(2, 4).double(), world, 1.0)


def test_demonstrations_of_a_larger_world_are_refused():
    walk = Walks(tensor([0]), tensor([1]), tensor([7]), tensor([0]))
    with pytest.raises(UserError, match="they reach state 7, and this world has states 0 to 1"):
        check_walks(walk, gridworld("S.", rewards={}, gamma=0.5))


@pytest.mark.parametrize("seed", range(5))
def test_demonstrations_are_understood(seed):
    """64 of the optimal expert: what is planned for the inferred reward loses nothing; its features are matched."""
    expert = shown(BOOK, certain(BOOKS), 64, seed)
    found = maximum_entropy(BOOK, expert, form="state")
    assert BOOKS(exact_plan(found.reward).policy) < 1e-9
    assert BOOKS(behaviour_cloning(BOOK, expert).policy) < 0.06


def test_features_are_matched_and_slips_are_read_as_intent():
    expert = shown(BOOK, certain(BOOKS), 16, 0)
    matched = maximum_entropy(BOOK, expert, form="state", fit="features")
    table = as_table(matched.reward, "state")
    assert matched.metrics["wanted/feature_gap"] == pytest.approx(1e-3 * float(table.abs().max()), rel=0.01)
    assert maximum_entropy(BOOK, expert, form="state").metrics["wanted/feature_gap"] > 0.05


@pytest.mark.parametrize(("mdp", "gamma", "penalty", "objective"), [(BOOK, 0.95, 0.5, 0.42993), (ROOMS, 0.99, 0, 79.38883), (ROOMS, 0.99, 0.5, 36.06266)])  # fmt: skip
def test_the_linear_programme(mdp, gamma, penalty, objective):
    world, regret = dynamics(mdp, gamma), BOOKS if mdp is BOOK else FOUR_ROOMS
    policy = torch.nn.functional.one_hot(exact_plan(mdp._replace(gamma=gamma)).policy, 4).double()
    table, found, tied = rationalised(world, policy, world.live, penalty)
    assert found == pytest.approx(objective, abs=1e-5) and tied <= 5
    plan = exact_plan(rewarded(mdp, table, "entered")._replace(gamma=gamma))
    assert regret(plan.policy) < (1e-9 if penalty else 1e-4)


def test_a_penalty_that_leaves_nothing():
    with pytest.raises(UserError, match="leaves no reward at all; choose a smaller one"):
        inverse_programming(BOOK, shown(BOOK, certain(BOOKS), 4, 0), penalty=9.0)


# -- imitation


def test_cloning_takes_the_commonest_action_and_draws_where_nobody_was():
    walk = Walks(tensor([0, 0, 0]), tensor([2, 1, 2]), tensor([0, 0, 1]), tensor([0, 1, 2]))
    policy = behaviour_cloning(BOOK, Expert(walk, None, None, 0)).policy
    assert policy[0].tolist() == [0, 0, 1, 0] and policy[1].tolist() == [0.25] * 4


def test_dagger_begins_as_cloning_and_learns_the_experts_answers():
    best = certain(BOOKS)
    expert = shown(BOOK, best, 4, 9)
    first = dagger(BOOK, expert, rounds=1, episodes=4)
    assert first.metrics["wanted/steps"] == len(expert.walks.state), "the demonstrations are its first round"
    assert dagger(BOOK, shown(BOOK, best, 9, 9), rounds=1, episodes=4).metrics["wanted/steps"] > len(expert.walks.state)
    assert torch.equal(first.policy, behaviour_cloning(BOOK, expert).policy)
    last = dagger(BOOK, expert, rounds=16, episodes=4)
    asked = (last.policy.max(-1).values == 1) & ~BOOK.terminal
    assert torch.equal(last.policy[asked], best[asked]), "every answer is the expert's, whoever played"
    assert BOOKS(last.policy) < 1e-9 and last.metrics["wanted/states_asked"] == asked.sum()
    with pytest.raises(UserError, match="a recording answers nothing"):
        dagger(BOOK, expert._replace(policy=None), rounds=1, episodes=4)


# -- as commands


def test_demonstrations_that_were_recorded(tmp_path, capsys):
    """A plan's folder is recorded, and the recording explained; in another world it is refused."""
    common = "tracker=none", "device=cpu", "loop.eval_episodes=1"
    assert rl_lab("train", "experiment=value_iteration_russell_norvig", "loop.film=false", *common, f"hydra.run.dir={tmp_path / 'plan'}") == 0  # fmt: skip
    assert rl_lab("record", f"run={tmp_path / 'plan'}", "episodes=64", f"out={tmp_path / 'shown'}", "device=cpu") == 0
    inference = "train", "experiment=maxent_russell_norvig", f"loop.data={tmp_path / 'shown'}", *common
    assert rl_lab(*inference, f"hydra.run.dir={tmp_path / 'run'}") == 0
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert row["wanted/demonstrations"] == 64 and row["eval/regret"] < 0.03
    for name in ("wanted", "seen"):
        with Image.open(tmp_path / f"run/pictures/{name}.png") as picture:
            assert picture.width > 300
    arrays = np.load(tmp_path / "run/inferred.npz")
    assert arrays["reward"].shape == arrays["true"].shape == (12, 4) and arrays["demonstrated"][11] == 0
    assert rl_lab("evaluate", f"run={tmp_path / 'run'}", "episodes=2", "device=cpu") == 0
    capsys.readouterr()
    for changes, words in (
        (["env.mdp.noise=0"], "the demonstrations are of another world: "),
        (["env=four_rooms"], "has observations [12], and this environment [104]"),
        (["experiment=dagger_four_rooms", "env=russell_norvig"], "a recording answers nothing; leave loop.data out"),
        (["env=cartpole"], "maximum_entropy needs a world whose states are known, and env=cartpole is none"),
    ):
        assert rl_lab(*inference, *changes, f"hydra.run.dir={tmp_path / 'no'}") == 2
        assert words in capsys.readouterr().err, words
    assert not Path(tmp_path / "no").exists()


@pytest.mark.parametrize("loop", ["demonstrated", "reward_design"])
def test_ctrl_c_stops_the_inference_at_once(loop, tmp_path):
    """Nothing is found yet, and so nothing is written."""

    def planner(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal was not answered")

    env, how = MDPEnv(mdp=BOOK, time_limit=200), {}
    if loop == "demonstrated":
        how = {"data": None, "expert": "optimal", "temperature": 0.02, "demonstrations": 4}
    with pytest.raises(Stopped), Run(tmp_path, 0, "cpu", names={"name": "x", "env": "y"}, config={}) as run:
        {"demonstrated": infer, "reward_design": design}[loop](env, planner, run, eval_episodes=1, **how)
    assert not [*tmp_path.iterdir()]
