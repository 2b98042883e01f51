"""The discretised logistic mixture: a probability, exact to its edges, and drawn from as it is scored."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import Categorical

from gen_lab.losses import categorical_nll, discretised_logistic_log_prob, logistic_mixture_nll
from gen_lab.networks.causal.heads import LogisticMixture
from gen_lab.types import Spec
from rl_lab.core.errors import UserError


def grid(levels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every level beside means within and beyond [-1, 1] and log-scales down to where they are clamped; float64."""
    level = torch.arange(levels, dtype=torch.double)[:, None, None]
    mean = torch.linspace(-1.5, 1.5, 61, dtype=torch.double)[:, None]
    return level, mean, torch.linspace(-8, 3, 23, dtype=torch.double)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_levels_sum_to_one(levels):
    log_p = discretised_logistic_log_prob(*grid(levels), levels)
    assert (log_p.exp().sum(0) - 1).abs().max() < 1e-8
    assert log_p.isfinite().all() and (log_p < 1e-12).all()


def test_literal_values():
    """Three levels cut [-1, 1] at -1/2 and 1/2: of a standard logistic, s(-1/2), s(1/2) - s(-1/2) and s(-1/2)."""
    p = discretised_logistic_log_prob(torch.arange(3.0), torch.tensor(0.0), torch.tensor(0.0), 3).exp()
    s = 1 / (1 + math.exp(0.5))
    torch.testing.assert_close(p, torch.tensor([s, 1 - 2 * s, s]))
    assert s == pytest.approx(0.3775407)


def test_against_differences_of_the_distribution_function():
    level, mean, log_scale = grid(17)
    cut = lambda k: torch.where(
        k > 16, 1.0, torch.where(k < 1, 0.0, ((2 * k - 1) / 16 - 1 - mean).div(log_scale.exp()).sigmoid())
    )  # noqa: E731
    wide = slice(6, None)  # from log-scale -5 on, where the difference is exact enough
    torch.testing.assert_close(
        discretised_logistic_log_prob(level, mean, log_scale, 17).exp()[..., wide],
        (cut(level + 1) - cut(level))[..., wide], rtol=1e-6, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_even_at_the_narrowest(dtype):
    level, mean, log_scale = (x.to(dtype).requires_grad_(i > 0) for i, x in enumerate(grid(256)))
    mean, log_scale = mean.detach().requires_grad_(), torch.full((1,), -7.0, dtype=dtype, requires_grad=True)
    discretised_logistic_log_prob(level, mean, log_scale, 256).sum().backward()
    assert mean.grad.isfinite().all() and log_scale.grad.isfinite().all() and (mean.grad != 0).any()


def test_gradcheck():
    rng = torch.Generator().manual_seed(0)
    shapes = (2, 3, 1, 2), (2, 3, 2, 1, 2), (2, 3, 2, 1, 2)
    inputs = [torch.randn(shape, generator=rng, dtype=torch.double).requires_grad_() for shape in shapes]
    x = torch.tensor([0, 1, 3, 4, 2, 0, 4, 1]).view(2, 2, 1, 2)
    assert torch.autograd.gradcheck(lambda *p: logistic_mixture_nll(*p, x, 5), inputs)


def params(spec: Spec, mixtures: int, scale: float = 1.0) -> tuple[LogisticMixture, torch.Tensor]:
    head = LogisticMixture(spec, mixtures=mixtures)
    p = scale * torch.randn(1, head.outputs, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    return head, p


@pytest.mark.parametrize("spec", [Spec((1, 1, 1), 17), Spec((3, 1, 1), 5)], ids=["grey", "colour"])
def test_drawn_as_it_is_scored(spec, float64):
    """Chi-square of 200,000 draws against the probability of each pixel, at the 1e-4 level."""
    head, p = params(spec, 3)
    every = torch.cartesian_prod(*[torch.arange(spec.levels)] * spec.shape[0]).view(-1, spec.shape[0], 1, 1)
    probability = (-head.nll(p.expand(len(every), -1, -1, -1), every)).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-9)
    u = torch.rand(200_000, head.uniforms, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    x = head.draw(p[:, :, 0, 0].expand(len(u), -1), u)
    assert x.dtype == torch.uint8 and x.max() < spec.levels
    index = (x.long() * spec.levels ** torch.arange(spec.shape[0]).flip(0)).sum(1)
    seen, expected = torch.bincount(index, minlength=len(every)).double(), probability * len(u)
    likely = expected > 5
    chi2, freedom = ((seen - expected).square() / expected)[likely].sum().item(), int(likely.sum()) - 1
    assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)


def test_a_later_colour_follows_the_earlier_ones_of_its_pixel():
    """One mixture, means (0, .1, .2) and coefficients tanh(1), tanh(2), tanh(3) on R = 1, G = -1/2."""
    head = LogisticMixture(Spec((3, 1, 1), 5), mixtures=1)
    _, means, _, coefficients = head.split(torch.tensor([0, 0, 0.1, 0.2, 0, 0, 0, 1, 2, 3]).view(1, 10, 1, 1))
    x = torch.tensor([1.0, -0.5, 0.0]).view(1, 3, 1, 1)
    green, blue = 0.1 + math.tanh(1), 0.2 + math.tanh(2) - 0.5 * math.tanh(3)
    torch.testing.assert_close(head.shifted(means, coefficients, x).flatten(), torch.tensor([0, green, blue]))


def test_sizes():
    ten = partial(LogisticMixture, mixtures=10)
    assert ten(Spec((3, 8, 8), 256)).outputs == 100 and ten(Spec((1, 8, 8), 256)).outputs == 30
    with pytest.raises(UserError, match="softmax on binary"):
        ten(Spec((1, 8, 8), 2))


def test_categorical_nll_is_a_sum_over_pixels_and_colours():
    logits = torch.randn(3, 2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    level = torch.randint(5, (3, 2, 4, 4), generator=torch.Generator().manual_seed(1))
    expected = -Categorical(logits=logits.movedim(2, -1)).log_prob(level).flatten(1).sum(1)
    torch.testing.assert_close(categorical_nll(logits, level), expected)
