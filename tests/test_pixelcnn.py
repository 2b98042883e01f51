"""The learner around a causal network: exact steps, exact divergences, exact resumption."""

import copy
import math
from functools import partial
from itertools import product

import pytest
import torch
from stated import stated

from gen_lab.data import Batches
from gen_lab.models.autoregressive import Autoregressive
from gen_lab.models.gated_pixelcnn import GatedPixelCNN
from gen_lab.models.pixelcnn import PixelCNN
from gen_lab.models.pixelcnnpp.network import PixelCNNPP
from gen_lab.networks.causal.heads import LogisticMixture, softmax
from gen_lab.types import Inpainter, ProgressiveSampler, Spec
from rl_lab.core.errors import UserError

autoregressive = stated("model/pixelcnn", head=softmax)
digits = stated("data/digits")
xor_chain = stated("data/xor_chain")

CPU = torch.device("cpu")
SMALL = Spec((1, 4, 4), 2)
NETWORKS = {
    "pixelcnn": partial(PixelCNN, channels=8, blocks=1, head_channels=16),
    "gated": partial(GatedPixelCNN, channels=8, blocks=1, head_channels=16),
    "pixelcnnpp": partial(PixelCNNPP, channels=8, blocks=1, resolutions=2, dropout=0.5),
}


def build(
    network="pixelcnn", spec: Spec = SMALL, seed: int = 0, *, lr: float = 1e-3, head=softmax, **knobs
) -> Autoregressive:
    optimizer = partial(torch.optim.Adam, lr=lr)
    return autoregressive(spec, CPU, seed, network=NETWORKS[network], head=head, optimizer=optimizer, **knobs)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, spec: Spec = SMALL, seed: int = 1) -> torch.Tensor:
    return torch.randint(spec.levels, (count, *spec.shape), generator=rng(seed)).to(spec.dtype)


def weights(network) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def every_image(h: int, w: int) -> torch.Tensor:
    return torch.tensor([*product((0, 1), repeat=h * w)], dtype=torch.uint8).view(-1, 1, h, w)


# -- what it learns


def fitted(model, data, updates: int, batch_size: int):
    batches = Batches(data, batch_size, seed=0)
    for _ in range(updates):
        model.update(*batches.draw())
    return model


@pytest.mark.parametrize(("network", "updates", "batch_size", "reached"), [
    ("pixelcnn", 150, 128, 0.15), ("gated", 150, 128, 0.15), ("pixelcnnpp", 60, 32, 1.0),
])  # fmt: skip
def test_comes_close_to_a_known_distribution(network, updates, batch_size, reached):
    """KL(chain || model) in nats by enumeration of all 2^12 images; a model that peeks would be below 0."""
    data = xor_chain(height=3, width=4, train=20_000, test=10)
    every = every_image(3, 4)
    log_p = data.log_prob(every)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)

    def divergence(model) -> float:
        nll = model.score(every, rng())["nll_nats"].double()
        return (log_p.exp() * (log_p + nll)).sum().item()

    model = build(network, data.spec, lr=1e-2, decay=0.99, average=0.9)
    before = divergence(model)
    fitted(model, data, updates, batch_size)
    assert before > 3 and 0 < divergence(model) < reached


CHAIN = 21.173370  # nats: ln 2 + 63 h(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("network", ["pixelcnn", "gated"])
def test_known_entropy(network, bf16):
    """Paired on 4,000 images of the 8 x 8 chain, so that the standard error is that of the divergence."""
    data = xor_chain()
    networks = {"pixelcnn": partial(PixelCNN, channels=16, blocks=3, head_channels=32),
                "gated": partial(GatedPixelCNN, channels=16, blocks=3, head_channels=32)}  # fmt: skip
    optimizer = partial(torch.optim.Adam, lr=2e-3, fused=True)
    model = autoregressive(data.spec, CPU, 0, network=networks[network], optimizer=optimizer, average=0.99,
                           decay=0.997, bf16=bf16)  # fmt: skip
    fitted(model, data, 1_000, 64)
    log_p = data.log_prob(data.test)
    kl = log_p + model.score(data.test, rng())["nll_nats"].double()
    error = kl.std() / len(kl) ** 0.5
    print(f"{network} bf16={bf16}: KL {kl.mean():.4f} +- {error:.4f}")
    assert -4 * error < kl.mean() < 0.05 and abs(-log_p.mean() - CHAIN) < 0.2


