"""The VAE's bounds against exact integrals, and a model whose posterior is known."""

import math

import pytest
import torch
from stated import stated
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from vae_cases import CPU, build, images

from gen_lab.losses import bernoulli_nll, gaussian_log_prob, importance_weighted_nll
from gen_lab.models.vae import VAE
from gen_lab.types import Spec
from rl_lab.core.randomness import generator

pytestmark = pytest.mark.usefixtures("float64")

# -- exact values: z has one dimension, so that p(x) is an integral over a grid


GRID = torch.linspace(-12, 12, 20_001, dtype=torch.double)


def log_joint(model: VAE, x: torch.Tensor) -> torch.Tensor:
    """log p(x, z) [grid, B], with the prior written out."""
    prior = -0.5 * (GRID.square() + math.log(2 * math.pi))
    return prior[:, None] - bernoulli_nll(model.decoder(GRID[:, None])[:, None], x)


@pytest.fixture
def small(float64) -> tuple:
    """A model of float64 with a decoder that bends, its images, log p(x) and KL(q(z|x) || p(z|x)), both exact."""
    model = build(Spec((1, 2, 3), 2), latents=1)
    for net, scale in (model.encoder, 1.5), (model.decoder, 3.0):
        for p in net.parameters():
            p.data *= scale
    x = images(16, Spec((1, 2, 3), 2))
    with torch.no_grad():
        joint = log_joint(model, x)
        exact = torch.trapezoid(joint.exp(), GRID, dim=0).log()  # [B]
        log_q = gaussian_log_prob(GRID[:, None, None], *model.encode(x))  # [grid, B]
        gap = torch.trapezoid(log_q.exp() * (log_q - (joint - exact)), GRID, dim=0)
    return model, x, exact, gap


def test_the_grid_is_fine_enough(small):
    """p(x) of all 2^6 images sums to 1."""
    model = small[0]
    every = torch.tensor([[(i >> b) & 1 for b in range(6)] for i in range(64)]).view(64, 1, 2, 3)
    with torch.no_grad():
        joint = log_joint(model, every)
    assert torch.trapezoid(joint.exp(), GRID, dim=0).sum().item() == pytest.approx(1, abs=1e-9)


def test_elbo_falls_short_by_the_divergence_from_the_posterior(small):
    model, x, exact, gap = small
    many = x.repeat_interleave(20_000, 0)
    with torch.no_grad():
        bound = sum(model.elbo_terms(many, generator(0, CPU))).view(len(x), -1)
    error = bound.std(1) / bound.shape[1] ** 0.5
    assert (gap > 0.05).all()
    assert ((bound.mean(1) - (gap - exact)).abs() < 4 * error).all()
    averaged = model.score(x, generator(0, CPU), iwae_samples=20_000)["nll_bound_nats"]
    assert ((averaged - (gap - exact)).abs() < 5 * error).all()


def test_mean_importance_weight_is_the_likelihood(small):
    model, x, exact, _ = small
    weights = (model.log_importance_weights(x, 100_000, generator(2, CPU)) - exact).exp()  # [K, B]
    assert ((weights.mean(0) - 1).abs() < 4.5 * weights.std(0) / len(weights) ** 0.5).all()


def test_bound_tightens_with_every_draw(small):
    model, x, exact, gap = small
    log_weights = model.log_importance_weights(x, 100_000, generator(3, CPU))
    gaps = []
    for k in 1, 5, 50, 5_000:
        bounds = importance_weighted_nll(log_weights.unflatten(0, (-1, k)).transpose(0, 1))  # [100_000 / k, B]
        gaps.append(bounds.mean() + exact.mean())
        error = bounds.mean(1).std() / len(bounds) ** 0.5
    assert gaps[0] == pytest.approx(gap.mean().item(), rel=0.02)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 8 * gaps[3] and abs(gaps[3]) < 4 * error < 0.02


def test_weights_have_no_variance_where_the_posterior_is_known():
    """A decoder that ignores z has the prior as its posterior: then each weight is p(x), whatever was drawn."""
    model = build(latents=3)
    model.encoder[-1].weight.data.zero_(), model.encoder[-1].bias.data.zero_()  # q(z|x) = N(0, 1)
    model.decoder[0].weight.data.zero_()
    x = images(5)
    with torch.no_grad():
        exact = -bernoulli_nll(model.decoder(torch.zeros(5, 3, dtype=torch.double)), x)
    weights = model.log_importance_weights(x, 40, generator(0, CPU))
    assert (weights - exact).abs().max() < 1e-12
    assert (model.score(x, generator(0, CPU))["nll_bound_nats"] + exact).abs().max() < 1e-12


# -- a linear decoder with normal pixels: the posterior is normal, and diagonal where the decoder's columns are orthogonal


class Normals(nn.Module):
    """Pixels that are real numbers, not levels, x ~ N(decoded, 0.3^2); of two levels scaling changes nothing."""

    improper, outputs, log_var = None, 1, torch.tensor(2 * math.log(0.3), dtype=torch.double)

    def nll(self, params, x, generator):
        return -gaussian_log_prob(x.flatten(-3), params.flatten(-3), self.log_var)


