"""Causal networks against enumeration, perturbation and parameter counts: what each output may know, and must."""

from itertools import product

import pytest
import torch
from stated import stated

from gen_lab.models.gated_pixelcnn import GatedPixelCNN
from gen_lab.models.pixelcnn import PixelCNN
from gen_lab.models.pixelcnnpp.network import PixelCNNPP
from gen_lab.models.pixelrnn import DiagonalBiLSTM, PixelRNN, RowLSTM, skew, unskew
from gen_lab.networks.causal.convolutions import POINT, above_and_here, left, mask
from gen_lab.networks.causal.heads import LogisticMixture, softmax
from gen_lab.networks.causal.weight_norm import NormedConv, start
from gen_lab.types import Spec
from rl_lab.core.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")

KNOBS = {
    PixelCNN: {"channels": 6, "blocks": 2, "head_channels": 6},
    GatedPixelCNN: {"channels": 4, "blocks": 2, "head_channels": 6},
    PixelCNNPP: {"channels": 4, "blocks": 1, "resolutions": 2, "dropout": 0.5},
}


def logistic_mixture(spec):
    return LogisticMixture(spec, mixtures=10)


def row_lstm(spec, head, **knobs):
    return PixelRNN(spec, head, layer=RowLSTM, **knobs)


def diagonal_bilstm(spec, head, **knobs):
    return PixelRNN(spec, head, layer=DiagonalBiLSTM, **knobs)


RECURRENT = {network: {"channels": 3, "layers": 1, "head_channels": 6} for network in (row_lstm, diagonal_bilstm)}

BINARY = [(network, Spec((1, 3, 4), 2), softmax) for network in KNOBS | RECURRENT]
THREE = [(network, Spec((1, 2, 3), 3), softmax) for network in KNOBS]
COLOUR = [(network, Spec((3, 1, 2), 4), softmax) for network in (PixelCNN, GatedPixelCNN, diagonal_bilstm, row_lstm)]
LOGISTIC = [(network, Spec((3, 1, 2), 4), logistic_mixture) for network in KNOBS]


def build(network, spec: Spec, head, scale: float = 1.0, **knobs):
    """With larger weights than it starts with."""
    head = head(spec)
    torch.manual_seed(0)
    net = network(spec, head, **(KNOBS | RECURRENT)[network] | knobs).eval().requires_grad_(False)
    for p in net.parameters():
        p.mul_(scale)
    return net, head


def every_image(spec: Spec) -> torch.Tensor:
    c, h, w = spec.shape
    return torch.tensor([*product(range(spec.levels), repeat=c * h * w)]).view(-1, c, h, w)


def name(case) -> str:
    network, spec, head = case
    return f"{network.__name__}-{spec.shape[0]}x{spec.levels}-{head.__name__}"


