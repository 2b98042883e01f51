"""The VAE against exact integrals over a latent of one dimension, and its promises about random streams."""

import math
from functools import partial

import pytest
import torch

from gen_lab.data import digits
from gen_lab.losses import bernoulli_nll, gaussian_log_prob, importance_weighted_nll
from gen_lab.models import vae as module
from gen_lab.models.vae import VAE, conv_decoder, conv_encoder, draw, mlp_decoder, mlp_encoder
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.learner import generator

CPU = torch.device("cpu")
BINARY = Spec((1, 8, 8), 2)


MLP = {"encoder": partial(mlp_encoder, hidden=32), "decoder": partial(mlp_decoder, hidden=32)}
CONV = {"encoder": partial(conv_encoder, channels=8), "decoder": partial(conv_decoder, channels=8)}


def build(spec: Spec = BINARY, seed: int = 0, *, lr: float = 2e-3, **knobs) -> VAE:
    usual = {**MLP, "latents": 8, "beta": 1.0, "optimizer": partial(torch.optim.Adam, lr=lr)}
    return VAE(spec, CPU, seed, **usual | knobs)


def images(count: int, spec: Spec = BINARY) -> torch.Tensor:
    return torch.bernoulli(torch.full((count, *spec.shape), 0.5), generator=generator(1, CPU))


# -- exact values: z has one dimension, so that p(x) is an integral over a grid


GRID = torch.linspace(-12, 12, 20_001, dtype=torch.double)


def log_joint(model: VAE, x: torch.Tensor) -> torch.Tensor:
    """log p(x, z) [grid, B], with the prior written out."""
    prior = -0.5 * (GRID.square() + math.log(2 * math.pi))
    return prior[:, None] - bernoulli_nll(model.decoder(GRID[:, None])[:, None], x)


@pytest.fixture(scope="module")
def small() -> tuple:
    """A model of float64 with a decoder that bends, its images, log p(x) and KL(q(z|x) || p(z|x)), both exact."""
    model = build(Spec((1, 2, 3), 2), latents=1)
    for net, scale in (model.encoder, 1.5), (model.decoder, 3.0):
        net.double()
        for p in net.parameters():
            p.data *= scale
    x = images(16, Spec((1, 2, 3), 2)).double()
    with torch.no_grad():
        joint = log_joint(model, x)
        exact = torch.trapezoid(joint.exp(), GRID, dim=0).log()  # [B]
        log_q = gaussian_log_prob(GRID[:, None, None], *model.encode(x))  # [grid, B]
        gap = torch.trapezoid(log_q.exp() * (log_q - (joint - exact)), GRID, dim=0)
    return model, x, exact, gap


def test_the_grid_is_fine_enough(small):
    """p(x) of all 2^6 images sums to 1."""
    model = small[0]
    every = torch.tensor([[(i >> b) & 1 for b in range(6)] for i in range(64)]).double().view(64, 1, 2, 3)
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
    for net in model.encoder, model.decoder:
        net.double()
    model.encoder[-1].weight.data.zero_(), model.encoder[-1].bias.data.zero_()  # q(z|x) = N(0, 1)
    model.decoder[0].weight.data.zero_()
    x = images(5).double()
    with torch.no_grad():
        exact = -bernoulli_nll(model.decoder(torch.zeros(5, 3, dtype=torch.double)), x)
    weights = model.log_importance_weights(x, 40, generator(0, CPU))
    assert (weights - exact).abs().max() < 1e-12
    assert (model.score(x, generator(0, CPU))["nll_bound_nats"] + exact).abs().max() < 1e-12


# -- how it is done


def test_draw_has_the_spread_it_was_given():
    log_var = torch.tensor([-2.0, 0.0, 3.0])
    z = draw(torch.ones(3), log_var, torch.randn(200_000, 3, generator=generator(0, CPU)))
    torch.testing.assert_close(z.var(0), log_var.exp(), rtol=0.02, atol=0)
    torch.testing.assert_close(z.mean(0), torch.ones(3), rtol=0, atol=0.05)


def test_an_image_is_encoded_once_and_decoded_in_chunks(monkeypatch):
    model, x = build(), images(7)
    calls = {"encoder": [], "decoder": []}
    model.encoder.register_forward_hook(lambda _m, a, _o: calls["encoder"].append(len(a[0])))
    model.decoder.register_forward_hook(lambda _m, a, _o: calls["decoder"].append(len(a[0])))
    monkeypatch.setattr(module, "DECODED_AT_ONCE", 30)
    assert model.log_importance_weights(x, 10, generator(0, CPU)).shape == (10, 7)
    assert calls == {"encoder": [7], "decoder": [28, 28, 14]}


def test_beta_weighs_the_kl_in_training_alone():
    x = images(32)
    with_beta, without = build(beta=4.0), build()
    bounds = [model.score(x, generator(0, CPU))["nll_bound_nats"] for model in (with_beta, without)]
    assert torch.equal(*bounds)
    for _ in range(300):
        with_beta.update(x), without.update(x)
    kl = [model.score(x, generator(0, CPU))["kl_nats"].mean().item() for model in (with_beta, without)]
    assert kl[0] < 0.7 * kl[1]


@pytest.mark.parametrize("nets", [MLP, CONV], ids=["mlp", "conv"])
def test_learns_to_reconstruct(nets):
    model, x = build(lr=5e-3, **nets), images(8)
    for _ in range(400):
        model.update(x)
    assert ((model.reconstruct(x) - x).abs() < 0.5).float().mean() > 0.97
    assert model.reconstruct(x).shape == x.shape


def test_samples_are_binary_and_follow_the_generator():
    model = build()
    x = model.sample(4_000, generator(0, CPU))
    assert x.shape == (4_000, 1, 8, 8) and ((x == 0) | (x == 1)).all()
    assert torch.equal(x, model.sample(4_000, generator(0, CPU)))
    assert not torch.equal(x, model.sample(4_000, generator(1, CPU)))
    with torch.no_grad():
        mean = model.decoder(torch.randn(20_000, 8, generator=generator(2, CPU))).sigmoid().mean(0)
    assert ((x.mean(0) - mean).abs() < 0.04).all()


def test_looking_at_a_model_does_not_disturb_its_training():
    looked_at, left_alone, x = build(), build(), images(16)
    for _ in range(3):
        looked_at.update(x), left_alone.update(x)
        looked_at.score(x, generator(0, CPU), 5), looked_at.sample(3, generator(0, CPU)), looked_at.reconstruct(x)
    for a, b in zip(looked_at.decoder.parameters(), left_alone.decoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_follow_the_seed_and_the_global_stream_is_left_alone():
    before = torch.get_rng_state()
    a, b, c = build(seed=0), build(seed=0), build(seed=1)
    a.update(images(4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(b.encoder[1].weight, build(seed=0).encoder[1].weight)
    assert not torch.equal(b.encoder[1].weight, c.encoder[1].weight)


def test_grey_pixels_are_refused():
    with pytest.raises(UserError, match=r"17 grey levels.*no likelihood.*protocol=binarised"):
        build(digits(protocol="levels").spec)


def test_images_that_cannot_be_halved_twice_are_refused():
    with pytest.raises(UserError, match="8 x 10"):
        build(Spec((1, 8, 10), 2), **CONV)
