"""GANs: their networks to the paper's guidelines, their steps against PyTorch's example, and what they promise."""

import copy
import math
from functools import partial

import hydra
import pytest
import torch
from stated import stated
from stopping import equal
from torch import nn

from gen_lab.data import Batches
from gen_lab.data.gaussians import Ring, modes_covered
from gen_lab.models.gan.learner import GAN
from gen_lab.models.gan.networks import dcgan_generator, mlp_generator
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.launching import composition
from rl_lab.core.run import Run

dcgan_discriminator = stated("model/dcgan", "discriminator")
mlp_discriminator = stated("model/gan_mlp", "discriminator")
digits = stated("data/digits")
fit = stated("loop/fit", iwae_samples=0)
gaussian_ring = stated("data/gaussian_ring")

CPU = torch.device("cpu")
GREY = Spec((1, 8, 8), 17, 10)
CONV = {"generator": partial(dcgan_generator, channels=8), "discriminator": partial(dcgan_discriminator, channels=8)}
MLP = {
    "generator": partial(mlp_generator, hidden=16, layers=2),
    "discriminator": partial(mlp_discriminator, hidden=16, layers=2),
}


def build(spec: Spec = GREY, seed: int = 0, *, lr: float = 2e-4, **knobs) -> GAN:
    adam = partial(torch.optim.Adam, lr=lr, betas=(0.5, 0.999))
    usual = {**CONV, "latents": 6, "generator_optimizer": adam, "discriminator_optimizer": adam}
    return stated("model/dcgan", **usual | knobs)(spec, CPU, seed)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, spec: Spec = GREY, seed: int = 1) -> torch.Tensor:
    return torch.randint(spec.levels, (count, *spec.shape), generator=rng(seed)).to(spec.dtype)


def labels(count: int, spec: Spec = GREY) -> torch.Tensor:
    return torch.arange(count) % spec.classes


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# -- the networks


