"""Three ways to draw that must be one: caches and crops against the whole network, and all against enumeration."""

import math

import pytest
import torch
from test_causal import KNOBS, RECURRENT, build, every_image, logistic_mixture, name, noise

from gen_lab.models.gated_pixelcnn import GatedPixelCNN
from gen_lab.models.pixelcnn import PixelCNN
from gen_lab.networks.causal import sampling
from gen_lab.networks.causal.heads import softmax
from gen_lab.types import Spec

pytestmark = pytest.mark.usefixtures("float64")

CASES = [(network, Spec((1, 7, 9), 2), softmax) for network in KNOBS]  # odd sizes: PixelCNN++ rounds its halves up
CASES += [(network, Spec((1, 4, 5), 5), softmax) for network in KNOBS]
CASES += [(network, Spec((3, 3, 5), 4), softmax) for network in (PixelCNN, GatedPixelCNN)]
CASES += [(network, Spec((1, 4, 3), 3), softmax) for network in RECURRENT]
CASES += [(network, Spec((3, 3, 5), 4), logistic_mixture) for network in KNOBS]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(net, head, count: int, seed: int = 0, **how) -> torch.Tensor:
    *_, x = sampling.draw(net, head, count, rng(seed), **how)
    return x.clone()


def told(cache: sampling.Cache, x: torch.Tensor) -> torch.Tensor:
    """The parameters [B, steps P, H, W] that a cache gives when it is shown images x pixel by pixel."""
    params = []
    for row in x.unbind(2):
        cache.begin_row()
        for column, pixel in enumerate(row.unbind(2)):
            cache.show(column, pixel)
            params.append(cache.ask(column))
        cache.end_row()
    return torch.stack(params, 2).unflatten(2, x.shape[2:])


def conditions(network, spec: Spec, count: int) -> dict:
    """Labels, and where there is a place for it a guide."""
    label = {"label": torch.arange(count) % spec.classes}
    guide = torch.randn(count, 2, *spec.shape[1:], generator=rng(9))
    return label | ({"guide": guide} if network is GatedPixelCNN else {})


def conditional(case, count: int) -> tuple:
    network, spec, head = case
    knobs = {"guide_channels": 2} if network is GatedPixelCNN else {}
    spec = spec._replace(classes=3)
    return *build(network, spec, head, scale=2.0, **knobs), conditions(network, spec, count)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_method_draws_the_same_images(case):
    net, head, condition = conditional(case, 4)
    images = [drawn(net, head, 4, method=m, condition=condition) for m in ("naive", "cropped", "cached")]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    assert images[0].dtype == torch.uint8 and images[0].max() < case[1].levels and images[0].double().std() > 0.1


def test_a_second_call_starts_from_scratch():
    net, head = build(*CASES[0], scale=2.0)
    first = drawn(net, head, 3)
    assert torch.equal(first, drawn(net, head, 3)) and not torch.equal(first, drawn(net, head, 3, seed=1))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_caches_and_crops_say_what_the_network_says(case):
    """Shown a given image pixel by pixel, they give the parameters that one pass over it gives."""
    spec = case[1]
    net, head, condition = conditional(case, 4)
    x = noise(spec, 4)
    together = net(x, **condition)
    assert together.std() > 1e-3
    for method in "cached", "cropped":
        assert (told(sampling.stepper(net, 4, method, condition), x) - together).abs().max() < 1e-11


def test_float32_caches_are_close_too():
    spec = Spec((1, 28, 28), 2)
    head = softmax(spec)
    torch.manual_seed(0)
    net = GatedPixelCNN(spec, head, channels=8, blocks=3, head_channels=8)
    x = drawn(net, head, 8)
    with torch.no_grad():
        assert (told(net.cache(8), x) - net(x)).abs().max() < 1e-5


def chi_square(x: torch.Tensor, every: torch.Tensor, probability: torch.Tensor) -> float:
    """How many standard deviations the chi-square of images x lies from what it should be."""
    match = (x.flatten(1)[:, None] == every.flatten(1)[None]).all(2)
    assert match.any(1).all()
    expected, seen = probability * len(x), match.sum(0).double()
    likely = expected > 5
    chi2, freedom = ((seen - expected).square() / expected)[likely].sum(), likely.sum() - 1
    return ((chi2 - freedom) / (2 * freedom).sqrt()).item()


TINY = [(network, Spec((1, 2, 3), 2), softmax) for network in KNOBS]
TINY += [(PixelCNN, Spec((3, 1, 1), 3), softmax), (GatedPixelCNN, Spec((1, 2, 2), 3), softmax)]


@pytest.mark.parametrize("case", TINY, ids=name)
def test_samples_have_the_probabilities_that_the_network_gives_them(case):
    net, head = build(*case, scale=3.0)
    every = every_image(case[1])
    log_p = -head.nll(net(every), every)
    x = drawn(net, head, 5_000)
    assert abs(chi_square(x, every, log_p.exp())) < 4
    nll, entropy = head.nll(net(x), x), -(log_p.exp() * log_p).sum()
    assert abs(nll.mean() - entropy) < 4 * nll.std() / len(x) ** 0.5
    assert entropy < math.log(len(every)) - 0.02


@pytest.mark.parametrize("method", ["naive", "cropped", "cached"])
def test_known_pixels_stay_and_the_rest_is_drawn_given_them(method):
    """p(rest | first row known), against enumeration; a known pixel must pass through the caches."""
    net, head = build(*TINY[1], scale=3.0)
    every = every_image(TINY[1][1])
    where = torch.tensor([[True, True, True], [False, False, False]])
    row = torch.tensor([1, 0, 1])
    given = torch.randint(2, (5_000, 1, 2, 3), generator=rng(5))  # what is not known must not matter
    given[:, :, 0] = row
    x = drawn(net, head, 5_000, method=method, known=sampling.Known(given, where))
    assert (x[:, 0, 0] == row).all()
    p = (-head.nll(net(every), every)).exp()
    fits = (every[:, 0, 0] == row).all(1)
    assert abs(chi_square(x, every[fits], p[fits] / p[fits].sum())) < 4


@pytest.mark.parametrize("case", CASES[:3] + CASES[6:7], ids=name)
def test_in_painting_is_the_same_by_every_method(case):
    spec = case[1]
    net, head = build(*case, scale=2.0)
    given = noise(spec, 3)
    where = torch.rand(spec.shape[1:], generator=rng(2)) < 0.5
    images = [drawn(net, head, 3, method=m, known=sampling.Known(given, where)) for m in ("naive", "cropped", "cached")]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    assert torch.equal(images[0][:, :, where], given[:, :, where])
    assert not torch.equal(images[0][:, :, ~where], given[:, :, ~where])


def test_an_image_grows_in_reading_order():
    net, head = build(PixelCNN, Spec((1, 3, 4), 5), softmax)
    frames = [x.clone() for x in sampling.draw(net, head, 2, rng())]
    assert len(frames) == 12
    for t, frame in enumerate(frames, 1):
        assert (
            torch.equal(frame.flatten(2)[..., :t], frames[-1].flatten(2)[..., :t])
            and not frame.flatten(2)[..., t:].any()
        )


def test_drawing_keeps_no_gradients_and_leaves_the_gradient_mode_alone():
    net, head = build(PixelCNN, Spec((1, 3, 4), 5), softmax)
    for x in sampling.draw(net, head, 2, rng()):
        assert not x.requires_grad and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