@pytest.mark.parametrize("case", BINARY + THREE + COLOUR + LOGISTIC, ids=name)
def test_probabilities_of_all_images_sum_to_one(case):
    """A first layer with mask B would give 1.011."""
    net, head = build(*case, scale=2.0 if case[0] is PixelCNNPP else 4.0)
    x = every_image(case[1])
    p = (-head.nll(net(x), x)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    assert p.max() > 4 / len(x)


# -- what an output depends on


def changes(net, head, spec: Spec, x: torch.Tensor, **condition) -> torch.Tensor:
    """Whether input j moves output i: [C H W (j), H W steps (i)], both in the order of drawing."""
    c, h, w = x.shape[1:]
    order = torch.arange(c * h * w).view(c, h, w).permute(1, 2, 0).flatten()
    moved = x.repeat(c * h * w, 1, 1, 1).flatten(1)
    moved[torch.arange(c * h * w), order] = other(spec, x.flatten()[order])
    difference = (net(moved.view(-1, c, h, w), **condition) - net(x, **condition)).abs()
    return difference.unflatten(1, (head.steps, -1)).amax(2).permute(0, 2, 3, 1).flatten(1) > 1e-13


def positive(net) -> None:
    """No path is hidden behind a ReLU that is off, and no gate is saturated."""
    for p in net.parameters():
        p.abs_().mul_(0.5)


def noise(spec: Spec, count: int = 1) -> torch.Tensor:
    """Levels [N, C, H, W]."""
    return torch.randint(spec.levels, (count, *spec.shape), generator=torch.Generator().manual_seed(1))


def other(spec: Spec, x: torch.Tensor) -> torch.Tensor:
    """Another level for each."""
    return (x + 1) % spec.levels


SEEN = [(PixelCNN, Spec((1, 4, 4), 2), softmax), (GatedPixelCNN, Spec((1, 5, 6), 2), softmax)]
SEEN += [(diagonal_bilstm, Spec((1, 6, 4), 2), softmax), (diagonal_bilstm, Spec((3, 3, 4), 3), softmax)]
SEEN += [(row_lstm, Spec((1, 3, 4), 2), softmax), (row_lstm, Spec((3, 3, 4), 3), softmax)]
SEEN += [(PixelCNNPP, Spec((1, 5, 6), 2), softmax), (PixelCNNPP, Spec((3, 5, 4), 4), logistic_mixture)]
SEEN += [(network, Spec((3, 4, 4), 3), softmax) for network in (PixelCNN, GatedPixelCNN)]


@pytest.mark.parametrize("case", SEEN, ids=name)
@pytest.mark.parametrize("signs", ["positive", "any"])
def test_a_pixel_sees_all_before_it_and_nothing_after(case, signs):
    """In the order of drawing, colours within a pixel too. (The images are small: all is in reach, and no blind spot.)"""
    net, head = build(*case)
    if signs == "positive":
        positive(net)
    seen, colours = changes(net, head, case[1], noise(case[1])), case[1].shape[0]
    j = torch.arange(seen.shape[0])[:, None] // (colours if head.steps == 1 else 1)
    before = j < torch.arange(seen.shape[1])
    assert not (seen & ~before).any()
    if signs == "positive":
        assert torch.equal(seen, before)


@pytest.mark.parametrize(("network", "invisible"), [(PixelCNN, 10), (GatedPixelCNN, 0)])
def test_the_blind_spot_is_of_the_known_size(network, invisible):
    """Of 112 pixels before (20, 14) in reach of a 7 x 7 and four 3 x 3 kernels, PixelCNN misses 10, all right above."""
    spec, pixel, reach = Spec((1, 28, 28), 2), (20, 14), 7
    net, _ = build(network, spec, softmax, channels=2, blocks=4, head_channels=2)
    positive(net)
    assert net.field == reach
    near = [
        (r, c) for r, c in product(range(28), repeat=2) if max(abs(r - 20), abs(c - 14)) <= reach and (r, c) < pixel
    ]
    far = [(20 - reach - 1, 14), (20, 14 - reach - 1), (20 - reach, 14 + reach + 1), (20, 15), (21, 14)]
    x = noise(spec).repeat(1 + len(near) + len(far), 1, 1, 1)
    for i, (r, c) in enumerate(near + far, 1):
        x[i, 0, r, c] = other(spec, x[i, 0, r, c])
    y = net(x)[:, 0, 20, 14]
    seen = ((y - y[0]).abs() > 1e-13)[1:].tolist()
    missed = [place for place, is_seen in zip(near, seen, strict=False) if not is_seen]
    assert len(near) == 112 and len(missed) == invisible and not any(seen[len(near) :])
    assert all(r < 20 and c > 14 for r, c in missed)


@pytest.mark.parametrize("network", KNOBS)
def test_labels_reach_every_pixel(network):
    spec = Spec((1, 5, 6), 2, classes=3)
    net, head = build(network, spec, softmax)
    positive(net)
    x = noise(spec)
    params = [net(x, label=torch.tensor([k])) for k in range(3)]
    assert ((params[0] - params[1]).abs() > 1e-9).all() and ((params[1] - params[2]).abs() > 1e-9).all()
    seen = changes(net, head, spec, x, label=torch.tensor([1]))
    assert not seen.tril().any()


def test_a_guide_reaches_its_place_and_what_is_below():
    """It is known beforehand, so that it may reach back in its own row; the image still may not."""
    spec = Spec((1, 5, 6), 2)
    net, head = build(GatedPixelCNN, spec, softmax, guide_channels=2)
    positive(net)
    guide = torch.zeros(1, 2, 5, 6)
    moved = guide.clone()
    moved[0, :, 2, 3] = 1
    changed = (net(noise(spec), guide=moved) - net(noise(spec), guide=guide)).abs()[0, 0] > 1e-12
    assert changed[2, 3:].all() and changed[3:, 2:].all() and not changed[:2].any()
    assert not changes(net, head, spec, noise(spec), guide=guide).tril().any()


# -- parts


def test_masks_of_a_single_colour():
    a, b = (mask(1, 1, above_and_here(3), groups=1, strict=strict)[0, 0].tolist() for strict in (True, False))
    assert a == [[1, 1, 1], [1, 0, 0]] and b == [[1, 1, 1], [1, 1, 0]]
    assert mask(1, 1, left(5), groups=1, strict=True)[0, 0].tolist() == [[1, 1, 0]]


def test_masks_of_three_colours_and_of_a_gate():
    a, b = (mask(3, 3, POINT, groups=3, strict=strict)[:, :, 0, 0].tolist() for strict in (True, False))
    assert a == [[0, 0, 0], [1, 0, 0], [1, 1, 0]] and b == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert mask(6, 3, POINT, groups=3, strict=False, parts=2)[:, :, 0, 0].tolist() == b + b
    uneven = mask(8, 4, POINT, groups=3, strict=False, parts=2)[:, :, 0, 0].tolist()  # colours 0, 0, 1, 2
    assert uneven == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]] * 2