def linear(bias: float = 0.0, narrower: float = 0.0) -> tuple[VAE, torch.Tensor, torch.Tensor, tuple]:
    """A model of 6 pixels and 3 latents with q(z|x) = p(z|x), or beside it; x [B, 1, 2, 3], log p(x), the posterior."""
    model = build(
        Spec((1, 2, 3), 2), latents=3, likelihood=lambda spec: Normals(),
        encoder=lambda shape, outputs: nn.Sequential(nn.Flatten(), nn.Linear(6, outputs)),
        decoder=lambda shape, inputs: nn.Sequential(nn.Linear(inputs, 6), nn.Unflatten(-1, shape)),
    )  # fmt: skip
    rng, s2 = generator(0, CPU), 0.3**2
    axes = torch.linalg.qr(torch.randn(6, 3, generator=rng, dtype=torch.double))[0]
    w, b = axes * torch.tensor([2.0, 0.7, 0.1], dtype=torch.double), torch.randn(6, generator=rng, dtype=torch.double)
    precision = 1 + w.square().sum(0) / s2
    to_mu = w.T / s2 / precision[:, None]
    decoder, encoder = model.decoder[0], model.encoder[1]
    decoder.weight.data, decoder.bias.data = w, b
    encoder.weight.data = torch.cat([to_mu, torch.zeros_like(to_mu)])
    encoder.bias.data = torch.cat([bias - to_mu @ b, -precision.log() - narrower])
    marginal = MultivariateNormal(b, w @ w.T + s2 * torch.eye(6, dtype=torch.double))
    x = b + torch.randn(20, 6, generator=rng, dtype=torch.double) @ marginal.scale_tril.T
    posterior = Normal((x - b) @ to_mu.T, precision.rsqrt())
    return model, x.view(-1, 1, 2, 3), marginal.log_prob(x), posterior


def test_with_the_posterior_itself_every_weight_is_the_likelihood():
    model, x, exact, _ = linear()
    weights = model.log_importance_weights(x, 50, generator(0, CPU))
    assert (weights - exact).abs().max() < 1e-12
    score = model.score(x, generator(1, CPU), iwae_samples=7)
    assert (score["nll_bound_nats"] + exact).abs().max() < 1e-12
    assert (score["iwae7_nats"] + exact).abs().max() < 1e-12


def test_with_another_the_elbo_falls_short_by_their_divergence():
    model, x, exact, posterior = linear(bias=0.1, narrower=0.8)
    with torch.no_grad():
        mu, log_var = model.encode(x)
    gap = kl_divergence(Normal(mu, (0.5 * log_var).exp()), posterior).sum(1)
    many = -model.log_importance_weights(x, 100_000, generator(0, CPU)) + exact
    assert (gap > 0.2).all()
    assert ((many.mean(0) - gap).abs() < 4.5 * many.std(0) / len(many) ** 0.5).all()


def test_the_bound_rises_to_the_likelihood_with_every_draw():
    model, x, exact, _ = linear(bias=0.1, narrower=0.8)
    weights, gaps = model.log_importance_weights(x, 100_000, generator(0, CPU)), []
    for k in 1, 5, 50, 5_000:
        bounds = importance_weighted_nll(weights.unflatten(0, (-1, k)).transpose(0, 1))
        gaps.append((bounds + exact).mean().item())
    assert gaps[0] > 1.5 * gaps[1] > 2 * gaps[2] > 4 * gaps[3] and abs(gaps[3]) < 0.02


def test_dequantised_pixels_weigh_as_much_as_their_levels_on_average():
    """One pixel of 5 levels, x ~ N(w z + b, s^2): the mass of a level is a difference of distribution functions."""
    w, b, s = 0.3, 0.4, 0.1
    model = build(
        Spec((1, 1, 1), 5), latents=1, likelihood=stated("model/likelihood/gaussian", spread="fixed", sigma=s),
        encoder=lambda shape, outputs: nn.Sequential(nn.Flatten(), nn.Linear(1, outputs)),
        decoder=lambda shape, inputs: nn.Sequential(nn.Linear(inputs, 1), nn.Unflatten(-1, shape)),
    )  # fmt: skip
    model.decoder[0].weight.data.fill_(w), model.decoder[0].bias.data.fill_(b)
    precision = 1 + (w / s) ** 2
    model.encoder[1].weight.data = torch.tensor([[w / s**2 / precision], [0.0]])
    model.encoder[1].bias.data = torch.tensor([-b * w / s**2 / precision, 0.3 - math.log(precision)])
    level, marginal = torch.arange(5), Normal(b, math.hypot(w, s))
    exact = (marginal.cdf(level / 4 + 1 / 8) - marginal.cdf(level / 4 - 1 / 8)).log()
    weights = model.log_importance_weights(level.view(5, 1, 1, 1), 200_000, generator(0, CPU))
    ratio = (weights - exact).exp()
    assert ((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / len(ratio) ** 0.5).all()
    assert (importance_weighted_nll(weights.view(-1, 5, 5).transpose(0, 1)).mean(0) > -exact).all()
