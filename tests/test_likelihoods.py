"""What stands at the end of a decoder: masses that sum to 1, samples that follow them, and bounds that are bounds."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from stated import stated
from torch.distributions import Normal

from gen_lab.models.likelihoods import (
    Bernoulli,
    Categorical,
    CrossEntropy,
    DiscretisedLogistic,
    Gaussian,
    dequantised,
)
from gen_lab.types import Spec
from rl_lab.core.errors import UserError

TINY = (2, 1, 2)  # 2 colours of 2 pixels
EXACT = [(Bernoulli, 2), (Categorical, 2), (Categorical, 4), (DiscretisedLogistic, 3), (DiscretisedLogistic, 4)]
gaussian = stated("model/likelihood/gaussian")
fixed = partial(gaussian, spread="fixed")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every(levels: int, shape=TINY) -> torch.Tensor:
    """All images of this many levels, [L^(CHW), C, H, W]."""
    return torch.tensor(list(product(range(levels), repeat=math.prod(shape)))).unflatten(1, shape)


def params_for(likelihood, *leading: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*leading, likelihood.outputs, 1, 2, generator=rng(seed), dtype=torch.double)


def masses(likelihood, params: torch.Tensor, levels: int) -> torch.Tensor:
    """Of all images [M] under params [P, H, W]."""
    x = every(levels)
    return (-likelihood.nll(params.expand(len(x), *params.shape), x, rng())).exp()


# -- exact ones


@pytest.mark.parametrize(("kind", "levels"), EXACT)
def test_masses_of_all_images_sum_to_one(kind, levels):
    likelihood = kind(Spec(TINY, levels))
    for seed in range(4):
        total = masses(likelihood, params_for(likelihood, seed=seed), levels).sum().item()
        assert total == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(("kind", "levels"), EXACT)
def test_samples_follow_the_masses(kind, levels):
    """Pearson's chi-square of 40,000 images over all there are, within 4 standard deviations of its mean."""
    likelihood, count = kind(Spec(TINY, levels)), 40_000
    params = params_for(likelihood, seed=5, scale=0.7)
    p = masses(likelihood, params, levels)
    x = likelihood.sample(params.expand(count, *params.shape), rng(1))
    assert x.shape == (count, *TINY) and x.dtype == torch.uint8
    index = (x.flatten(1).long() * torch.tensor([levels**i for i in (3, 2, 1, 0)])).sum(1)
    seen = torch.bincount(index, minlength=len(p))
    chi = ((seen - count * p).square() / (count * p)).sum().item()
    assert abs(chi - (len(p) - 1)) < 4 * math.sqrt(2 * (len(p) - 1) + (1 / (count * p)).sum().item())


@pytest.mark.parametrize(("kind", "levels"), EXACT[:3])
def test_mean_is_the_mean_of_all_images(kind, levels):
    likelihood = kind(Spec(TINY, levels))
    params = params_for(likelihood, seed=3)
    mean = (masses(likelihood, params, levels)[:, None, None, None] * every(levels)).sum(0) / (levels - 1)
    torch.testing.assert_close(likelihood.mean(params), mean)


def test_centre_of_a_logistic_is_shown_on_the_scale_of_images():
    likelihood = DiscretisedLogistic(Spec((1, 1, 2), 5))
    params = torch.tensor([[[-0.5, 3.0]], [[0.0, 0.0]]])  # centres of [-1, 1], then log-scales
    assert likelihood.mean(params).tolist() == [[[0.25, 1.0]]]


@pytest.mark.parametrize(
    ("kind", "levels"), [*EXACT, (CrossEntropy, 4), (fixed, 4), (partial(gaussian, spread="pixel"), 4)]
)
def test_draws_of_the_latents_broadcast_over_images(kind, levels):
    """[K, B] at once is what K calls give one by one, where nothing is drawn."""
    likelihood = kind(Spec(TINY, levels)).eval()
    params, x = params_for(likelihood, 3, 5), every(levels)[-5:]
    together = likelihood.nll(params, x, rng())
    assert together.shape == (3, 5) and likelihood.nll(params[0], x, rng()).shape == (5,)
    if not isinstance(likelihood, Gaussian):
        torch.testing.assert_close(together, torch.stack([likelihood.nll(p, x, rng()) for p in params]))
    assert likelihood.mean(params).shape == likelihood.sample(params, rng()).shape == (3, 5, *TINY)


