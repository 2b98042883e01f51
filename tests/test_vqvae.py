"""VQ-VAE: its codebook against k-means, its gradients, its bound by enumeration, its two stages."""

import itertools
from functools import partial

import pytest
import torch
from stated import stated
from torch import nn

from gen_lab.models.gated_pixelcnn import GatedPixelCNN
from gen_lab.models.likelihoods import Bernoulli
from gen_lab.models.vqvae import vq_decoder, vq_encoder
from gen_lab.networks.causal import sampling
from gen_lab.networks.causal.heads import softmax
from gen_lab.networks.codebook import perplexity, straight_through
from gen_lab.types import Spec
from rl_lab.core.errors import UserError

Codebook = stated("model/vqvae", "codebook")
CPU = torch.device("cpu")
SMALL = Spec((1, 2, 4), 2, 3)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(spec: Spec = SMALL, seed: int = 0, *, codes: int = 3, halvings: int = 1, conditional: bool = False, **knobs):
    network = partial(GatedPixelCNN, channels=4, blocks=1, head_channels=4, embedding=3)
    coder = {"channels": 6, "halvings": halvings, "blocks": 1}
    usual = dict(
        encoder=partial(vq_encoder, **coder), decoder=partial(vq_decoder, **coder),
        codebook=partial(Codebook, codes=codes), optimizer=partial(torch.optim.Adam, lr=1e-2),
        prior=stated("model/gated_pixelcnn", network=network, head=softmax,
                     optimizer=partial(torch.optim.Adam, lr=3e-2), conditional=conditional),
        likelihood=Bernoulli, dimensions=2, autoencoder_steps=3,
    )  # fmt: skip
    return stated("model/vqvae", **usual | knobs)(spec, CPU, seed)


def images(count: int = 32, spec: Spec = SMALL, seed: int = 1) -> torch.Tensor:
    return torch.bernoulli(torch.full((count, *spec.shape), 0.5), generator=rng(seed)).byte()


def parameters(part) -> list[torch.Tensor]:
    return [x.clone() for x in part.state_dict().values()]


def same(before: list[torch.Tensor], part) -> bool:
    return all(torch.equal(x, y) for x, y in zip(before, part.state_dict().values(), strict=True))


# -- the codebook


def test_the_nearest_code_is_that_of_brute_force():
    torch.manual_seed(0)
    book, z = Codebook(5, codes=17), torch.randn(200, 5)
    assert torch.equal(book.nearest(z), (z[:, None] - book.vectors).square().sum(-1).argmin(1))


def test_on_data_that_stand_still_codes_become_the_means_of_k_means():
    torch.manual_seed(3)
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [4.0, 4.0]])
    z = (centres[torch.randint(4, (300,))] + torch.randn(300, 2)).double()
    book = Codebook(2, codes=4, decay=0.9, dead_below=0.0).double()
    book.start(z, rng(1))
    means = book.vectors.clone()
    for _ in range(200):  # Lloyd's, by hand
        nearest = (z[:, None] - means).square().sum(-1).argmin(1)
        means = torch.stack([z[nearest == k].mean(0) for k in range(4)])
    for _ in range(600):
        book.follow(z, book.nearest(z), rng(2))
    torch.testing.assert_close(book.vectors, means, atol=1e-5, rtol=0)
    assert book.counts.sum().item() == pytest.approx(300)  # vectors an update


def test_one_step_of_the_running_means_in_figures():
    """Counts 2 and 2, then 3 and 1 at decay 1/2: 2.5 and 1.5; sums alike."""
    book = Codebook(1, codes=2, decay=0.5, dead_below=0.0, smoothing=1e-12).double()
    book.vectors.copy_(torch.tensor([[1.0], [5.0]]))
    book.counts.fill_(2.0)
    book.sums.copy_(torch.tensor([[2.0], [10.0]]))
    book.follow(torch.tensor([[0.0], [1.0], [2.0], [9.0]]).double(), torch.tensor([0, 0, 0, 1]), rng())
    assert book.counts.tolist() == [2.5, 1.5]
    assert book.vectors.flatten().tolist() == pytest.approx([2.5 / 2.5, 9.5 / 1.5])


def test_a_dead_code_starts_anew_at_one_of_the_vectors():
    torch.manual_seed(0)
    book, z = Codebook(3, codes=4, decay=0.5, dead_below=0.5), torch.randn(64, 3)
    book.start(z, rng())
    book.vectors[2] = book.sums[2] = 1e3
    restarted = [int(book.follow(z, book.nearest(z), rng(i))) for i in range(8)]
    assert sum(restarted) == 1
    assert book.vectors[2].abs().max() < 10 and (book.nearest(z) == 2).any()


@pytest.mark.parametrize(("counts", "expected"), [([5, 5, 5, 5], 4), ([3, 0, 0], 1), ([2, 1, 1], 2**1.5)])
def test_perplexity(counts, expected):
    assert float(perplexity(torch.tensor(counts))) == pytest.approx(expected)


# -- gradients


def test_the_decoder_tells_the_encoder_what_it_would_tell_the_code():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    z, code = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    passed = straight_through(z, code)
    torch.testing.assert_close(passed, code)
    (to_encoder,) = torch.autograd.grad(decoder(passed).sum(), z)
    (to_code,) = torch.autograd.grad(decoder(passed.detach().requires_grad_()).sum(), code, allow_unused=True)
    at = passed.detach().requires_grad_()
    (true,) = torch.autograd.grad(decoder(at).sum(), at)
    assert torch.equal(to_encoder, true) and to_code is None


