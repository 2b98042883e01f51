"""gen_lab's likelihoods against literal numbers, torch.distributions and plain sampling."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from gen_lab.judging.evaluation import active_units
from gen_lab.losses import (
    bernoulli_nll,
    bits_per_dim,
    categorical_nll,
    gaussian_kl,
    gaussian_kl_by_dim,
    gaussian_log_prob,
    importance_weighted_nll,
)

LN2, LN3 = math.log(2), math.log(3)


def test_bernoulli_nll_is_a_sum_over_pixels():
    logits = torch.tensor([[[[LN3, -LN3], [0.0, 0.0]]], [[[LN3, LN3], [LN3, LN3]]]])  # p = 3/4, 1/4, 1/2
    x = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]], [[[1.0, 1.0], [1.0, 0.0]]]])
    expected = [-math.log(3 / 4) - math.log(1 / 4) + 2 * LN2, -3 * math.log(3 / 4) - math.log(1 / 4)]
    torch.testing.assert_close(bernoulli_nll(logits, x), torch.tensor(expected))
    assert expected == pytest.approx([3.060271, 2.249340], abs=1e-6)


def test_bernoulli_nll_broadcasts_draws_over_images():
    logits, x = torch.randn(5, 3, 2, 4, 4), torch.bernoulli(torch.full((3, 2, 4, 4), 0.5))
    expected = -Independent(Bernoulli(logits=logits), 3).log_prob(x.expand_as(logits))
    torch.testing.assert_close(bernoulli_nll(logits, x), expected)
    torch.testing.assert_close(bernoulli_nll(logits[0, 0], x), bernoulli_nll(logits[0, 0].expand(3, 2, 4, 4), x))


def test_bernoulli_nll_of_a_sure_pixel_is_not_rounded_away():
    nll = bernoulli_nll(torch.full((1, 1, 1), 20.0), torch.ones(1, 1, 1))
    assert nll.item() == pytest.approx(math.exp(-20), rel=1e-4)


def test_gaussian_kl_literal():
    mu, log_var = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, math.log(4)]])
    expected = torch.tensor([0.0, 0.5 + 0.5 * (4 + 4 - 1 - math.log(4))])
    torch.testing.assert_close(gaussian_kl(mu, log_var), expected)


def test_gaussian_kl_against_draws():
    rng = torch.Generator().manual_seed(0)
    mu, log_var = torch.randn(2, 8, generator=rng, dtype=torch.double)
    z = mu + (0.5 * log_var).exp() * torch.randn(400_000, 8, generator=rng, dtype=torch.double)
    q, p = Normal(mu, (0.5 * log_var).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))
    ratio = (q.log_prob(z) - p.log_prob(z)).sum(-1)
    kl = gaussian_kl(mu, log_var)
    assert abs(ratio.mean() - kl) < 4 * ratio.std() / len(ratio) ** 0.5
    torch.testing.assert_close(kl, kl_divergence(q, p).sum())


def test_gaussian_kl_by_dim_tells_which_latent_is_used():
    mu, log_var = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, math.log(4)])
    expected = torch.tensor([0.0, 0.5, 0.5 * (4 - 1 - math.log(4))])
    torch.testing.assert_close(gaussian_kl_by_dim(mu, log_var), expected)
    torch.testing.assert_close(gaussian_kl(mu, log_var), expected.sum())


def test_active_units_are_those_whose_mean_moves():
    """Variances of 1, 0.0125, 0.005 and 0 (of a mean far from 0); the threshold is 0.01."""
    sign = torch.tensor([1.0, -1.0] * 500)[:, None]
    spread = torch.tensor([1.0, 0.0125**0.5, 0.005**0.5, 0.0])
    assert active_units(sign * spread + torch.tensor([0.0, 0.0, 0.0, 3.0])).item() == 2


def test_categorical_nll_broadcasts_draws_over_images():
    logits = torch.randn(5, 3, 2, 4, 2, 1)  # K, B, C, L, H, W
    level = torch.randint(4, (3, 2, 2, 1))
    expected = -logits.log_softmax(3).gather(3, level.unsqueeze(2).expand(5, 3, 2, 1, 2, 1)).flatten(2).sum(2)
    torch.testing.assert_close(categorical_nll(logits, level), expected)
    torch.testing.assert_close(categorical_nll(logits[0], level), expected[0])


def test_gaussian_log_prob():
    z, mu, log_var = torch.randn(3, 7, 5, 4, dtype=torch.double)
    expected = Normal(mu, (0.5 * log_var).exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(gaussian_log_prob(z, mu, log_var), expected)


def test_importance_weighted_nll_averages_weights_not_logarithms():
    log_weights = torch.tensor([[1.0, 3.0], [3.0, 3.0]]).T.log()  # K = 2 draws of two images
    torch.testing.assert_close(importance_weighted_nll(log_weights), torch.tensor([-LN2, -LN3]))
    assert importance_weighted_nll(torch.full((4, 1), -1000.0)).item() == 1000.0  # no underflow


def test_bits_per_dim():
    torch.testing.assert_close(bits_per_dim(torch.tensor([64 * LN2, 32 * LN2]), (1, 8, 8)), torch.tensor([1.0, 0.5]))
    assert bits_per_dim(torch.tensor(192 * LN2), (3, 8, 8)).item() == pytest.approx(1.0)


@pytest.mark.parametrize(("p", "mass"), [(0.5, 0.50), (0.1, 0.36), (0.01, 0.21), (0.001, 0.14)])
def test_cross_entropy_on_grey_is_no_density(p, mass):
    """Why the VAE refuses grey pixels: what would be their density does not integrate to 1."""
    grey = torch.linspace(0, 1, 10_001, dtype=torch.double).view(-1, 1, 1, 1)
    density = (-bernoulli_nll(torch.tensor(p, dtype=torch.double).logit().expand(1, 1, 1), grey)).exp()
    assert torch.trapezoid(density, grey.flatten()).item() == pytest.approx(mass, abs=0.005)
