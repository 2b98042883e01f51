"""The VAE: how it learns, its networks, and its promises about random streams."""

import inspect
import math
from functools import partial

import hydra
import pytest
import torch
from stated import stated
from stopping import StopsAt, equal
from torch import nn
from torch.distributions import Normal, kl_divergence
from vae_cases import BINARY, CONV, CPU, GREY, MLP, PLAIN, RESIDUAL, WORLD_MODELS, build, images

from gen_lab.judging.evaluation import evaluate
from gen_lab.losses import gaussian_kl, importance_weighted_nll
from gen_lab.models import vae as module
from gen_lab.models.likelihoods import Categorical, CrossEntropy, DiscretisedLogistic
from gen_lab.models.vae import VAE, draw
from gen_lab.networks import coders
from gen_lab.networks.coders import conv_decoder, conv_encoder, mlp_decoder, mlp_encoder, residual_encoder
from gen_lab.parts import PARTS, YOUNGER
from gen_lab.types import Spec
from rl_lab.core import calls
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator
from rl_lab.core.run import Run, Stopped

gaussian = stated("model/likelihood/gaussian")
digits = stated("data/digits")
fit = stated("loop/fit", iwae_samples=0)

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


def gradient(model: VAE, x: torch.Tensor) -> torch.Tensor:
    """Of the loss that an update would descend, with the draws of the update to come."""
    rng = model.rng.get_state()
    loss = (model.elbo_loss if model.importance_samples == 1 else model.iwae_loss)(x, None)[0].mean()
    parts = torch.autograd.grad(loss, [*model.encoder.parameters(), *model.decoder.parameters()])
    model.rng.set_state(rng)
    return torch.cat([part.flatten() for part in parts])


