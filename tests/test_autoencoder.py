"""Autoencoders: what they learn, what they are not, and the Gaussian that they sample by."""

from functools import partial

import pytest
import torch
from stated import stated
from stopping import StopsAt

from gen_lab.judging.evaluation import evaluate
from gen_lab.models.autoencoder import Autoencoder, Moments
from gen_lab.networks.coders import mlp_decoder, mlp_encoder
from gen_lab.types import Spec
from rl_lab.core.randomness import generator
from rl_lab.core.run import Run, Stopped

digits = stated("data/digits")
fit = stated("loop/fit", iwae_samples=0)

CPU = torch.device("cpu")
GREY = Spec((1, 8, 8), 17, 10)
NETS = {"encoder": partial(mlp_encoder, hidden=32), "decoder": partial(mlp_decoder, hidden=32)}
PLAIN = {"loss": "squared_error", "noise": 0.0, "masked": 0.0}


def build(spec: Spec = GREY, seed: int = 0, *, lr: float = 5e-3, **knobs) -> Autoencoder:
    usual = {**NETS, **PLAIN, "latents": 6, "optimizer": partial(torch.optim.Adam, lr=lr)}
    return Autoencoder(spec, CPU, seed, **usual | knobs)


@pytest.fixture(scope="module")
def data():
    return digits(protocol="levels")


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_learns_to_reconstruct(data, loss):
    model, x = build(loss=loss), data.train[:32]
    for _ in range(200):
        model.update(x)
    pixels = data.spec.scaled(x)
    assert (model.reconstruct(x) - pixels).square().mean() < 0.25 * (pixels.mean(0) - pixels).square().mean()
    z = model.code(x)
    assert z.shape == (32, 6) and torch.equal(model.decode(z), model.reconstruct(x))
    wild = model.decode(100 * z)
    assert wild.min() >= 0 and wild.max() <= 1


def test_errors_are_sums_over_an_image():
    model, x = build(Spec((1, 2, 2), 3)), torch.tensor([[[[0.0, 0.5], [1.0, 1.0]]]])
    out = torch.tensor([[[[0.5, 0.5], [0.0, 2.0]]]])
    assert {k: e.tolist() for k, e in model.errors(out, x).items()} == {"squared_error": [0.25 + 1 + 1]}
    errors = build(Spec((1, 2, 2), 3), loss="cross_entropy").errors(torch.zeros(1, 1, 2, 2), x)
    assert errors["squared_error"].item() == pytest.approx(0.75)
    assert errors["recon_bce"].item() == pytest.approx(4 * 0.6931472)


@pytest.mark.parametrize("knobs", [{}, {"loss": "cross_entropy"}, {"loss": "cross_entropy", "masked": 0.5}])
def test_no_score_bears_the_name_of_a_likelihood(data, knobs):
    names = {name.split("/")[1].split("[")[0] for name in evaluate(build(**knobs), data, 0, iwae_samples=5)}
    assert "squared_error" in names and ("recon_bce" in names) == bool(knobs)
    assert ("denoised_recon_bce" in names) == ("masked" in knobs)
    assert not [name for name in names if "nll" in name or "nats" in name or "bits" in name]


# -- denoising


def test_spoilt_as_set():
    x = torch.full((200, 1, 8, 8), 0.5)
    assert build().spoilt(x, generator(0, CPU)) is x
    masked = build(masked=0.3).spoilt(x, generator(0, CPU))
    assert set(masked.unique().tolist()) == {0.0, 0.5}
    assert (masked == 0).float().mean().item() == pytest.approx(0.3, abs=0.015)
    noisy = build(noise=0.2).spoilt(x, generator(0, CPU)) - x
    assert noisy.std().item() == pytest.approx(0.2, rel=0.02) and abs(noisy.mean()) < 0.01
    assert (x == 0.5).all()