@pytest.mark.parametrize(("channels", "counts"), [(3, (3_576_704, 2_765_568)), (1, (3_574_656, 2_763_520))])
def test_parameters_of_pytorchs_example(channels, counts):
    spec = Spec((channels, 64, 64), 256)
    nets = dcgan_generator(spec, 100, channels=64), dcgan_discriminator(spec, channels=64)
    assert tuple(sum(p.numel() for p in net.parameters()) for net in nets) == counts


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("colours", [1, 3])
def test_guidelines(size, colours):
    """Strided convolutions alone, no pooling; batch norm but for D's first layer and G's last; weights of 0.02."""
    spec = Spec((colours, size, size), 256)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        g, d = dcgan_generator(spec, 100, channels=16), dcgan_discriminator(spec, channels=16)
    x = g(torch.randn(3, 100, generator=rng()))
    assert x.shape == (3, *spec.shape) and x.abs().max() <= 1 and d(x).shape == (3,)
    up, down = ([m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)] for net in (g, d))
    assert all(m.stride == (2, 2) and m.kernel_size == (4, 4) for m in (*up, *down)) and len(up) == len(down) >= 2
    first, *rest = (type(m) for m in d.body)
    assert (first, rest[0], rest[1:4]) == (nn.Conv2d, nn.LeakyReLU, [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU])
    assert [type(m) for m in g.body][-3:] == [nn.ReLU, nn.ConvTranspose2d, nn.Tanh]
    assert [type(m) for m in g.body][:4] == [nn.Linear, nn.Unflatten, nn.BatchNorm2d, nn.ReLU]
    assert all(m.negative_slope == 0.2 for m in d.body if isinstance(m, nn.LeakyReLU))
    for m in (*up[:-1], *down[1:]):
        assert m.weight.std().item() == pytest.approx(0.02, rel=0.05) and abs(m.weight.mean().item()) < 1e-3
    scales = torch.cat([m.weight for net in (g, d) for m in net.modules() if isinstance(m, nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1, abs=0.01) and 0.01 < scales.std() < 0.03


@pytest.mark.parametrize("shape", [(1, 42, 42), (1, 30, 30), (3, 64, 62), (1, 7, 7), (1, 84, 84)])
def test_other_sizes_are_one_line(shape):
    with pytest.raises(
        UserError, match=rf"{shape[1]} x {shape[2]} cannot be halved that often; use 8, 16, 28, 32 or 64 pixels"
    ):
        build(Spec(shape, 256))


def test_spectral_normalisation_holds_all_singular_values_at_1():
    model = build(discriminator=partial(dcgan_discriminator, channels=8, norm="none", spectral=True),
                  loss="hinge", conditional=True)  # fmt: skip
    for _ in range(30):
        model.update(images(16), labels(16))
    layers = [m for m in model.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) == 4 and not any(isinstance(m, nn.BatchNorm2d) for m in model.discriminator.modules())
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
        raw = torch.linalg.matrix_norm(layer.parametrizations.weight.original.detach().flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=0.15) and raw < 0.5


# -- its steps


def example_nets(model: GAN, maps: int, latents: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The layers of PyTorch's example at 16 x 16, all of them convolutions, with the model's weights."""
    g = nn.Sequential(
        nn.ConvTranspose2d(latents, 2 * maps, 4, 1, 0, bias=False), nn.BatchNorm2d(2 * maps), nn.ReLU(),
        nn.ConvTranspose2d(2 * maps, maps, 4, 2, 1, bias=False), nn.BatchNorm2d(maps), nn.ReLU(),
        nn.ConvTranspose2d(maps, 1, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    d = nn.Sequential(
        nn.Conv2d(1, maps, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
        nn.Conv2d(maps, 2 * maps, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * maps), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * maps, 1, 4, 1, 0, bias=False), nn.Sigmoid(),
    )  # fmt: skip
    for net, ours in (g, model.generator), (d, model.discriminator):
        for mine, its in zip(net.parameters(), ours.parameters(), strict=True):
            turned = its.T if mine.dim() == 4 and its.dim() == 2 and net is g else its
            mine.data.copy_(turned.detach().reshape(mine.shape))
    return g, d


def test_updates_are_those_of_pytorchs_example(float64):
    """Binary cross entropy of a sigmoid; real, then fake, then a step of D; then G through the new D."""
    spec, bce = Spec((1, 16, 16), 256), nn.BCELoss()
    model = build(spec, lr=1e-3)
    g, d = example_nets(model, 8, 6)
    adam_g, adam_d = (torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in (g, d))
    stream, ones, zeros = rng(1), torch.ones(12), torch.zeros(12)
    for i in range(3):
        x = images(12, spec, seed=i)
        metrics = model.update(x)
        adam_d.zero_grad()
        error_real = bce(d(2 * (x / 255) - 1).flatten(), ones)
        fake = g(torch.randn(12, 6, generator=stream)[..., None, None])
        error_fake = bce(d(fake.detach()).flatten(), zeros)
        (error_real + error_fake).backward()
        adam_d.step()
        adam_g.zero_grad()
        error_g = bce(d(fake).flatten(), ones)
        error_g.backward()
        adam_g.step()
        assert metrics["gan/discriminator_loss"].item() == pytest.approx((error_real + error_fake).item(), abs=1e-9)
        assert metrics["gan/generator_loss"].item() == pytest.approx(error_g.item(), abs=1e-9)
    for net, ours in (g, model.generator), (d, model.discriminator):
        for mine, its in zip(net.parameters(), ours.parameters(), strict=True):
            turned = its.T if mine.dim() == 4 and its.dim() == 2 and net is g else its
            assert (mine - turned.reshape(mine.shape)).abs().max() < 1e-6
        for mine, its in zip(net.buffers(), ours.buffers(), strict=True):
            assert torch.allclose(mine, its, atol=1e-9)


class Constant(nn.Module):
    """A discriminator that says the same of every image, and keeps those it was shown."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.said, self.shown = nn.Parameter(torch.tensor(1.0)), []

    def forward(self, x, label=None):
        self.shown.append(x.detach())
        return self.said.expand(len(x)) + 0 * x.flatten(1).sum(1)


def test_label_smoothing_is_of_real_images():
    metrics = build(discriminator=Constant, label_smoothing=0.1).update(images(16))
    expected = 0.9 * 0.3132617 + 0.1 * 1.3132617 + 1.3132617  # ln(1 + e^-1), ln(1 + e)
    assert metrics["gan/discriminator_loss"].item() == pytest.approx(expected, abs=1e-6)
    assert metrics["gan/logit_real"] == metrics["gan/logit_fake"] == 1


def test_noise_is_on_all_that_the_discriminator_sees_and_falls_to_none():
    model = build(discriminator=Constant, noise=0.8, noise_updates=4)
    x, residues = torch.full((400, 1, 8, 8), 16), []
    for _ in range(6):
        model.update(x)
        real, fake, again = model.discriminator.shown[-3:]
        residues.append((real - 1).std().item())
        assert (fake - again).std().item() == pytest.approx(math.sqrt(2) * residues[-1], rel=0.05, abs=1e-9)
    assert residues == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0], rel=0.02, abs=1e-9)
    forever = build(discriminator=Constant, noise=0.8)
    for _ in range(3):
        forever.update(x)
    assert (forever.discriminator.shown[-3] - 1).std().item() == pytest.approx(0.8, rel=0.02)


def test_the_critic_steps_more_often():
    model = build(critic_steps=3)
    for i in range(1, 7):
        before = weights(model.generator), weights(model.discriminator)
        metrics = model.update(images(16))
        moved = not torch.equal(weights(model.generator), before[0])
        assert moved == ("gan/generator_loss" in metrics) == (i % 3 == 0)
        assert not torch.equal(weights(model.discriminator), before[1])
        if i < 3:
            assert all(p.grad is None for p in model.generator.parameters())


def test_the_discriminator_is_frozen_in_the_generators_step_and_restored():
    model = build()
    model.update(images(16))
    on_real, on_fake = (model.logit(x, None) for x in (GREY.centred(images(16)), torch.zeros(16, 1, 8, 8)))
    assert all(p.requires_grad for p in model.discriminator.parameters()) and (on_real + on_fake).requires_grad
    before = [p.grad.clone() for p in model.discriminator.parameters()]
    model.generator_step(model.generator(model.latent(16, rng())), None)
    assert all(map(torch.equal, before, (p.grad for p in model.discriminator.parameters())))
    assert all(p.requires_grad for p in model.discriminator.parameters())


def test_metrics():
    layered = partial(dcgan_discriminator, channels=8, norm="layer")
    metrics = build(loss="wasserstein", penalty=10.0, discriminator=layered).update(images(16))
    assert all(x.dim() == 0 and x.isfinite() and not x.requires_grad for x in metrics.values())
    names = (
        "discriminator_loss logit_real logit_fake penalty discriminator_grad_norm generator_loss generator_grad_norm"
    )
    assert list(metrics) == [f"gan/{name}" for name in names.split()]
    difference = metrics["gan/logit_fake"] - metrics["gan/logit_real"]
    assert metrics["gan/discriminator_loss"].item() == pytest.approx(difference.item(), abs=1e-6)


def test_bf16_is_for_training_alone():
    model = build(bf16=True, average=0.9)
    metrics = model.update(images(16))
    assert all(x.isfinite() and x.dtype == torch.float32 for x in metrics.values())
    assert (
        weights(model.generator).dtype == torch.float32
        and model.averaged(model.latent(2, rng())).dtype == torch.float32
    )


# -- the average


def test_the_average_follows_weights_and_copies_statistics():
    """After n steps its decay is (1 + n) / (10 + n): 2/11, 3/12, ... until 0.5."""
    model, start = build(average=0.5, lr=1e-2), weights(build().generator)
    for n in range(1, 12):
        model.update(images(16, seed=n))
        decay = min(0.5, (1 + n) / (10 + n))
        start = decay * start + (1 - decay) * weights(model.generator)
        assert torch.allclose(weights(model.averaged), start, atol=1e-6)
    buffers = [*model.generator.buffers()]
    assert all(map(torch.equal, buffers, model.averaged.buffers())) and buffers[0].abs().max() > 0


def test_the_average_samples_and_leaves_training_as_it_is():
    """With model.average=0 the same seed gives the plain generator, to compare with."""
    fine = Spec((1, 8, 8), 256)
    averaged, plain = build(fine, average=0.9, lr=5e-3), build(fine, lr=5e-3)
    for i in range(5):
        for model in averaged, plain:
            model.update(images(16, seed=i))
    assert torch.equal(weights(averaged.generator), weights(plain.generator))
    a, b = (model.sample(8, rng()) for model in (averaged, plain))
    z = plain.latent(8, rng())
    with torch.no_grad():
        shown = [(net.eval()(z) + 1) / 2 for net in (averaged.averaged, plain.generator)]
    assert not torch.equal(a, b)
    for x, exact in zip((a, b), shown, strict=True):
        assert (fine.scaled(x) - exact).abs().max() <= 0.5 / 255 + 1e-6


def test_samples_are_of_the_datas_levels_and_disturb_nothing():
    model, twin = build(lr=2e-2), build(lr=2e-2)
    for i in range(5):
        model.update(images(16, seed=i)), twin.update(images(16, seed=i))
    x = model.sample(5, rng(3))
    assert x.shape == (5, 1, 8, 8) and x.dtype == torch.uint8 and x.max() <= 16
    assert torch.equal(x, model.sample(5, rng(3))) and not torch.equal(x, model.sample(5, rng(4)))
    assert model.score(x, rng()) == {} and model.spec.classes == 0
    assert equal(model.state_dict(), twin.state_dict())


# -- labels


@pytest.mark.parametrize("spectral", [False, True])
def test_labels_are_learned(spectral):
    """Class 0 is black, 1 grey, 2 white: what is asked for is drawn."""
    spec = Spec((1, 1, 2), 3, 3)
    hidden = {"hidden": 32, "layers": 1}
    model = build(spec, conditional=True, lr=4e-3, average=0.9, generator=partial(mlp_generator, **hidden),
                  discriminator=partial(mlp_discriminator, spectral=spectral, **hidden))  # fmt: skip
    label = torch.arange(90) % 3
    for _ in range(300):
        model.update(label.view(-1, 1, 1, 1).expand(-1, 1, 1, 2), label)
    for k in range(3):
        x = model.sample(200, rng(), torch.full((200,), k))
        assert (x == k).float().mean() > 0.8
    assert model.sample(6, rng()).float().flatten(1).mean(1).tolist() == pytest.approx([0, 1, 2] * 2, abs=0.6)


def test_labels_reach_a_dcgan():
    model = build(conditional=True)
    model.update(images(16), labels(16))
    z, x = model.latent(4, rng()), GREY.centred(images(4))
    assert not torch.allclose(model.generator(z, labels(4)), model.generator(z, labels(4) + 1))
    logits = model.discriminator(x, labels(4)) - model.discriminator(x, labels(4) + 1)
    features = model.discriminator.body(x)
    apart = model.discriminator.classes(labels(4)) - model.discriminator.classes(labels(4) + 1)
    assert torch.allclose(logits, (features * apart).sum(1), atol=1e-5)


# -- mistakes


BATCH = "model.penalty=10 needs each image scored alone, and batch norm mixes them"


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"penalty": 10.0}, BATCH),
        ({"penalty": 10.0, "loss": "wasserstein"}, BATCH),
        ({"loss": "wasserstein"}, "model.loss=wasserstein needs .* slopes of at most 1; set model.penalty=10"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "model.label_smoothing=0.1 is for probabilities"),
    ],
)
def test_mistakes(knobs, says):
    with pytest.raises(UserError, match=says) as error:
        build(**knobs)
    assert "\n" not in str(error.value)