def test_commitment_draws_the_encoder_to_its_codes_and_the_codes_nowhere():
    """With a decoder that looks at nothing, each step of the encoder shortens the way to codes that stand still."""
    model = build(codebook=partial(Codebook, codes=3, decay=1.0, dead_below=0.0), commitment=1.0, autoencoder_steps=99,
                  optimizer=partial(torch.optim.SGD, lr=0.1))  # fmt: skip
    for p in model.decoder.parameters():
        nn.init.zeros_(p)
    x = images()
    distances = [float(model.update(x)["vqvae/distance"]) for _ in range(30)]
    codes = model.codebook.vectors.clone()
    distances += [float(model.update(x)["vqvae/distance"]) for _ in range(30)]
    assert torch.equal(codes, model.codebook.vectors)
    assert distances[-1] < 0.9 * distances[0] and all(b < a for a, b in itertools.pairwise(distances))


# -- the bound


def test_what_an_image_costs_is_a_bound_and_all_images_share_one():
    """p(x) is a sum over all 9 maps of two codes; over all 256 images it is 1, and each costs at least -log p(x)."""
    model = build()
    for _ in range(5):
        model.update(images(64))
    for p in (*model.prior.network.parameters(), *model.decoder.parameters()):
        p.requires_grad_(False)
    every = torch.tensor(list(itertools.product((0, 1), repeat=8))).view(-1, 1, 2, 4)
    maps = torch.tensor(list(itertools.product(range(3), repeat=2))).view(-1, 1, 2)
    prior = -model.prior.score(maps.unsqueeze(1), rng())["nll_nats"]
    given = torch.stack([-model.likelihood.nll(p, every, rng()) for p in model.decode(maps).unsqueeze(1)])
    log_p = (prior[:, None] + given).double().logsumexp(0)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    score = model.score(every, rng())
    assert (score["nll_bound_nats"] >= -log_p - 1e-5).all()
    torch.testing.assert_close(score["nll_bound_nats"], score["recon_nats"] + score["code_nats"])
    mine = (model.codes(every).flatten(1) * torch.tensor([3, 1])).sum(1)  # the number of each image's own map
    torch.testing.assert_close(score["code_nats"], -prior[mine])


def test_a_prior_that_knows_levels_by_name_samples_from_its_cache_what_it_would_without():
    torch.manual_seed(0)
    spec = Spec((2, 5, 4), 6)
    head = softmax(spec)
    net = GatedPixelCNN(spec, head, channels=8, blocks=2, head_channels=8, embedding=5).double()
    for p in net.parameters():
        p.data *= 3
    drawn = []
    for method in ("naive", "cropped", "cached"):
        *_, x = sampling.draw(net, head, 16, rng(4), method=method)
        drawn.append(x.clone())
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


@torch.no_grad()
def test_levels_known_by_name_see_nothing_of_what_comes_later():
    torch.manual_seed(0)
    spec = Spec((1, 4, 5), 3)
    net = GatedPixelCNN(spec, softmax(spec), channels=8, blocks=2, head_channels=8, embedding=4).double()
    x = torch.zeros(1, *spec.shape, dtype=torch.long)
    before = net(x).flatten(2)
    for i in range(20):
        other = x.clone().flatten()
        other[i] = 2
        moved = (net(other.view_as(x)).flatten(2) != before).any(1).flatten()
        assert not moved[: i + 1].any() and (i == 19 or moved[i + 1])


# -- the two stages


def test_first_the_codes_are_learned_and_then_their_prior():
    model, x = build(), images()
    parts = model.encoder, model.decoder, model.codebook
    prior = parameters(model.prior.network)
    for _ in range(3):
        before = [parameters(part) for part in parts]
        assert "vqvae/perplexity" in model.update(x)
        assert not any(same(old, part) for old, part in zip(before, parts, strict=True))
    assert same(prior, model.prior.network)
    before = [parameters(part) for part in parts]
    assert "autoregressive/nll_nats" in model.update(x)
    assert all(same(old, part) for old, part in zip(before, parts, strict=True))
    assert not same(prior, model.prior.network)


def test_looking_at_a_model_changes_nothing():
    model, x = build(), images()
    model.update(x)
    before = [parameters(part) for part in (model.codebook, model.encoder, model.prior.network)]
    model.score(x, rng())
    model.sample(4, rng())
    model.reconstruct(x)
    parts = model.codebook, model.encoder, model.prior.network
    assert all(same(old, part) for old, part in zip(before, parts, strict=True))


@pytest.mark.parametrize("after", [2, 5])
def test_resumed_it_goes_on_bit_for_bit(after):
    whole, stopped = build(), build()
    batches = [images(seed=i) for i in range(9)]
    for x in batches[:after]:
        whole.update(x)
        stopped.update(x)
    resumed = build(seed=7)
    resumed.load_state_dict(stopped.state_dict())
    for x in batches[after:]:
        ours, theirs = whole.update(x), resumed.update(x)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.equal(whole.sample(8, rng()), resumed.sample(8, rng()))


def test_samples_of_a_class():
    """Two classes of one image each: told which, it draws that one."""
    spec = Spec((1, 4, 4), 2, 2)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    x[1] = 1
    model = build(spec, codes=4, conditional=True, autoencoder_steps=100)
    label = torch.arange(32) % 2
    for _ in range(250):
        model.update(x[label], label)
    asked = torch.tensor([1] * 40 + [0] * 24)
    assert (model.sample(64, rng(), asked) != x[asked]).float().mean() < 0.02
    assert float(model.score(x, rng(), label=torch.arange(2))["nll_bound_nats"].max()) < 0.5


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="halvings=2: both sides must be multiples of 4, not 2 x 4"):
        build(halvings=2)
    with pytest.raises(UserError, match="model.codebook.codes must be at least 2"):
        build(codes=1)
