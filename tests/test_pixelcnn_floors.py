"""The floors below every deep model: independent pixels and a mixture of Bernoullis, against their closed forms."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from stated import stated
from test_pixelcnn import CPU, SMALL, every_image, fitted, images, rng

from gen_lab.models.independent import Independent
from gen_lab.types import Spec
from rl_lab.core.errors import UserError

BernoulliMixture = stated("model/bernoulli_mixture")
digits = stated("data/digits")


@pytest.mark.parametrize(("protocol", "nats"), [("binarised", 25.30), ("levels", 108.04)])
def test_independent_pixels_on_digits(protocol, nats):
    data = digits(protocol=protocol)
    model = fitted(Independent(data.spec, CPU, 0, smoothing=1e-3), data, 4, 1_500)
    assert model.score(data.test, rng())["nll_nats"].mean().item() == pytest.approx(nats, abs=0.01)


def test_independent_pixels_are_uniform_at_first_and_then_frequencies():
    spec = Spec((1, 1, 2), 3)
    model, x = (
        Independent(spec, CPU, 0, smoothing=0.0),
        torch.tensor([[0, 2], [1, 2], [0, 2], [0, 1]]).view(4, 1, 1, 2),
    )
    torch.testing.assert_close(model.score(x, rng())["nll_nats"], torch.full((4,), 2 * math.log(3)))
    model.update(x[:2]), model.update(x[2:])
    p = torch.tensor([[3 / 4, 1 / 4, 0], [0, 1 / 4, 3 / 4]], dtype=torch.double)
    torch.testing.assert_close(model.probabilities()[0, 0], p, atol=1e-8, rtol=0)
    drawn = model.sample(20_000, rng())
    frequency = torch.stack([(drawn == k).double().mean(0)[0, 0] for k in range(3)], 1)
    torch.testing.assert_close(frequency, p, atol=0.02, rtol=0)
    smoothed = Independent(spec, CPU, 0, smoothing=0.3)
    smoothed.update(x)
    torch.testing.assert_close(smoothed.probabilities()[0, 0], 0.7 * p + 0.1, atol=1e-8, rtol=0)


@pytest.mark.parametrize("pseudo_count", [1e-9, 0.1, 3.0])
def test_em_never_loses_penalised_likelihood(pseudo_count):
    """All images are in every update; with a pseudo-count next to none the likelihood itself never falls."""
    data = digits(protocol="binarised")
    model = BernoulliMixture(data.spec, CPU, 0, components=10, pseudo_count=pseudo_count)
    x, penalised, nll = data.train, [], []
    for _ in range(25):
        prior = model.log_prior().item()
        nll.append(model.update(x)["bernoulli_mixture/nll_nats"].item())
        penalised.append(nll[-1] * len(x) - prior)
    assert all(after < before + 1e-6 for before, after in itertools.pairwise(penalised))
    assert penalised[-1] < penalised[1] - 1_000
    if pseudo_count < 1e-6:
        assert all(after < before + 1e-9 for before, after in itertools.pairwise(nll)) and nll[-1] < nll[1] - 3


def test_the_likelihood_alone_may_fall():
    """Two images and a prior of 30: the M step trades what fits for what the prior holds likely."""
    x = torch.tensor([[0, 1], [1, 1]]).view(2, 1, 1, 2)
    model = BernoulliMixture(Spec((1, 1, 2), 2), CPU, 0, components=2, pseudo_count=30.0)
    model.means = torch.tensor([[0.05, 0.95], [0.95, 0.95]], dtype=torch.double)
    first, second = (model.update(x)["bernoulli_mixture/nll_nats"].item() for _ in range(2))
    assert second > first + 0.3


def test_em_over_several_updates_is_em_over_one():
    x = images(60)
    whole = BernoulliMixture(SMALL, CPU, 0, components=3, pseudo_count=0.1)
    parts = BernoulliMixture(SMALL, CPU, 0, components=3, pseudo_count=0.1, updates_an_m_step=3)
    for _ in range(4):
        whole.update(x)
        for part in x.split(20):
            parts.update(part)
    torch.testing.assert_close(whole.means, parts.means)
    assert abs(whole.weights.sum() - 1) < 1e-12


def test_an_m_step_knows_only_what_was_seen_since_the_last_one():
    model = BernoulliMixture(SMALL, CPU, 0, components=1, pseudo_count=1e-9)
    model.update(images(20, seed=1))
    model.update(images(30, seed=2))
    torch.testing.assert_close(model.means[0].float(), images(30, seed=2).float().mean(0).flatten())


def test_a_mixture_is_a_distribution_and_draws_from_it():
    model = BernoulliMixture(Spec((1, 2, 2), 2), CPU, 0, components=3, pseudo_count=0.1)
    x, every = images(50, Spec((1, 2, 2), 2)), every_image(2, 2)
    for _ in range(5):
        model.update(x)
    p = (-model.score(every, rng())["nll_nats"]).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    drawn = model.sample(20_000, rng())
    seen = (drawn.flatten(1)[:, None] == every.flatten(1)).all(2).float().mean(0)
    torch.testing.assert_close(seen, p, atol=0.015, rtol=0)


def test_a_mixture_of_bernoullis_refuses_grey():
    with pytest.raises(UserError, match="17 levels.*protocol=binarised"):
        BernoulliMixture(Spec((1, 8, 8), 17), CPU, 0, components=2, pseudo_count=0.1)


def test_floors_are_saved_whole():
    for floor in (
        partial(Independent, smoothing=0.1),
        partial(BernoulliMixture, components=3, pseudo_count=0.1, updates_an_m_step=2),
    ):
        a, b = floor(SMALL, CPU, 0), floor(SMALL, CPU, 1)
        a.update(images(8))
        b.load_state_dict(copy.deepcopy(a.state_dict()))
        a.update(images(8, seed=2)), b.update(images(8, seed=2))
        assert torch.equal(a.score(images(8), rng())["nll_nats"], b.score(images(8), rng())["nll_nats"])