def test_labels_that_are_not_there():
    with pytest.raises(UserError, match="the images have no labels"):
        build(Spec((1, 8, 8), 17), conditional=True)
    with pytest.raises(UserError, match="needs a label for each image"):
        build(conditional=True).update(images(4))


# -- going on


KINDS = {
    "dcgan": {"average": 0.9, "noise": 0.3, "noise_updates": 20, "label_smoothing": 0.1},
    "sngan": {"discriminator": partial(dcgan_discriminator, channels=8, norm="none", spectral=True), "loss": "hinge",
              "conditional": True},
    "wgan_gp": {"discriminator": partial(dcgan_discriminator, channels=8, norm="layer"), "loss": "wasserstein",
                "penalty": 10.0, "critic_steps": 5, "average": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_on_bit_for_bit(tmp_path, kind):
    """Stopped amid the critic's steps; through `fit`, the file and a model of another seed."""

    def fitted(name: str, steps: int, seed: int = 0) -> GAN:
        knobs = {"batch_size": 32, "eval_every": 6, "log_every": 4, "pictured": 4}
        with Run(tmp_path / name, seed, "cpu", names={"name": "test"}, config={}) as run:
            built = lambda spec, device, seed: build(spec, seed, lr=2e-3, **KINDS[kind])
            return fit(digits(protocol="levels"), built, run, total_steps=steps, **knobs)

    whole = fitted("whole", 17)
    fitted("stopped", 8)
    assert equal(whole.state_dict(), fitted("stopped", 17).state_dict())
    other = build(seed=5, lr=2e-3, **KINDS[kind])
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    for model in whole, other:
        model.update(images(8), labels(8))
    assert equal(whole.state_dict(), other.state_dict())


# -- the ring


def test_the_ring():
    data, ring = gaussian_ring(train=20_000, test=100), Ring()
    assert data.spec == ((1, 1, 2), 256, 8) and data.name == "gaussian_ring-8-2-0.02" and len(data.test) == 100
    place = ring.places(data.train)
    assert torch.equal(ring.images(place), data.train)
    for k, centre in enumerate([(2, 0), (2**0.5, 2**0.5), (0, 2), (-(2**0.5), 2**0.5), (-2, 0)]):
        mine = place[data.train_labels == k]
        assert torch.allclose(mine.mean(0), torch.tensor(centre).float(), atol=0.003) and len(mine) > 2_200
        assert mine.std(0).tolist() == pytest.approx([(0.02**2 + (4.4 / 255) ** 2 / 12) ** 0.5] * 2, rel=0.06)
    covered = modes_covered(place, ring.centres, ring.near)
    assert data.measure(data.train) == {"modes_covered": 8.0, "near_a_mode": covered.share}
    assert covered.modes == 8 and covered.share.item() == pytest.approx(1 - math.exp(-4.5), abs=0.003)


def test_modes_covered():
    """Of 80 samples: 71 at the first centre, 1 at the second, 7 just too far, 1 at the third; 1 is a tenth of 10."""
    centres, near = Ring().centres, 0.06
    place = centres[[0] * 71 + [1] + [2] * 7 + [2]]
    place[72:79, 0] += 0.061
    covered = modes_covered(place, centres, near)
    assert covered.modes == 3 and covered.share.item() == pytest.approx(73 / 80)
    assert modes_covered(place, centres, near, enough=0.2).modes == 1
    assert modes_covered(place, centres, 0.062, enough=0.2).modes == 2
    assert modes_covered(torch.zeros(10, 2), centres, near) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_ring_is_covered(seed):
    """By the recipe of gan_gaussian_ring: all 8 Gaussians, and few samples between them."""
    recipe = composition.compose(composition.conf_dir(), "gen", ["experiment=gan_gaussian_ring"])
    data, ring = gaussian_ring(), Ring()
    model = hydra.utils.instantiate(recipe.model)(data.spec, device=CPU, seed=seed)
    batches = Batches(data, recipe.loop.batch_size, seed)
    for _ in range(recipe.loop.total_steps):
        model.update(*batches.draw())
    covered = modes_covered(ring.places(model.sample(4_000, rng())), ring.centres, ring.near)
    assert covered.modes == 8 and covered.share > 0.85


def test_one_image_of_one_number_a_map_has_no_batch_statistics():
    model = build(Spec((1, 4, 4), 17))
    with pytest.raises(UserError, match="loop.batch_size must be 2 or more: on images of 4 x 4"):
        model.update(images(1, model.spec))
    assert model.update(images(2, model.spec))["gan/generator_loss"].isfinite()
    assert build().update(images(1), None)["gan/generator_loss"].isfinite()
