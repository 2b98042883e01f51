"""What discriminators and generators lose: literal numbers, known optima, and a critic that measures a distance."""

import math

import pytest
import torch
from torch import nn

from gen_lab.models.gan.losses import discriminator_loss, generator_loss, gradient_penalty
from rl_lab.core.learner import descend

LN2 = math.log(2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("loss", "told_apart", "deceived"),
    [
        ("minimax", [2 * LN2, 0.4401897, 3.1269280 + 0.3132617 - 1], [-LN2, -0.1269280, -2.1269280]),
        ("non_saturating", [2 * LN2, 0.4401897, 3.1269280 + 0.3132617 - 1], [LN2, 2.1269280, 0.1269280]),
        ("hinge", [2.0, 0.0, 3.0], [0.0, 2.0, -2.0]),
        ("wasserstein", [0.0, -3.0, 1.0], [0.0, 2.0, -2.0]),
    ],
)
def test_literal_numbers(loss, told_apart, deceived):
    """At logits (0, 0), as of p_g = p_data; (1, -2); and (1, 2). ln(1 + e^-1) = 0.3132617, ln(1 + e^-2) = 0.1269280."""
    real, fake = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, -2.0, 2.0])
    assert discriminator_loss(loss, real, fake).tolist() == pytest.approx(told_apart, abs=1e-6)
    assert generator_loss(loss, fake).tolist() == pytest.approx(deceived, abs=1e-6)


def test_smoothing_is_one_sided():
    """Of targets 0.9 and 0: 0.9 ln(1 + e^-1) + 0.1 ln(1 + e) + ln(1 + e^-2)."""
    smoothed = discriminator_loss("non_saturating", torch.ones(1), torch.full((1,), -2.0), 0.1)
    assert smoothed.item() == pytest.approx(0.9 * 0.3132617 + 0.1 * 1.3132617 + 0.1269280, abs=1e-6)


def test_a_sure_discriminator_teaches_only_where_it_should():
    """At a logit of -100 the saturating loss is flat and the other one has slope -1; nothing overflows at 1,000."""
    for loss, slope in ("minimax", 0.0), ("non_saturating", -1.0):
        fake = torch.tensor([-100.0], requires_grad=True)
        generator_loss(loss, fake).sum().backward()
        assert fake.grad.item() == pytest.approx(slope, abs=1e-6)
        extremes = torch.tensor([-1e3, 1e3], requires_grad=True)
        (discriminator_loss(loss, extremes, extremes) + generator_loss(loss, extremes)).sum().backward()
        assert extremes.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_best_discriminator_of_known_distributions(smoothing):
    """D = (1 - s) p / (p + q), and without smoothing the loss is 2 ln 2 - 2 JSD (Goodfellow et al., 2014, prop. 1)."""
    p, q = torch.tensor([5, 3, 1, 1]), torch.tensor([1, 2, 3, 4])
    real, fake = (torch.repeat_interleave(torch.arange(4), counts) for counts in (p, q))
    logit = torch.zeros(4, dtype=torch.double, requires_grad=True)
    for _ in range(600):
        loss = discriminator_loss("minimax", logit[real], logit[fake], smoothing).mean()
        (slope,) = torch.autograd.grad(loss, logit)
        logit.data -= 10 * slope
    p, q = p.double() / 10, q.double() / 10
    assert torch.allclose(logit.sigmoid(), (1 - smoothing) * p / (p + q), atol=1e-6)
    if not smoothing:
        m = (p + q) / 2
        jsd = 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
        assert loss.item() == pytest.approx(2 * LN2 - 2 * jsd.item(), abs=1e-9)


# -- the gradient penalty


def test_penalty_of_a_linear_critic():
    """(|a| - 1)^2, whatever the images: 16 for |a| = 5, with gradient 2 (|a| - 1) a / |a|."""
    a = torch.zeros(3, 4, 5)
    a[0, 1, 2], a[2, 3, 4] = 3.0, 4.0
    a.requires_grad_()
    real, fake = torch.randn(2, 6, 3, 4, 5, generator=rng())
    penalty = gradient_penalty(lambda x: (x * a).flatten(1).sum(1), real, fake, rng())
    assert penalty.tolist() == pytest.approx([16.0] * 6)
    penalty.mean().backward()
    assert torch.allclose(a.grad, 8 * a.detach() / 5, atol=1e-5)


def test_penalty_is_of_each_image_between_its_own_two():
    """The critic |x|^2 / 2 has slope x: the penalty tells where it was asked for, a random share of the way."""
    real, fake = torch.zeros(2000, 1, 2, 2), torch.ones(2000, 1, 2, 2)
    penalty = gradient_penalty(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, rng())
    share = (1 - penalty.sqrt()) / 2  # |x| = 2 share where share < 1/2; above, 2 share - 1 is 1 - (2 - 2 share)
    assert share.min() >= -1e-6 and share.max() <= 0.5 + 1e-6
    assert share.mean().item() == pytest.approx(0.25, abs=0.015)
    assert share.std().item() == pytest.approx(0.5 / 12**0.5, abs=0.01)


def test_a_critic_measures_the_distance_of_two_gaussians():
    """|mu1 - mu2| = 0.5 within 5 %; the penalty of weight 10 lets slopes grow to 1 + 0.5 / 20, which is seen too.

    In one dimension a slope that starts downwards stays so, for at 0 the penalty is highest: it starts upwards here.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = nn.Sequential(nn.Flatten(), nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Flatten(0))
    critic[3].weight.data = critic[1].weight.data.T / 10
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.9))
    stream = rng()
    for i in range(300):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - i / 300)
        real, fake = torch.randn(2, 1024, 1, 1, 1, generator=stream)
        real = real + 0.5
        penalty = gradient_penalty(critic, real, fake, stream).mean()
        descend(optimizer, discriminator_loss("wasserstein", critic(real), critic(fake)).mean() + 10 * penalty)
    x = torch.randn(20_000, 1, 1, 1, generator=stream)
    with torch.no_grad():
        distance = -discriminator_loss("wasserstein", critic(x + 0.5), critic(x)).mean().item()
    assert distance == pytest.approx(0.5, rel=0.05)
    assert distance == pytest.approx(0.5 * (1 + 0.5 / 20), rel=0.02)
