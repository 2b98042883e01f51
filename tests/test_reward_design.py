"""Inverse reward design in lavaland: literal numbers, sums that are counted out, and plans of known worth."""

import pytest
import torch
from stated import stated
from torch import tensor

from rl_lab.core.errors import UserError
from rl_lab.planning import Regret
from rl_lab.planning.soft import dynamics
from rl_lab.wanted.reward_design import (
    behaviours,
    believe,
    best_policies,
    entered,
    hypotheses,
    letter_features,
    log_normalisers,
    maximin,
)

reward_design = stated("planner/reward_design")
TRAINING, LAVA = stated("planner/reward_design", "training")(), stated("env/lavaland", "mdp")()
LETTERS, VALUES = ["d", "g", "T", "L"], [-2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.5, 2.0]
TRUTH, PROXY = torch.tensor([[-0.1, -0.5, 2, -2], [-0.1, -0.5, 2, 0]], dtype=torch.float64)
HOME, AWAY = dynamics(TRAINING, 0.95), dynamics(LAVA, 0.95)
PHI, AWAY_PHI = letter_features(TRAINING, LETTERS, "d"), letter_features(LAVA, LETTERS, "d")


@pytest.fixture(scope="module")
def learned():
    weights = hypotheses(VALUES, 4)
    assert torch.equal(weights, hypotheses([*VALUES, VALUES[0]], 4))
    return weights, behaviours(PHI, weights, HOME)


def test_what_the_proxy_does_where_it_was_written(learned):
    weights, behaviour = learned
    shown = believe(weights, behaviour, PROXY, 5).proxy
    assert shown.tolist() == pytest.approx([1.426250, 4.201736, 14.372014, 0], abs=1e-6)
    *_, plan = stated("planner/value_iteration")(TRAINING, epsilon=1e-10)
    assert float(TRAINING.start @ plan.value) == pytest.approx(26.500534, abs=1e-6) == float(TRUTH @ shown)


@pytest.mark.parametrize(("beta", "normaliser", "likes_targets"), [(1, 32.88998, 0.6667), (5, 137.57077, 0.7651), (20, 534.48969, 0.8367)])  # fmt: skip
def test_the_posterior(learned, beta, normaliser, likes_targets):
    weights, behaviour = learned
    belief = believe(weights, behaviour, PROXY, beta)
    truth = (weights - TRUTH).abs().max(-1).values < 1e-9
    assert float(log_normalisers(weights, behaviour, beta)[truth]) == pytest.approx(normaliser, abs=1e-5)
    assert float(belief.posterior[weights[:, 2] > 0].sum()) == pytest.approx(likes_targets, abs=1e-4)
    of_lava = [float(belief.posterior[weights[:, 3] == x].sum()) for x in VALUES]
    assert of_lava == pytest.approx([1 / 8] * 8, abs=1e-12), "who never saw lava learns nothing of it"
    if beta == 5:
        assert (belief.posterior @ weights).tolist() == pytest.approx([-0.4002, -0.6282, 1.1909, -0.1625], abs=1e-4)


def test_by_hand_over_three_proxies():
    weights = tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]).double()
    behaviour = tensor([[3.0, 1.0], [0.0, 2.0], [0.0, 2.0]]).double()
    belief = believe(weights, behaviour, weights[0], 0.5)
    z = torch.stack([sum((0.5 * (w @ b)).exp() for b in behaviour) for w in weights])
    by_hand = (0.5 * weights @ behaviour[0]).exp() / z
    assert belief.posterior.tolist() == pytest.approx((by_hand / by_hand.sum()).tolist())
    assert believe(weights, behaviour, weights[0], 0).posterior.tolist() == pytest.approx([1 / 3] * 3)
    with pytest.raises(UserError, match="none of the hypotheses"):
        believe(weights, behaviour, tensor([9.0, 9.0]).double(), 1)


def worth(policy, weights) -> float:
    return float(weights @ entered(policy, AWAY_PHI, AWAY))


def test_the_programme_of_one_hypothesis_is_a_plan():
    policy, value = maximin(AWAY_PHI, TRUTH[None], torch.zeros(1).double(), AWAY)
    best = Regret(LAVA, 100)
    assert value == pytest.approx(float(best.optimum)) == worth(policy, TRUTH)
    assert worth(best_policies(AWAY_PHI, TRUTH[None], AWAY)[0], TRUTH) == pytest.approx(value)


def test_the_worst_of_two_is_the_best_it_can_be_and_constants_change_nothing(learned):
    weights = torch.stack([PROXY, TRUTH, tensor([-0.1, 0.5, -1, 0.5]).double()])
    shown = behaviours(PHI, PROXY[None], HOME)[0]
    policy, value = maximin(AWAY_PHI, weights, weights @ shown, AWAY)
    assert min(worth(policy, w) - float(w @ shown) for w in weights) == pytest.approx(value)
    raised = weights + tensor([[0.0], [0.7], [-0.3]])
    assert maximin(AWAY_PHI, raised, raised @ shown, AWAY)[1] == pytest.approx(value), "each step enters one letter"
    assert maximin(AWAY_PHI, raised, torch.zeros(3).double(), AWAY)[1] != pytest.approx(value)


def test_around_the_lava(learned):
    """The proxy crosses it; who plans for the worst that may have been meant mostly goes around."""
    lost, belief = Regret(LAVA, 100), believe(*learned, PROXY, 5)
    literal = best_policies(AWAY_PHI, PROXY[None], AWAY)[0]
    found = reward_design(LAVA, 0, training=TRAINING)
    lava = [float(entered(policy, AWAY_PHI, AWAY)[3]) for policy in (literal, found.policy)]
    assert lava == pytest.approx([2.709875, 0.2942], abs=1e-4)
    assert [lost(literal), lost(found.policy)] == pytest.approx([2.13856, 0.23218], abs=1e-4)
    assert found.metrics["wanted/behaviours"] == 11
    assert found.belief.posterior.tolist() == pytest.approx(belief.posterior.tolist())


def test_what_cannot_be_designed():
    for changes, words in (
        ({"proxy": {"d": -0.1, "g": -0.5, "T": 2.0}}, "gives L no weight, and the map shows it; add L: 0"),
        ({"weights": [float(x) for x in range(40)]}, "40 values of 4 letters make 2,560,000 hypotheses"),
    ):
        with pytest.raises(UserError, match=words):
            reward_design(LAVA, 0, training=TRAINING, **changes)