def test_the_gradient_is_that_of_the_elbo_written_out():
    model, x = build(), images(16)
    noise = torch.randn(16, 8, generator=generator(1, CPU))  # the model's own stream begins at seed + 1
    mu, log_var = model.encoder(x.float()).chunk(2, -1)
    logits = model.decoder(mu + (log_var / 2).exp() * noise)
    recon = -torch.distributions.Bernoulli(logits=logits).log_prob(x.float()).flatten(1).sum(1)
    kl = kl_divergence(Normal(mu, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(1)
    wanted = torch.autograd.grad((recon + kl).mean(), [*model.encoder.parameters(), *model.decoder.parameters()])
    torch.testing.assert_close(gradient(model, x), torch.cat([part.flatten() for part in wanted]))


def test_beta_weighs_the_kl_in_training_alone():
    x = images(32)
    with_beta, without = build(beta=4.0), build()
    bounds = [model.score(x, generator(0, CPU))["nll_bound_nats"] for model in (with_beta, without)]
    assert torch.equal(*bounds)
    for _ in range(300):
        with_beta.update(x), without.update(x)
    kl = [model.score(x, generator(0, CPU))["kl_prior_nats"].mean().item() for model in (with_beta, without)]
    assert kl[0] < 0.7 * kl[1]


def test_free_nats_are_of_an_image_not_of_a_dimension():
    """Between a KL of every image and the sum over its dimensions lies the threshold that decides."""
    x = images(16)
    for free, felt in (0.0, True), (1e-3, True), (100.0, False):
        model = build(free_nats=free)
        kl = gaussian_kl(*model.encode(x)).detach()
        assert ((kl > 0.01) & (kl < 50)).all()
        unfettered, ignored = gradient(build(), x), gradient(build(beta=0.0), x)
        assert torch.equal(gradient(model, x), unfettered if felt else ignored)
    assert model.update(x)["vae/kl_nats"] == pytest.approx(kl.mean().item())  # as it is, not clamped
    split = kl.median()
    loss = build(free_nats=split.item()).elbo_loss(x, None)[0] - build(beta=0.0).elbo_loss(x, None)[0]
    torch.testing.assert_close(loss.detach(), kl.maximum(split), rtol=1e-3, atol=1e-3)


def test_the_weight_of_the_kl_rises_from_nothing():
    model, x = build(warm_up=4), images(16)
    for weight in 0.0, 0.25, 0.5, 0.75, 1.0, 1.0:
        same = build(beta=weight)
        for part in "encoder", "decoder":
            getattr(same, part).load_state_dict(getattr(model, part).state_dict())
        same.rng.set_state(model.rng.get_state())
        torch.testing.assert_close(gradient(model, x), gradient(same, x))
        model.update(x)
    assert "updates" in model.saved and "updates" not in build().saved


def test_importance_weighted_training_descends_the_bound():
    """One draw is the ELBO but for its KL being drawn too; many are the bound of as many weights."""
    model, x = build(importance_samples=6), images(16)
    rng = model.rng.get_state()
    bound = importance_weighted_nll(model.log_importance_weights(x, 6, model.rng))
    model.rng.set_state(rng)
    torch.testing.assert_close(model.iwae_loss(x, None)[0].detach(), bound)
    model.rng.set_state(rng)
    metrics = model.update(x)
    assert set(metrics) == {"vae/iwae6_nats", "vae/kl_nats", "vae/grad_norm"}
    assert metrics["vae/iwae6_nats"].item() == pytest.approx(bound.mean().item(), rel=1e-5)


@pytest.mark.parametrize("nets", [MLP, CONV, RESIDUAL], ids=["mlp", "conv", "residual"])
def test_learns_to_reconstruct(nets):
    model, x = build(lr=5e-3, **nets), images(8)
    for _ in range(250):
        model.update(x)
    assert ((model.reconstruct(x) - x).abs() < 0.5).float().mean() > 0.97
    assert model.reconstruct(x).shape == x.shape
    assert torch.equal(model.decode(model.code(x)), model.reconstruct(x)) and model.code(x).shape == (8, 8)


@pytest.mark.parametrize(
    "likelihood",
    [Categorical, DiscretisedLogistic, *(partial(gaussian, spread=s) for s in ("shared", "pixel", "optimal"))],
    ids=["categorical", "discretised_logistic", "shared", "pixel", "optimal"],
)
def test_grey_digits_are_learned(likelihood):
    """A uniform distribution over 17 levels costs 4.09 bits a dimension, and the mean image errs by 1."""
    data = digits(protocol="levels")
    model, x = build(data.spec, likelihood=likelihood, lr=1e-2), data.train[:48]
    for _ in range(150):
        model.update(x)
    assert 1.4 < model.score(x, generator(0, CPU))["bits_per_dim_bound"].mean() < 3.95
    samples, pixels = model.sample(50, generator(0, CPU)), data.spec.scaled(x)
    assert samples.dtype == torch.uint8 and samples.min() == 0 and samples.max() == 16
    assert (model.reconstruct(x) - pixels).square().mean() < 0.8 * (pixels.mean(0) - pixels).square().mean()


def test_cross_entropy_of_grey_pixels_is_never_called_a_likelihood():
    data = digits(protocol="levels")
    model = build(data.spec, likelihood=CrossEntropy)
    metrics = evaluate(model, data, 0, iwae_samples=5)
    assert {name.split("[")[0] for name in metrics} == {
        "eval/recon_bce", "eval/recon_bce_se", "eval/kl_prior_nats", "eval/kl_prior_nats_se", "eval/active_units"
    }  # fmt: skip
    assert set(model.update(data.train[:8])) == {"vae/recon_bce", "vae/kl_nats", "vae/grad_norm"}


# -- on the labels


def test_labels_reach_encoder_and_decoder():
    model, x = build(GREY, likelihood=Categorical, conditional=True), images(6, GREY)
    zeros, threes = torch.zeros(6).long(), torch.full((6,), 3)
    assert model.spec.classes == 10 and build(GREY, likelihood=Categorical).spec.classes == 0
    assert not torch.equal(model.code(x, zeros), model.code(x, threes))
    z = model.code(x, zeros)
    assert not torch.equal(model.decode(z, zeros), model.decode(z, threes))
    mixed = model.decode(z, torch.tensor([0, 3] * 3))
    torch.testing.assert_close(mixed[::2], model.decode(z, zeros)[::2])
    torch.testing.assert_close(mixed[1::2], model.decode(z, threes)[1::2])
    in_turn = model.sample(20, generator(0, CPU))
    assert torch.equal(in_turn, model.sample(20, generator(0, CPU), torch.arange(20) % 10))
    assert not torch.equal(in_turn, model.sample(20, generator(0, CPU), torch.full((20,), 3)))


@pytest.mark.parametrize("k", [1, 3])
def test_told_the_label_a_model_knows_what_the_label_tells(k):
    """Pixels are the label, and there is one latent, which they hardly need."""
    label = torch.arange(64) % 4
    x = ((label[:, None] >> torch.arange(2)) & 1).repeat(1, 2).view(-1, 1, 2, 2)
    model = build(Spec((1, 2, 2), 2, 4), conditional=True, latents=1, lr=1e-2, importance_samples=k)
    for _ in range(200):
        model.update(x, label)
    score = model.score(x, generator(0, CPU), 10, label)
    assert score["nll_bound_nats"].mean() < 0.3 < math.log(4)
    wrong = model.score(x, generator(0, CPU), 10, (label + 1) % 4)
    assert wrong["iwae10_nats"].mean() > 3
    assert (model.sample(64, generator(0, CPU), label) == x).float().mean() > 0.9


def test_a_condition_wants_labels():
    with pytest.raises(UserError, match="conditional must be false: the images have no labels"):
        build(BINARY, conditional=True)
    with pytest.raises(UserError, match="needs a label for each image"):
        build(GREY, likelihood=Categorical, conditional=True).update(images(4, GREY))


# -- networks


def parameters(model: VAE) -> int:
    return sum(p.numel() for net in (model.encoder, model.decoder) for p in net.parameters())


def test_parameters_are_those_of_the_papers():
    frames = Spec((3, 64, 64), 256)
    squared = partial(gaussian, spread="fixed", sigma=math.sqrt(0.5), squashed=True)
    world_models = build(frames, latents=32, likelihood=squared, **WORLD_MODELS)
    assert parameters(world_models) == 4_348_547
    assert world_models.reconstruct(images(2, frames)).shape == (2, 3, 64, 64)
    mnist = Spec((1, 28, 28), 2)
    example = {"encoder": partial(mlp_encoder, hidden=400), "decoder": partial(mlp_decoder, hidden=400)}
    assert parameters(build(mnist, latents=20, **example)) == 652_824
    deep = {"hidden": 200, "layers": 2, "activation": "tanh"}
    iwae = build(mnist, latents=50, encoder=partial(mlp_encoder, **deep), decoder=partial(mlp_decoder, **deep))
    assert parameters(iwae) == (784 * 200 + 200) + 2 * (200 * 200 + 200) + (200 * 100 + 100) + (50 * 200 + 200) + (
        200 * 784 + 784
    )
    assert sum(isinstance(part, nn.Tanh) for part in [*iwae.encoder, *iwae.decoder]) == 4


def test_gated_layers_are_a_layer_times_the_sigmoid_of_another():
    encoder = mlp_encoder((1, 2, 2), 3, hidden=2, layers=2, activation="gated")
    first, second, last = (part for part in encoder if isinstance(part, nn.Linear))
    assert [part.weight.shape for part in (first, second, last)] == [(4, 4), (4, 2), (3, 2)]
    x = torch.randn(5, 1, 2, 2)
    hidden = x.flatten(1)
    for layer in first, second:
        y = layer(hidden)
        hidden = y[:, :2] * torch.sigmoid(y[:, 2:])
    torch.testing.assert_close(encoder(x), last(hidden))
    assert mlp_decoder((1, 2, 2), 3, hidden=2, activation="gated")(torch.randn(5, 3)).shape == (5, 1, 2, 2)


def test_gated_convolutions_are_maps_times_the_sigmoid_of_others():
    encoder = conv_encoder((1, 4, 4), 3, channels=2, hidden=5, activation="gated")
    first, second, dense, last = (part for part in encoder if hasattr(part, "weight"))
    x = torch.randn(6, 1, 4, 4)
    maps = x
    for layer in first, second:
        y = layer(maps)
        maps = y[:, : len(y[0]) // 2] * torch.sigmoid(y[:, len(y[0]) // 2 :])
    y = dense(maps.flatten(1))
    torch.testing.assert_close(encoder(x), last(y[:, :5] * torch.sigmoid(y[:, 5:])))
    decoder = conv_decoder((1, 4, 4), 3, channels=2, hidden=5, activation="gated")
    dense, small, middle, last = (part for part in decoder if hasattr(part, "weight"))
    z = torch.randn(6, 3)
    y = dense(z)
    y = small(y[:, :5] * torch.sigmoid(y[:, 5:])).unflatten(1, (8, 1, 1))
    y = middle(y[:, :4] * torch.sigmoid(y[:, 4:]))
    torch.testing.assert_close(decoder(z), last(y[:, :2] * torch.sigmoid(y[:, 2:])))


def test_world_models_loss_is_the_squared_error_but_for_a_constant():
    spec = Spec((1, 4, 4), 256)
    squared = partial(gaussian, spread="fixed", sigma=math.sqrt(0.5), squashed=True)(spec)
    x, constant = images(2_000, spec)[:1], 16 * (math.log(255) + 0.5 * math.log(math.pi))
    for scale in 0.0, 2.0:
        params = scale * torch.randn(1, 4, 4, generator=generator(0, CPU)).expand(4_000, 1, 1, 4, 4)
        nll = squared.nll(params, x, generator(1, CPU)).mean() - constant
        assert nll.item() == pytest.approx((params[0].sigmoid() - spec.scaled(x)).square().sum().item(), rel=2e-3)


@pytest.mark.parametrize("shape", [(1, 7, 10), (3, 5, 1), (1, 42, 42)])
def test_residual_networks_take_any_size(shape):
    model = build(Spec(shape, 4, 0), likelihood=Categorical, **RESIDUAL)
    x = images(3, Spec(shape, 4))
    assert model.reconstruct(x).shape == x.shape and model.encode(x)[1].shape == (3, 8)
    assert torch.isfinite(model.update(x)["vae/recon_nats"])


def test_residual_blocks_begin_as_the_identity():
    encoder = residual_encoder((1, 8, 8), 4, channels=4, blocks=3, halvings=1)
    x, blocks = torch.randn(2, 8, 4, 4), [part for part in encoder if type(part).__name__ == "Residual"]
    assert len(blocks) == 3 and torch.equal(blocks[0](x), x)


@pytest.mark.parametrize(("nets", "shape", "says"), [
    (CONV, (1, 8, 10), "8 x 10.*vae_residual"), (WORLD_MODELS, (3, 84, 84), "64 x 64, not 84 x 84.*data.size=64")
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(nets, shape, says):
    with pytest.raises(UserError, match=says):
        build(Spec(shape, 2), **nets)


# -- promises


def test_samples_are_binary_and_follow_the_generator():
    model = build()
    x = model.sample(4_000, generator(0, CPU))
    assert x.shape == (4_000, 1, 8, 8) and ((x == 0) | (x == 1)).all()
    assert torch.equal(x, model.sample(4_000, generator(0, CPU)))
    assert not torch.equal(x, model.sample(4_000, generator(1, CPU)))
    with torch.no_grad():
        mean = model.decoder(torch.randn(20_000, 8, generator=generator(2, CPU))).sigmoid().mean(0)
    assert ((x.float().mean(0) - mean).abs() < 0.04).all()


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
    with pytest.raises(UserError, match=r"17 grey levels.*no likelihood.*protocol=binarised of digits, threshold or"):
        build(digits(protocol="levels").spec)


@pytest.mark.parametrize("knobs", [{"beta": 2.0}, {"free_nats": 1.0}, {"warm_up": 10}])
def test_a_bound_without_a_kl_has_none_to_weigh(knobs):
    with pytest.raises(UserError, match="importance_samples=5 is a bound without a KL"):
        build(importance_samples=5, **knobs)


def test_importance_weights_want_a_likelihood():
    with pytest.raises(UserError, match="importance_samples=5 needs a likelihood, which recon_bce is not"):
        build(GREY, likelihood=CrossEntropy, importance_samples=5)


@pytest.mark.parametrize("name", ["mlp_encoder", "mlp_decoder", "conv_encoder", "conv_decoder"])
def test_older_run_folders_find_their_networks(name):
    now = PARTS.moved[f"gen_lab.models.vae.{name}"]
    assert calls.locate(now) is getattr(coders, name) and now in PARTS.allowed


def test_what_older_run_folders_leave_out_is_required_now():
    for target, settings in YOUNGER.items():
        parameters = inspect.signature(calls.locate(target)).parameters
        assert all(parameters[name].default is inspect.Parameter.empty for name in settings), target


def test_the_first_vae_s_settings_still_make_it():
    nets = {f"{part}coder": {"_target_": f"gen_lab.networks.coders.mlp_{part}coder", "_partial_": True, "hidden": 32}
            for part in ("en", "de")}  # fmt: skip
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 2e-3}
    settings = {"_target_": "gen_lab.models.vae.VAE", "_partial_": True, **nets, "optimizer": adam, "latents": 8}
    first, now = hydra.utils.instantiate(settings | YOUNGER["gen_lab.models.vae.VAE"])(BINARY, CPU, 0), build()
    for _ in range(3):
        first.update(images(16)), now.update(images(16))
    assert equal(first.state_dict(), now.state_dict())


class Stopping(StopsAt, VAE):
    """Stopped in its update number `at`."""


@pytest.mark.parametrize(
    "knobs",
    [
        {"likelihood": gaussian, "warm_up": 40, "free_nats": 2.0, "conditional": True},
        {"likelihood": partial(gaussian, spread="shared"), "importance_samples": 4},
    ],
    ids=["optimal", "iwae"],
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, knobs):
    data = digits(protocol="levels")
    adam = partial(torch.optim.Adam, lr=2e-3, fused=True)
    usual = {**MLP, **PLAIN, "latents": 4, "optimizer": adam, **knobs}

    def fitted(name: str, model=VAE, **more) -> dict:
        with Run(tmp_path / name, 0, "cpu", names={"name": "test"}, config={}) as run:
            return fit(data, partial(model, **usual, **more), run, batch_size=64, total_steps=60, eval_every=25,
                       iwae_samples=3, pictured=0).state_dict()  # fmt: skip

    whole = fitted("whole")
    with pytest.raises(Stopped):
        fitted("stopped", Stopping, at=33)
    resumed = fitted("stopped")
    assert {"likelihood"} <= set(whole) == set(resumed)
    flat, other = (torch.utils._pytree.tree_flatten(state)[0] for state in (whole, resumed))
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(flat, other, strict=True))


def test_in_bfloat16_it_learns_the_same_and_scores_in_float32():
    x, plain, quick = images(32), build(), build(bf16=True)
    assert torch.equal(
        plain.score(x, generator(0, CPU))["kl_prior_nats"], quick.score(x, generator(0, CPU))["kl_prior_nats"]
    )
    exact, rough = gradient(plain, x), gradient(quick, x)
    assert 0 < (exact - rough).norm() < 0.02 * exact.norm()
    assert quick.encode(x)[0].dtype == torch.float32