@pytest.mark.slow
def test_gated_pixelcnn_is_below_the_mixture_on_digits():
    """Paired on the 297 test digits: the difference, not the two means, is held against its standard error."""
    data = digits(protocol="binarised")
    x = data.test
    mixture = stated("model/bernoulli_mixture")(data.spec, CPU, 0)
    fitted(mixture, data, 50, 1_500)
    network = partial(GatedPixelCNN, channels=16, blocks=3, head_channels=32)
    optimizer = partial(torch.optim.Adam, lr=2e-3, fused=True)
    gated = autoregressive(data.spec, CPU, 0, network=network, optimizer=optimizer, average=0.99, decay=0.999)
    fitted(gated, data, 1_500, 64)
    nll = [model.score(x, rng())["nll_nats"].double() for model in (gated, mixture)]
    gain = nll[1] - nll[0]
    print(
        f"gated {nll[0].mean():.2f}, mixture {nll[1].mean():.2f}, paired {gain.mean():.2f} +- {gain.std() / 297**0.5:.2f}"
    )
    assert gain.mean() > 2 * gain.std() / 297**0.5 and nll[0].mean() < 17.9 and 17.9 < nll[1].mean() < 18.5


# -- the learner


def test_an_update_is_a_step_down_the_exact_likelihood():
    model, x = build(lr=0.0 + 1e-12), images(16)
    metrics = model.update(x)
    nll = model.score(x, rng())
    assert metrics["autoregressive/nll_nats"].item() == pytest.approx(nll["nll_nats"].mean().item(), rel=1e-5)
    torch.testing.assert_close(nll["bits_per_dim"], nll["nll_nats"] / (16 * math.log(2)))


def test_score_is_of_the_average_and_looking_does_not_move_it():
    """The first step of the average goes (1 - 2/11) of the way to the weights; those of the last one are kept."""
    model = build(average=0.9)
    before = weights(model.averaged)
    model.update(images(16))
    expected = before + (1 - 2 / 11) * (weights(model.network) - before)
    torch.testing.assert_close(weights(model.averaged), expected)
    x, after = images(8), weights(model.averaged)
    score = model.score(x, rng())["nll_nats"]
    model.sample(2, rng())
    assert torch.equal(weights(model.averaged), after)
    assert torch.equal(score, model.head.nll(model.averaged(x), x).detach())
    assert (model.head.nll(model.network(x), x).detach() - score).abs().max() > 1e-6


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_dropout_is_of_training_alone(average):
    """Of the weights that score, be they the average or not."""
    model, x = build("pixelcnnpp", average=average), images(8)
    for _ in range(2):
        assert torch.equal(model.score(x, rng())["nll_nats"], model.score(x, rng())["nll_nats"])
        model.update(x)
    params = [model.network.train()(x) for _ in range(2)]
    assert not torch.equal(*params)


def test_the_average_forgets_at_the_rate_that_was_asked_for():
    model = build(average=0.5)
    for _ in range(20):
        model.update(images(4))
    before = weights(model.averaged)
    model.update(images(4))
    torch.testing.assert_close(weights(model.averaged), 0.5 * (before + weights(model.network)))


def test_the_learning_rate_decays():
    model = build(lr=1.0e-3, decay=0.5)
    for expected in 1e-3, 5e-4, 2.5e-4:
        model.update(images(4))
        assert model.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_loaded_model_goes_on_as_if_never_stopped(network):
    """Dropout, average and learning rate too."""
    knobs = {"average": 0.9, "decay": 0.9}
    whole, again = build(network, **knobs), build(network, seed=0, **knobs)
    for i in range(2):
        whole.update(images(8, seed=i))
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    for i in range(2, 4):
        a, b = whole.update(images(8, seed=i)), again.update(images(8, seed=i))
        assert a["autoregressive/nll_nats"] == b["autoregressive/nll_nats"]
    assert torch.equal(weights(whole.network), weights(again.network))
    assert torch.equal(whole.sample(2, rng()), again.sample(2, rng()))


@pytest.mark.parametrize("average", [0, 0.9])
def test_parameters_follow_the_seed_and_the_global_stream_is_left_alone(average):
    before = torch.get_rng_state()
    a, b, c = (build("pixelcnnpp", seed=seed, average=average) for seed in (0, 0, 1))
    for model in a, b, c:
        model.update(images(4)), model.sample(1, rng()), model.score(images(4), rng())
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(a.network), weights(b.network)) and not torch.equal(
        weights(a.network), weights(c.network)
    )