# -- a density


def exact_mass(level: torch.Tensor, mean: torch.Tensor, sigma: float, levels: int) -> torch.Tensor:
    """Of the interval around a level, by the normal distribution function."""
    normal, half, x = Normal(mean, sigma), 0.5 / (levels - 1), level / (levels - 1)
    return normal.cdf(x + half) - normal.cdf(x - half)


def test_gaussian_bounds_the_mass_of_its_intervals():
    """On average -log p of noisy levels is above -log of the mass, and their weights average to the mass itself."""
    levels, draws = 5, 200_000
    likelihood = fixed(Spec((1, 1, 1), levels), sigma=0.15)
    for level, mean in (0, 0.1), (2, 0.4), (3, 0.3):
        x = torch.full((1, 1, 1, 1), level)
        nll = likelihood.nll(torch.full((draws, 1, 1, 1, 1), mean, dtype=torch.double), x, rng(level))[:, 0]
        exact = exact_mass(torch.tensor(float(level)), torch.tensor(mean), 0.15, levels).log()
        weights = (-nll - exact).exp()
        assert nll.mean() + exact > 5 * nll.std() / draws**0.5
        assert abs(weights.mean() - 1) < 4 * weights.std() / draws**0.5


def test_noise_fills_the_intervals_and_nothing_else():
    x = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1).expand(3, 1, 100, 100)
    y = dequantised(x, 5, rng()) - x
    assert y.abs().max() <= 0.125 and y.flatten(1).min() < -0.1249 and y.flatten(1).max() > 0.1249
    assert y.var().item() == pytest.approx(0.25**2 / 12, rel=0.02)
    assert torch.equal(Spec((1, 100, 100), 5).nearest(dequantised(x, 5, rng())), (4 * x).byte())


def test_literal_gaussian():
    """Two levels, sigma 1: mean 1/2 and a noise of u give log p = -log(2 pi) / 2 - u^2 / 2, u uniform in (0, 1)."""
    likelihood = fixed(Spec((1, 1, 1), 2), sigma=1.0)
    nll = likelihood.nll(torch.full((400_000, 1, 1, 1), 0.5), torch.ones(400_000, 1, 1, 1, dtype=torch.uint8), rng())
    assert nll.mean().item() == pytest.approx(0.5 * math.log(2 * math.pi) + 1 / 6, abs=0.001)


def test_optimal_sigma_is_the_root_of_the_mean_squared_error():
    likelihood = gaussian(Spec((1, 8, 8), 5))
    x, params = torch.randint(5, (64, 1, 8, 8), generator=rng(1)), torch.rand(64, 1, 8, 8, generator=rng(2))
    error = (dequantised(x / 4, 5, rng()) - params).square().mean()
    nll = likelihood.train().nll(params, x, rng())
    best = 64 * (math.log(4) + 0.5 * math.log(2 * math.pi * error) + 0.5)
    assert nll.mean().item() == pytest.approx(best, rel=1e-5)
    for sigma in 0.98 * error.sqrt(), 1.02 * error.sqrt():
        assert fixed(Spec((1, 8, 8), 5), sigma=sigma.item()).nll(params, x, rng()).mean() > nll.mean()


def test_the_gradient_is_that_of_the_logarithm_of_the_squared_error():
    likelihood = gaussian(Spec((1, 2, 2), 3)).train()
    x, params = torch.zeros(3, 1, 2, 2), torch.rand(3, 1, 2, 2, generator=rng(2), requires_grad=True)
    (grad,) = torch.autograd.grad(likelihood.nll(params, x, rng()).sum(), params)
    logarithm = 0.5 * x.numel() * (dequantised(x, 3, rng()) - params).square().mean().log()
    torch.testing.assert_close(grad, torch.autograd.grad(logarithm, params)[0])