def test_a_denoising_one_fills_in_what_it_cannot_see():
    """Both pixels of a pair are equal: the hidden one is known by the other, if the net was taught to look there."""
    x = torch.bernoulli(torch.full((256, 1, 1, 4), 0.5), generator=generator(0, CPU)).byte().repeat(1, 1, 2, 1)
    spec, errors = Spec((1, 2, 4), 2), {}
    for masked in 0.0, 0.25:
        model = build(spec, masked=masked, latents=8)
        for _ in range(250):
            model.update(x)
        hidden = x.clone()
        hidden[:, :, 0] = 0
        errors[masked] = (model.reconstruct(hidden)[:, :, 0] - x[:, :, 0]).square().mean().item()
    assert errors[0.25] < 0.5 * errors[0.0]


def test_the_target_is_the_clean_image():
    model, x = build(noise=0.5), torch.randint(17, (16, 1, 8, 8), generator=generator(0, CPU))
    pixels = x / 16
    rng = model.rng.get_state()
    out = model.decoder(model.encoder(model.spoilt(pixels, model.rng)))
    model.rng.set_state(rng)
    wanted = (out - pixels).square().flatten(1).sum(1).mean().item()
    assert model.update(x)["autoencoder/squared_error"].item() == pytest.approx(wanted, rel=1e-5)
    scores = model.score(x, generator(3, CPU))
    assert scores["denoised_squared_error"].mean() > scores["squared_error"].mean()


# -- sampling


def test_moments_follow_the_codes_and_draws_follow_the_moments():
    mix = torch.tensor([[2.0, 0.0, 0.0], [-1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])  # the last one never moves
    mean, moments = torch.tensor([3.0, -1.0, 0.5]), Moments(3)
    for seed in range(1_500):
        moments.follow(torch.randn(64, 3, generator=generator(seed, CPU)) @ mix.T + mean)
    z = moments.draw(100_000, generator(0, CPU))
    torch.testing.assert_close(z.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(z.T.cov(), mix @ mix.T, atol=0.25, rtol=0)
    assert z[:, 2].std() < 0.01


def test_samples_are_of_the_data_s_levels_and_follow_the_generator(data):
    model, x = build(), data.train[:256]
    for _ in range(200):
        model.update(x)
    samples = model.sample(400, generator(0, CPU))
    assert samples.shape == (400, 1, 8, 8) and samples.dtype == torch.uint8 and samples.max() <= 16
    assert torch.equal(samples, model.sample(400, generator(0, CPU)))
    assert not torch.equal(samples, model.sample(400, generator(1, CPU)))
    mean, true = samples.float().mean(0), x.float().mean(0)
    assert (mean - true).square().mean() < 0.15 * true.var()  # on average they look like digits on average


def test_looking_at_a_model_does_not_disturb_its_training(data):
    looked_at, left_alone, x = (*(build(masked=0.3) for _ in range(2)), data.train[:16])
    for _ in range(3):
        looked_at.update(x), left_alone.update(x)
        looked_at.score(x, generator(0, CPU)), looked_at.sample(3, generator(0, CPU)), looked_at.reconstruct(x)
    for a, b in zip(looked_at.decoder.parameters(), left_alone.decoder.parameters(), strict=True):
        assert torch.equal(a, b)
    assert looked_at.spec.classes == 0


class Stopping(StopsAt, Autoencoder):
    """Stopped in its update number `at`."""


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, data):
    spoilt = PLAIN | {"masked": 0.3, "noise": 0.1}
    usual = {**NETS, **spoilt, "latents": 4, "optimizer": partial(torch.optim.Adam, lr=2e-3)}

    def fitted(name: str, model=Autoencoder, **more) -> dict:
        with Run(tmp_path / name, 0, "cpu", names={"name": "test"}, config={}) as run:
            return fit(data, partial(model, **usual, **more), run, batch_size=64, total_steps=60, eval_every=25,
                       pictured=4).state_dict()  # fmt: skip

    whole = fitted("whole")
    with pytest.raises(Stopped):
        fitted("stopped", Stopping, at=33)
    resumed = fitted("stopped")
    flat, other = (torch.utils._pytree.tree_flatten(state)[0] for state in (whole, resumed))
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(flat, other, strict=True))
    for picture in (tmp_path / "whole/pictures").iterdir():
        assert picture.read_bytes() == (tmp_path / "stopped/pictures" / picture.name).read_bytes()
    assert len(list((tmp_path / "whole/pictures").glob("reconstructions_*"))) == 4