def test_bf16_is_of_training_alone():
    model, plain, x = build(bf16=True), build(), images(32)
    assert torch.equal(model.score(x, rng())["nll_nats"], plain.score(x, rng())["nll_nats"])
    a, b = (m.update(x)["autoregressive/nll_nats"].item() for m in (model, plain))
    assert a != b and a == pytest.approx(b, rel=0.01)
    assert all(p.dtype == torch.float32 for p in model.network.parameters())
    assert model.score(x, rng())["nll_nats"].dtype == torch.float32


def test_labels_are_learned_where_asked_for_and_only_there():
    spec, label = SMALL._replace(classes=2), torch.arange(64) % 2
    x = label.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()  # black or white, by class
    told, untold = build("gated", spec, lr=1e-2, conditional=True), build("gated", spec, lr=1e-2)
    for _ in range(60):
        told.update(x, label), untold.update(x, label)
    scores = [model.score(x, rng(), label=label)["nll_nats"].mean() for model in (told, untold)]
    assert scores[0] < 0.3 and math.log(2) - 0.05 < scores[1]
    assert (told.sample(6, rng()).float().mean((1, 2, 3)).round() == torch.tensor([0, 1, 0, 1, 0, 1.0])).all()
    assert (told.sample(6, rng(), label=torch.ones(6, dtype=torch.long)) > 0.5).float().mean() > 0.9
    assert told.spec.classes == 2 and untold.spec.classes == 0


def test_mistakes_about_labels_are_named():
    with pytest.raises(UserError, match="conditional must be false.*no labels"):
        build(conditional=True)
    with pytest.raises(UserError, match="needs a label for each image"):
        build(spec=SMALL._replace(classes=3), conditional=True).update(images(4))


def test_a_drawing_ends_in_what_sample_returns():
    model = build("gated")
    assert isinstance(model, ProgressiveSampler) and isinstance(model, Inpainter)
    frames = list(model.draw(3, rng()))
    assert len(frames) == 16 and torch.equal(frames[-1], model.sample(3, rng()))
    assert not any(torch.equal(a, frames[-1]) for a in frames[:1]) and not frames[0].is_inference()


def test_in_painting_keeps_what_is_known():
    model, x = build("gated"), images(5)
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[:2] = True
    filled = model.inpaint(x, known, rng())
    assert torch.equal(filled[:, :, :2], x[:, :, :2]) and not torch.equal(filled, x)


@pytest.mark.parametrize("network", NETWORKS)
def test_grey_and_colour_by_logistic_mixtures(network):
    """From data-dependent or random weights, a few steps on one batch bring the likelihood down."""
    spec = Spec((3, 4, 4), 8)
    model, x = build(network, spec, lr=1e-2, head=partial(LogisticMixture, mixtures=2)), images(8, spec)
    nll = [model.update(x)["autoregressive/nll_nats"].item() for _ in range(12)]
    assert nll[-1] < nll[0] and model.sample(1, rng()).shape == (1, 3, 4, 4)


def test_what_a_label_adds_to_pixelcnnpp_begins_small():
    """A standard deviation of 0.05, as github.com/openai/pixel-cnn draws it: `start` has scaled all else already."""
    spec = Spec((1, 8, 8), 4, 10)
    network = PixelCNNPP(spec, softmax(spec), channels=32, blocks=2, resolutions=2, dropout=0.5)
    tables = [m.weight for m in network.modules() if isinstance(m, torch.nn.Embedding)]
    assert len(tables) == 2 * 9 and all(w.shape == (10, 64) for w in tables)
    every = torch.cat([w.detach().flatten() for w in tables])
    assert every.std().item() == pytest.approx(0.05, rel=0.03) and abs(every.mean().item()) < 0.002


@pytest.mark.parametrize(
    ("shape", "resolutions", "works"),
    [
        ((4, 4), 3, 5),
        ((1, 9), 3, 5),
        ((2, 2), 2, 3),
        ((1, 1), 1, 2),
        ((4, 4), 2, None),
        ((5, 7), 3, None),
        ((2, 2), 1, None),
    ],
)
def test_images_too_small_to_be_halved_are_one_line(shape, resolutions, works):
    spec = Spec((1, *shape), 4)
    network = partial(PixelCNNPP, channels=8, blocks=1, resolutions=resolutions, dropout=0.5)
    model = partial(autoregressive, spec, CPU, 0, optimizer=torch.optim.Adam, network=network)
    if works is None:
        fitted, x = model(), images(4, spec)
        nll = [fitted.update(x)["autoregressive/nll_nats"].item() for _ in range(5)]
        assert all(0 < n < 10 * math.prod(shape) for n in nll)
    else:
        with pytest.raises(UserError, match=rf"{shape[0]} x {shape[1]}.*use sides of {works} pixels or more"):
            model()