def test_skewing_makes_columns_of_diagonals():
    x = torch.arange(1, 7).view(2, 3)
    assert skew(x).tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]
    assert torch.equal(unskew(skew(x)), x) and torch.equal(unskew(skew(x.T)), x.T)


def test_masks_never_touch_the_parameters():
    net, _ = build(*BINARY[0])
    before = net.first.weight.clone()
    net(noise(BINARY[0][1])), net.cache(2)
    assert torch.equal(before, net.first.weight) and (before[:, :, 3, 3:] != 0).any()
    assert (net.first.kernel()[:, :, 3, 3:] == 0).all()


@pytest.mark.parametrize(("channels", "colours", "parameters"), [(160, 3, 53_659_080), (80, 1, 13_433_340)])
def test_pixelcnnpp_has_the_published_number_of_parameters(channels, colours, parameters):
    spec = Spec((colours, 32, 32), 256)
    net = stated("model/pixelcnnpp", "network", channels=channels)(spec, stated("model/head/logistic_mixture")(spec))
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_weight_norm_starts_from_data():
    """Every layer's outputs have mean 0 and the spread it asks for, on the batch that it started from."""
    spec = Spec((3, 8, 6), 4)
    net, _ = build(PixelCNNPP, spec, logistic_mixture)
    x, outputs = noise(spec, 16), []
    start(net, x)
    for layer in net.modules():
        if isinstance(layer, NormedConv):
            layer.register_forward_hook(lambda layer, _, y: outputs.append((layer.spread, y)))
    net(x)
    assert len(outputs) == 36 and {spread for spread, _ in outputs} == {1.0, 0.1}
    for spread, y in outputs:
        torch.testing.assert_close(y.std((0, 2, 3)), torch.full((y.shape[1],), spread), rtol=1e-3, atol=0)
        assert y.mean((0, 2, 3)).abs().max() < 1e-9


def test_dropout_is_off_in_evaluation():
    net, _ = build(PixelCNNPP, Spec((1, 4, 4), 2), softmax)
    x = noise(Spec((1, 4, 4), 2))
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_colours_of_pixelcnnpp_want_a_head_that_knows_them():
    with pytest.raises(UserError, match="logistic_mixture"):
        build(PixelCNNPP, Spec((3, 4, 4), 4), softmax)