def test_outside_training_sigma_is_that_of_training_and_images_do_not_meet():
    likelihood = gaussian(Spec((1, 4, 4), 5))
    x, params = torch.zeros(10, 1, 4, 4), torch.full((10, 1, 4, 4), 0.5)
    for seed in range(1_000):
        likelihood.train().nll(params, x, rng(seed))
    expected = 0.25 + 0.25**2 / 12  # the error, and the noise of the levels
    likelihood.eval()
    assert likelihood.log_var.exp().item() == pytest.approx(expected, rel=0.02)
    before = likelihood.log_var.clone()
    both = likelihood.nll(torch.cat([params, 9 * params]), torch.cat([x, x]), rng(0))
    assert torch.equal(both[:10].flatten(), likelihood.nll(params, x, rng(0))[:10])
    assert torch.equal(likelihood.log_var, before)
    again = gaussian(Spec((1, 4, 4), 5))
    again.load_state_dict(likelihood.state_dict())
    assert torch.equal(again.log_var, before)


def test_what_of_a_gaussian_is_learned_and_what_is_saved():
    spec = Spec((3, 4, 4), 5)
    outputs = {s: gaussian(spec, spread=s).outputs for s in ("fixed", "shared", "optimal", "pixel")}
    assert outputs == {"fixed": 3, "shared": 3, "optimal": 3, "pixel": 6}
    assert {s: len(list(gaussian(spec, spread=s).parameters())) for s in outputs} == {
        "fixed": 0, "shared": 1, "optimal": 0, "pixel": 0
    }  # fmt: skip
    assert {s for s in outputs if gaussian(spec, spread=s).state_dict()} == {"shared", "optimal"}


def test_a_spread_for_each_pixel_starts_at_sigma_and_is_a_logarithm():
    likelihood = gaussian(Spec((1, 1, 2), 3), spread="pixel", sigma=0.2)
    params = torch.tensor([[[0.3, 0.3]], [[0.0, math.log(10.0)]]])
    mean, log_var = likelihood.moments(params)
    torch.testing.assert_close(mean, torch.tensor([[[0.3, 0.3]]]))
    torch.testing.assert_close((0.5 * log_var).exp(), torch.tensor([[[0.2, 2.0]]]))
    drawn = likelihood.sample(params.expand(20_000, 2, 1, 2), rng())
    assert set(drawn.unique().tolist()) == {0, 1, 2}
    expected = exact_mass(torch.tensor([1.0]), torch.tensor([0.3]), torch.tensor([0.2, 2.0]), 3)
    torch.testing.assert_close((drawn == 1).float().mean((0, 1, 2)), expected, atol=0.015, rtol=0)


def test_squashed_means():
    spec = Spec((1, 1, 2), 5)
    params = torch.tensor([[[0.0, math.log(3)]]])
    torch.testing.assert_close(fixed(spec, squashed=True).mean(params), torch.tensor([[[0.5, 0.75]]]))
    torch.testing.assert_close(fixed(spec).mean(params), torch.tensor([[[0.0, 1.0]]]))


# -- no likelihood


def test_cross_entropy_of_grey_pixels_has_another_name_and_sums_to_something_else():
    likelihood = CrossEntropy(Spec(TINY, 4))
    assert likelihood.improper == "recon_bce"
    assert abs(masses(likelihood, params_for(likelihood), 4).sum() - 1) > 0.5
    x = likelihood.sample(torch.tensor([[[-9.0, 9.0]], [[0.4, -0.9]]]), rng())
    assert x.tolist() == [[[0, 3]], [[2, 1]]]


@pytest.mark.parametrize("kind", [Bernoulli, Categorical, DiscretisedLogistic, Gaussian])
def test_all_others_are_likelihoods(kind):
    assert kind.improper is None


@pytest.mark.parametrize(
    ("kind", "levels", "says"),
    [
        (Bernoulli, 17, "17 grey levels.*no likelihood.*protocol=binarised.*model/likelihood=categorical"),
        (DiscretisedLogistic, 2, "three levels or more.*model/likelihood=bernoulli"),
    ],
)
def test_levels_that_do_not_fit_are_refused(kind, levels, says):
    with pytest.raises(UserError, match=says):
        kind(Spec(TINY, levels))
