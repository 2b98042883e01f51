"""Data sets that need no network: what they hold, what they refuse, and that batches keep images and labels together."""

import math
import os
import re
import struct
import time
import zlib
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from stated import stated
from vae_cases import build

from gen_lab.data import Batches, Images
from gen_lab.data import cache as cache_module
from gen_lab.data.images import bits, quantised
from gen_lab.data.pixels import pictured
from gen_lab.judging.evaluation import evaluate
from gen_lab.networks.coders import mlp_decoder, mlp_encoder
from gen_lab.types import Spec
from rl_lab.core import recording, room
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator
from rl_lab.core.recording import Episode

digits = stated("data/digits")
folder = stated("data/folder")
ising = stated("data/ising")
npz = stated("data/npz")
recorded = stated("data/recorded")
xor_chain = stated("data/xor_chain")

CPU = torch.device("cpu")


# -- labels


def test_digits_keep_their_labels():
    """Each image is looked up among the originals by its pixels."""
    original = load_digits()
    label_of = {
        image.astype(np.uint8).tobytes(): label for image, label in zip(original.images, original.target, strict=True)
    }
    data = digits(protocol="levels")
    assert data.spec == ((1, 8, 8), 17, 10)
    for images, labels in (data.train, data.train_labels), (data.test, data.test_labels):
        assert labels.dtype == torch.int64
        assert [label_of[x.numpy().tobytes()] for x in images] == labels.tolist()
    assert data.train_labels[:8].tolist() == digits(protocol="binarised").train_labels[:8].tolist()


def numbered(count: int, **fields) -> Images:
    """Image i is of level i, and so is its label."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    labels = torch.arange(count)
    return Images("numbered", pixels, pixels, 256, labels, labels, count, **fields)


def test_labels_go_with_their_images():
    batches = Batches(numbered(100), 30, seed=0)
    for _ in range(10):
        x, label = batches.draw()
        assert x.flatten().tolist() == label.tolist()
    for pixels, label in numbered(100).tested(30):
        assert pixels.flatten().tolist() == label.tolist()


def test_the_test_set_comes_whole():
    parts = [len(x) for x, _ in numbered(100).tested(30)]
    assert parts == [30, 30, 30, 10]
    assert [label for _, label in xor_chain(train=1, test=2).tested(2)] == [None]


# -- binarised anew


def dynamic(count: int = 50) -> Images:
    grey = torch.full((count, 1, 4, 4), 64, dtype=torch.uint8)
    return Images("toy-dynamic", grey, (grey > 128).to(torch.uint8), 2, resampled=True)


def test_each_showing_is_drawn_anew():
    batches = Batches(dynamic(), 50, seed=0)
    first, second = batches.draw()[0], batches.draw()[0]
    assert set(first.unique().tolist()) == {0, 1} and not torch.equal(first, second)
    mean = torch.stack([batches.draw()[0] for _ in range(200)]).float().mean()
    assert mean.item() == pytest.approx(64 / 255, abs=4 * math.sqrt(0.25 * 0.75 / 160_000))


def test_binarisation_goes_on_where_it_was():
    whole, again = Batches(dynamic(), 20, seed=0), Batches(dynamic(), 20, seed=7)
    for _ in range(3):
        whole.draw()
    again.load_state_dict(whole.state_dict())
    for _ in range(5):
        assert torch.equal(whole.draw()[0], again.draw()[0])


def test_black_and_white_are_certain():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(1000)
    assert torch.equal(bits(pixels, generator(0, CPU)), pixels // 255)


def test_levels_are_of_equal_width():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantised(every, 8), every >> 5) and torch.equal(quantised(every, 256), every)
    assert quantised(torch.tensor([127, 128], dtype=torch.uint8), 2).tolist() == [0, 1]
    assert quantised(every, 17).bincount().tolist() == [16] + [15] * 16


# -- distributions that are known


def every_image(height: int, width: int) -> torch.Tensor:
    return torch.tensor(list(product([0, 1], repeat=height * width)), dtype=torch.uint8).view(-1, 1, height, width)


def flip_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("known", [
    xor_chain(height=3, width=4, flip=0.2, train=1, test=40_000),
    ising(height=3, width=4, coupling=0.5, train=1, test=40_000),
    ising(height=1, width=5, coupling=-0.7, train=1, test=40_000),
], ids=lambda data: data.name)  # fmt: skip
def test_probabilities_are_those_of_the_sampler(known):
    """They sum to 1 over all images, and a chi-square test of 40,000 draws against them passes."""
    every = every_image(*known.spec.shape[1:])
    p = known.log_prob(every).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    weights = 2 ** torch.arange(every[0].numel() - 1, -1, -1)
    count = torch.bincount((known.test.flatten(1) * weights).sum(1), minlength=len(every))
    order = p.argsort(descending=True)
    common = p[order].mul(40_000).ge(10).sum()  # the rest is one cell
    o, e = (torch.cat([x[order][:common], x[order][common:].sum(0, keepdim=True)]) for x in (count, p * 40_000))
    statistic, cells = ((o - e) ** 2 / e.clamp(min=1e-9)).sum().item(), len(e) - 1
    assert abs(statistic - cells) < 4 * math.sqrt(2 * cells)


def test_chain_has_the_entropy_it_says():
    data = xor_chain(train=20_000, test=1)
    log_p = data.log_prob(data.train)
    entropy = math.log(2) + 63 * flip_entropy(0.1)
    assert entropy == pytest.approx(21.17337, abs=5e-6)
    assert (-log_p.mean() - entropy).abs() < 4 * log_p.std() / math.sqrt(20_000)


def test_chain_by_hand():
    """Row 0: a fair 1, a copy, a flip; below: a flip of the 1 above, then 0 xor 1, then 1 xor 1 flipped."""
    x = torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.uint8).view(1, 1, 2, 3)
    assert xor_chain(height=2, width=3, flip=0.1, train=1, test=1).log_prob(x).item() == pytest.approx(
        math.log(0.5) + 3 * math.log(0.1) + 2 * math.log(0.9)
    )


def test_ising_of_four_spins():
    """Z = 2 e^4K + 12 + 2 e^-4K: all alike, mixed, a chequerboard."""
    log_prob = ising(height=2, width=2, coupling=0.3, train=1, test=1).log_prob
    z = 2 * math.exp(1.2) + 12 + 2 * math.exp(-1.2)
    alike, mixed, chequered = ([[1, 1], [1, 1]], [[1, 0], [0, 0]], [[1, 0], [0, 1]])
    found = log_prob(torch.tensor([alike, mixed, chequered], dtype=torch.uint8).unsqueeze(1)).exp().tolist()
    assert found == pytest.approx([math.exp(1.2) / z, 1 / z, math.exp(-1.2) / z])
    with pytest.raises(UserError, match="5 x 4 is too large to enumerate"):
        ising(height=5, width=4)


def test_train_and_test_are_other_draws():
    data = xor_chain(train=500, test=500)
    assert not torch.equal(data.train, data.test)
    assert torch.equal(data.train, xor_chain(train=500, test=9).train)
    assert not torch.equal(data.train, xor_chain(train=500, test=9, seed=1).train)


class Fair:
    """Every pixel a fair coin: KL(p || fair) = H W ln 2 - H(p), exactly."""

    spec = Spec((1, 8, 8), 2)

    def score(self, x, generator, iwae_samples=0, label=None):
        return {"nll_nats": torch.full((len(x),), 64 * math.log(2))}


def test_divergence_from_the_data_is_paired():
    data = xor_chain(train=1, test=4_000)
    metrics = evaluate(Fair(), data, seed=0)
    entropy = math.log(2) + 63 * flip_entropy(0.1)
    kl, error = metrics["eval/kl_nats[xor_chain-8x8-0.1]"], metrics["eval/kl_nats_se[xor_chain-8x8-0.1]"]
    assert abs(kl - (64 * math.log(2) - entropy)) < 4 * error
    log_p = data.log_prob(data.test)
    assert error.item() == pytest.approx(log_p.std().item() / math.sqrt(4_000))
    assert metrics["eval/nll_nats_se[xor_chain-8x8-0.1]"] == 0  # the pairing is with each image's own log p


def test_a_bound_gives_a_bound():
    data = ising(train=1, test=300)
    nets = {"encoder": partial(mlp_encoder, hidden=4), "decoder": partial(mlp_decoder, hidden=4)}
    model = build(data.spec, latents=1, lr=1e-3, **nets)
    metrics = evaluate(model, data, seed=0)
    difference = metrics["eval/nll_bound_nats[ising-4x4-0.4]"] + data.log_prob(data.test).mean()
    assert metrics["eval/kl_bound_nats[ising-4x4-0.4]"].item() == pytest.approx(difference.item(), rel=1e-5)


# -- npz


def arrays(**changed) -> dict:
    rng = np.random.default_rng(0)
    usual = {"train": rng.integers(4, size=(7, 3, 5, 6), dtype=np.uint8), "levels": 4,
             "test": rng.integers(4, size=(3, 3, 5, 6), dtype=np.uint8)}  # fmt: skip
    return {k: v for k, v in (usual | changed).items() if v is not None}


def unmarked(data) -> str:
    """The name without the digest of the images that are tested on."""
    name, _, digest = data.name.rpartition("-")
    assert len(digest) == 6 and int(digest, 16) >= 0
    return name


def test_others_of_the_same_name_are_another_set(tmp_path):
    """Figures are compared where the names are the same."""
    names = []
    for place, seed in (("a", 0), ("b", 1), ("c", 0)):
        (tmp_path / place).mkdir()
        rng = np.random.default_rng(seed)
        images = {part: rng.integers(0, 4, (7, 5, 6), np.uint8) for part in ("train", "test")}
        np.savez(tmp_path / place / "mine.npz", **images)
        names.append(npz(path=str(tmp_path / place / "mine.npz"), root=str(tmp_path)).name)
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize("name", ["val", "x_val", "val_images"])
def test_an_npz_brings_a_validation_set(tmp_path, name):
    label = "y_val" if name == "x_val" else "val_labels"
    given = arrays(train_labels=np.arange(7) % 3, test_labels=np.array([2, 0, 1]))
    np.savez(tmp_path / "mine.npz", **given, **{name: given["test"][:2], label: np.array([1, 2])})
    data = npz(path=str(tmp_path / "mine.npz"), root=str(tmp_path))
    assert torch.equal(data.validation, data.test[:2]) and data.validation_labels.tolist() == [1, 2]
    np.savez(tmp_path / "other.npz", **given, **{name: given["test"][:2]})
    with pytest.raises(UserError, match="'val_labels' must be 2 whole numbers from 0 on"):
        npz(path=str(tmp_path / "other.npz"), root=str(tmp_path))


@pytest.mark.parametrize(("labels", "right"), [(np.eye(3)[np.arange(7) % 3], "x['train_labels'].argmax(1) gives them"),
                                               (np.arange(7.0), "x['train_labels'].astype(int) gives them"),
                                               (np.array(["cat"] * 7), "np.searchsorted(np.unique(x['train_labels']), x['train_labels']) gives them")])  # fmt: skip
def test_labels_of_another_kind_are_told_how_they_are_made_right(tmp_path, labels, right):
    np.savez(tmp_path / "mine.npz", **arrays(train_labels=labels, test_labels=labels[:3]))
    with pytest.raises(UserError, match=re.escape(right)):
        npz(path=str(tmp_path / "mine.npz"), root=str(tmp_path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("gigabytes", [8.0, 1e-7])
def test_npz(tmp_path, save, gigabytes):
    written = arrays(train_labels=np.arange(7) % 3, test_labels=np.array([2, 0, 1]))
    save(tmp_path / "mine.npz", **written)
    for _ in range(2):  # the second time from the map that is there
        data = npz(path=str(tmp_path / "mine.npz"), resident_gb=gigabytes, root=str(tmp_path / "cache"))
        assert unmarked(data) == "mine-3x5x6-4" and data.spec == ((3, 5, 6), 4, 3)
        assert np.array_equal(data.train, written["train"]) and np.array_equal(data.test, written["test"])
        assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and data.test_labels.tolist() == [2, 0, 1]
        assert data.mapped == (gigabytes < 1) == (tmp_path / "cache").exists()
    assert ("memory-mapped from disk" in data.about) == data.mapped and "7 + 3 images of 3 x 5 x 6" in data.about


def test_a_map_gives_the_same_batches(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    maps = [npz(path=str(tmp_path / "mine.npz"), resident_gb=gb, root=str(tmp_path)) for gb in (8, 0)]
    resident, mapped = (Batches(data.to(CPU), 3, seed=0) for data in maps)
    for _ in range(5):
        assert torch.equal(resident.draw()[0], mapped.draw()[0])


def test_two_that_build_one_map_do_not_meet(tmp_path):
    """The second begins, and ends, while the first is half way."""
    path, images = tmp_path / "x.npy", np.arange(60, dtype=np.uint8).reshape(5, 3, 2, 2)

    def slowly():
        yield images[:3]
        cache_module.kept([images], images.shape, path)
        yield images[3:]

    assert (cache_module.kept(slowly(), images.shape, path).numpy() == images).all()
    assert (np.load(path) == images).all() and [*tmp_path.iterdir()] == [path]


def test_a_changed_file_is_mapped_anew(tmp_path):
    load = partial(npz, path=str(tmp_path / "mine.npz"), resident_gb=0, root=str(tmp_path / "cache"))
    np.savez(tmp_path / "mine.npz", **arrays())
    load()
    changed = arrays(train=np.zeros((7, 3, 5, 6), np.uint8))
    np.savez_compressed(tmp_path / "mine.npz", **changed)
    assert (load().train == 0).all()
    for path in (tmp_path / "cache/maps").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"maps/.*npy is damaged; delete it"):
        load()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"test": None}, r"has no array 'test' \(train.npy, levels.npy\); it needs train and test: x = np"),
        ({"levels": 300}, "no 'levels' between 2 and 256"),
        ({"levels": 3}, "'train' goes up to 3, and of 3 levels the highest is 2"),
        ({"train": np.zeros((7, 9), np.uint8)}, r"'train' is uint8 \[7, 9\]; it must be uint8 or bool \[N, C, H, W\]"),
        (
            {"train": np.zeros((7, 2, 5, 6), np.uint8)},
            r"'train' is uint8 \[7, 2, 5, 6\], of 2 colours \(or 6, were they last",
        ),
        ({"train": np.zeros((7, 5, 6, 4), np.uint8)}, r"of 5 colours \(or 4, were they last\); images have 1 or 3"),
        ({"train": np.zeros((0, 3, 5, 6), np.uint8)}, r"'train' is uint8 \[0, 3, 5, 6\]; it must be"),
        ({"train": np.zeros((7, 3, 5, 6), object)}, "'train' is object"),
        ({"levels": 4.5}, "'levels' is float64"),
        ({"levels": "four"}, "'levels' is <U4"),
        ({"levels": [4, 4]}, "has no 'levels' between 2 and 256"),
        ({"levels": -3}, "has no 'levels' between 2 and 256"),
        ({"train_labels": np.zeros((7, 2), int), "test_labels": np.zeros(3, int)}, r"'train_labels' is int64 \[7, 2\]"),
        ({"train_labels": np.zeros(7), "test_labels": np.zeros(3, int)}, "'train_labels' is float64"),
        (
            {"train_labels": np.arange(7) - 1, "test_labels": np.zeros(3, int)},
            "'train_labels' must be 7 whole numbers from 0 on",
        ),
        (
            {"train_labels": np.full(7, 10**12), "test_labels": np.zeros(3, int)},
            "'train_labels' goes up to 1000000000000; number",
        ),
        (
            {"train_labels": np.full(7, 2**63, np.uint64), "test_labels": np.zeros(3, int)},
            "'train_labels' goes up to 9223",
        ),
        ({"train": np.zeros((7, 3, 5, 6))}, r"'train' is float64 .*: x = np.load\(.*np.savez\("),
        ({"test": np.zeros((3, 3, 6, 5), np.uint8)}, r"train is of \[3, 5, 6\] and test of \[3, 6, 5\]"),
        ({"train_labels": np.zeros(7, int)}, "'test_labels' must be 3 whole numbers"),
        ({"train_labels": np.zeros(6, int), "test_labels": np.zeros(3, int)}, "'train_labels' must be 7 whole numbers"),
    ],
)
def test_a_wrong_npz_is_named(tmp_path, changed, says):
    np.savez(tmp_path / "mine.npz", **arrays(**changed))
    with pytest.raises(UserError, match=rf"mine.npz.*{says}"):
        npz(path=str(tmp_path / "mine.npz"))


def test_an_npz_that_is_none(tmp_path):
    (tmp_path / "mine.npz").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="mine.npz cannot be read as an npz file"):
        npz(path=str(tmp_path / "mine.npz"))
    with pytest.raises(UserError, match=r"there is no file .*nowhere.npz; data.path=<file> names the npz"):
        npz(path=str(tmp_path / "nowhere.npz"))
    np.savez(tmp_path / "evil.npz", **arrays(levels=np.array([{}], object)))
    with pytest.raises(UserError, match="evil.npz"):
        npz(path=str(tmp_path / "evil.npz"))


@pytest.mark.parametrize("layout", ["colours last", "grey", "one colour last"])
def test_arrays_of_other_layouts(tmp_path, layout):
    rng = np.random.default_rng(1)
    train, test = (rng.integers(4, size=(n, 5, 6, 3), dtype=np.uint8) for n in (7, 3))
    if layout != "colours last":
        train, test = train[..., :1], test[..., :1]
    if layout == "grey":
        np.savez(tmp_path / "mine.npz", train=train[..., 0], test=test[..., 0], levels=4)
    else:
        np.savez(tmp_path / "mine.npz", train=train, test=test, levels=4)
    for gigabytes in 8, 0:
        data = npz(path=str(tmp_path / "mine.npz"), resident_gb=gigabytes, root=str(tmp_path / "cache"))
        assert np.array_equal(data.train, train.transpose(0, 3, 1, 2)) and data.train.is_contiguous()
        assert np.array_equal(data.test, test.transpose(0, 3, 1, 2))


def test_arrays_as_others_save_them(tmp_path):
    """Keras's names and its labels in a column, bool, Fortran order, and no `levels`."""
    written = arrays(levels=None)
    train, test = written["train"] > 1, np.asfortranarray(written["test"] > 1)
    labels = {"y_train": np.arange(7)[:, None] % 3, "y_test": np.array([[2], [0], [1]])}
    np.savez(tmp_path / "keras.npz", x_train=train, x_test=test, **labels)
    for gigabytes in 8, 0:
        data = npz(path=str(tmp_path / "keras.npz"), resident_gb=gigabytes, root=str(tmp_path))
        assert data.levels == 2 and data.remark == "" and data.test_labels.tolist() == [2, 0, 1]
        assert np.array_equal(data.train, train) and np.array_equal(data.test, test)
    np.savez(tmp_path / "mine.npz", train=written["train"], test=written["test"])
    data = npz(path=str(tmp_path / "mine.npz"))
    assert data.levels == 256 and "no 'levels' in the file, so 256" in data.about


def test_one_array_is_split(tmp_path):
    every = np.arange(40, dtype=np.uint8).reshape(40, 1, 1)
    np.save(tmp_path / "mine.npy", every)
    for gigabytes in 8, 0:
        data = npz(path=str(tmp_path / "mine.npy"), resident_gb=gigabytes, root=str(tmp_path / "cache"), held_out=0.25)
        assert (len(data.train), len(data.test), data.classes) == (30, 10, 0)
        assert sorted([*data.train.flatten().tolist(), *data.test.flatten().tolist()]) == [*range(40)]
        assert data.test.flatten().tolist() != [*range(30, 40)]
    with pytest.raises(UserError, match=r"40 images, too few to test on some \(data.held_out=0.001"):
        npz(path=str(tmp_path / "mine.npy"), held_out=0.001)
    np.save(tmp_path / "floats.npy", every / 39)
    with pytest.raises(UserError, match=r"floats.npy is float64 \[.*, 1, 1\]; it must be uint8 or bool"):
        npz(path=str(tmp_path / "floats.npy"))
    np.save(tmp_path / "one.npy", np.uint8(3))
    with pytest.raises(UserError, match="one.npy cannot be read as an npy file"):
        npz(path=str(tmp_path / "one.npy"))


@pytest.mark.parametrize("gigabytes", [8, 0])
def test_grey_arrays_are_binarised_as_mnist_is(tmp_path, gigabytes):
    every = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    np.savez(tmp_path / "mine.npz", train=every, test=every, levels=256)
    load = partial(npz, path=str(tmp_path / "mine.npz"), resident_gb=gigabytes, root=str(tmp_path / "cache"))
    cut = load(protocol="threshold")
    assert (cut.levels, unmarked(cut), cut.resampled) == (2, "mine-1x8x8-256-threshold", False)
    assert cut.train.flatten().tolist() == cut.test.flatten().tolist() == [0] * 128 + [1] * 128
    anew = load(protocol="dynamic")
    assert (anew.levels, unmarked(anew), anew.resampled) == (2, "mine-1x8x8-256-dynamic", True)
    assert anew.train.flatten().tolist() == list(range(256)) and set(anew.test.unique().tolist()) == {0, 1}
    assert torch.equal(anew.test, load(protocol="dynamic").test)  # drawn once, whoever asks
    assert 100 < anew.test.sum() < 156 and anew.test.flatten()[0] == 0 and anew.test.flatten()[-1] == 1
    x, _ = Batches(anew, 4, seed=0).draw()
    assert set(x.unique().tolist()) == {0, 1}
    assert load().levels == 256 and unmarked(load()) == "mine-1x8x8-256"


def test_few_levels_are_binarised_at_their_middle(tmp_path):
    np.savez(tmp_path / "mine.npz", train=np.arange(17, dtype=np.uint8).reshape(17, 1, 1), levels=17,
             test=np.arange(17, dtype=np.uint8).reshape(17, 1, 1))  # fmt: skip
    cut, anew = (npz(path=str(tmp_path / "mine.npz"), protocol=kind) for kind in ("threshold", "dynamic"))
    assert cut.train.flatten().tolist() == [0] * 8 + [1] * 9  # as digits are, at 8 of 16
    assert anew.train.flatten().tolist()[:3] == [0, 16, 32] and anew.train.max() == 255


# -- files that are none, or more than they seem


def bomb(path: Path, declared: int | None = None) -> Path:
    """A zip of zeros: 400 MB of images in less than one, or fewer bytes than its header says."""
    import io
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, count in ("train", declared or 400), ("test", 1):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "|u1", "fortran_order": False, "shape": (count, 1, 1000, 1000)}
            )
            with archive.open(f"{name}.npy", "w") as member:
                member.write(header.getvalue())
                for _ in range(1 if declared else count):
                    member.write(bytes(10**6))
        levels = io.BytesIO()
        np.save(levels, 2)
        archive.writestr("levels.npy", levels.getvalue())
    return path


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "bomb", "liar", "cut short", "locked"])
def test_what_is_no_data_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "mine.npz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        bomb(path)
    elif kind == "liar":
        bomb(path, declared=10**9)
    else:
        np.savez_compressed(path, **arrays())
        data = bytearray(path.read_bytes())
        if kind == "locked":  # each entry says that it wants a password
            for mark, flags in (b"PK\x03\x04", 6), (b"PK\x01\x02", 8):
                at = data.find(mark)
                while at >= 0:
                    data[at + flags] |= 1
                    at = data.find(mark, at + 4)
        else:
            data[60:90] = bytes(30)
        path.write_bytes(data)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"mine\.npz") as raised:
        npz(path=str(path), root=str(tmp_path / "cache"))
    assert time.monotonic() - start < 2 and "\n" not in str(raised.value)
    assert not (tmp_path / "cache").exists()


def test_links_to_files_of_ones_own_are_followed(tmp_path):
    np.savez(tmp_path / "real.npz", **arrays())
    (tmp_path / "mine.npz").symlink_to(tmp_path / "real.npz")
    assert len(npz(path=str(tmp_path / "mine.npz")).train) == 7


def test_what_memory_cannot_hold_is_not_begun(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **arrays())
    monkeypatch.setattr(room, "available", lambda: 100.0)
    with pytest.raises(UserError, match=r"needs .* MB of memory, and .* are free"):
        npz(path=str(tmp_path / "mine.npz"))


# -- a folder of pictures


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_class_folders(tmp_path):
    for i in range(10):
        paint(tmp_path / f"cat/{i}.png", (200, i, 0))
        paint(tmp_path / f"a dog/deep/{i}.bmp", (100, i, 0))
    (tmp_path / "readme.txt").write_text("not a picture")
    data = folder(path=str(tmp_path), held_out=0.25)
    assert data.spec == ((3, 4, 6), 256, 2) and (len(data.train), len(data.test)) == (15, 5)
    assert unmarked(data) == f"{tmp_path.name}-3x4x6-256"
    red = torch.cat([data.train, data.test])[:, 0, 0, 0]
    assert torch.equal(torch.where(red == 100, 0, 1), torch.cat([data.train_labels, data.test_labels]))
    pictures = {(int(x[0, 0, 0]), int(x[1, 0, 0])) for x in torch.cat([data.train, data.test])}
    assert len(pictures) == 20


def test_folders_train_and_test_are_the_split(tmp_path):
    for i in range(3):
        paint(tmp_path / f"train/{i}.png", (255, 255, i))
    paint(tmp_path / "test/0.png", (0, 0, 0), size=(9, 5))
    data = folder(path=str(tmp_path), size=2, grey=True, levels=8)
    assert data.spec == ((1, 2, 2), 8, 0) and data.train_labels is None
    assert (data.train >= 6).all() and len(data.train) == 3 and data.test.flatten().tolist() == [0] * 4


def test_the_largest_centred_square_is_kept(tmp_path):
    """A white square between black bands, and a picture stored lying on its side."""
    for i in range(2):
        picture = np.zeros((4, 10, 3), np.uint8)
        picture[:, 3:7] = 255
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    assert (folder(path=str(tmp_path), size=4, held_out=0.5).train == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for i in range(2):
        Image.fromarray(picture).save(tmp_path / f"{i}.png", exif=exif)
    assert folder(path=str(tmp_path), held_out=0.5).spec.shape == (3, 10, 4)


def test_a_folder_can_be_mapped(tmp_path):
    for i in range(4):
        paint(tmp_path / f"pictures/{i}.png", (i, 0, 0))
    load = partial(folder, path=str(tmp_path / "pictures"), root=str(tmp_path / "cache"), held_out=0.5)
    resident, mapped = load(), load(resident_gb=0)
    assert mapped.mapped and torch.equal(resident.train, mapped.train) and torch.equal(resident.test, mapped.test)


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data.path=.*nowhere is not a folder"):
        folder(path=str(tmp_path / "nowhere"))
    paint(tmp_path / "0.png", (0, 0, 0))
    with pytest.raises(UserError, match=r"has 1 picture .*too few.*data.held_out=0.5"):
        folder(path=str(tmp_path), held_out=0.5)
    paint(tmp_path / "1.png", (0, 0, 0), size=(7, 7))
    with pytest.raises(UserError, match=r"[01].png is of .* pixels and others of .*data.size="):
        folder(path=str(tmp_path), held_out=0.5)
    paint(tmp_path / "cat/2.png", (0, 0, 0))
    with pytest.raises(UserError, match="holds pictures beside folders"):
        folder(path=str(tmp_path), held_out=0.5)
    (tmp_path / "cat/2.png").write_bytes(b"\x89PNG cut short")
    (tmp_path / "0.png").unlink(), (tmp_path / "1.png").unlink()
    paint(tmp_path / "cat/3.png", (0, 0, 0))
    with pytest.raises(UserError, match=r"2.png is not a picture that can be read"):
        folder(path=str(tmp_path), held_out=0.5)


def beside(folder_: Path, **names: int) -> str:
    """So many pictures in each folder, every one of its own colour."""
    for i, (name, count) in enumerate(names.items()):
        for j in range(count):
            paint(folder_ / name.replace("__", "/") / f"{j}.png", (i, j, 0))
    return str(folder_)


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation", "Val", "TEST"])
def test_a_held_out_folder_is_the_split_whatever_it_is_called(tmp_path, held_out):
    data = folder(path=beside(tmp_path, train__cat=3, train__dog=2, **{f"{held_out}__cat": 1, f"{held_out}__dog": 4}))
    assert (len(data.train), len(data.test), data.classes) == (5, 5, 2)
    assert data.test[:, 0, 0, 0].unique().tolist() == [2, 3] and data.test_labels.tolist() == [0, 1, 1, 1, 1]
    assert data.remark == ("" if held_out.lower() == "test" else f"tested on those in {held_out.lower()}")


def test_training_and_testing_are_the_split_too(tmp_path):
    data = folder(path=beside(tmp_path, training__cat=3, training__dog=2, Testing__cat=1, Testing__dog=4))
    assert (len(data.train), len(data.test), data.classes) == (5, 5, 2) and data.remark == ""
    beside(tmp_path / "above", below__training__cat=2, below__testing__cat=2)
    with pytest.raises(UserError, match="below holds folders testing and training, and a split stands at the top"):
        folder(path=str(tmp_path / "above"))


def test_what_is_left_out_is_said(tmp_path):
    (tmp_path / "readme.txt").write_text("not a picture")
    (tmp_path / "photo.heic").write_text("nor one that can be read")
    data = folder(path=beside(tmp_path, train=3, test=2, val=4, valid=1))
    assert (len(data.train), len(data.test), len(data.validation), data.classes) == (3, 2, 4, 0)
    assert data.validated.name == f"{data.name}-validation" and data.validation[:, 0, 0, 0].tolist() == [2] * 4
    assert "left out, being no pictures: 1 .txt, 1 .heic" in data.about or "1 .heic, 1 .txt" in data.about
    assert "1 picture in valid left out, for those in test are tested on" in data.about
    assert "3 + 2 images (and 4 to validate on)" in data.about
    with pytest.raises(UserError, match="data.validation must be 0: the images bring a validation set"):
        folder(path=str(tmp_path), validation=1)


def test_what_systems_leave_beside_files_is_passed_over(tmp_path):
    beside(tmp_path, cat=4, dog=4)
    for name in "cat/._0.png", ".hidden.png", "__MACOSX/cat/0.png":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    data = folder(path=str(tmp_path), held_out=0.25)
    assert (len(data.train), len(data.test), data.classes) == (6, 2, 2)
    assert data.remark == "2 hidden files passed over"


def test_train_alone_is_no_class(tmp_path):
    data = folder(path=beside(tmp_path, train__cat=5, train__dog=5), held_out=0.2)
    assert (len(data.train), len(data.test), data.classes) == (8, 2, 2)
    assert data.remark == "no folder test, val, valid, validation: 20% of train are held out"


def test_a_train_among_vehicles_is_a_class(tmp_path):
    assert folder(path=beside(tmp_path, car=5, plane=5, train=5)).classes == 3


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"test": 2, "cat": 2}, "has a folder test and none called train"),
        ({"val": 2}, "has a folder val and none called train"),
        ({"train": 2, "test": 2, "extra": 2}, r"holds extra/0.png beside folders for training and testing"),
        ({"train": 2, "val": 2, ".": 2}, r"holds 0.png beside folders for training and testing"),
        ({"data__train": 2, "data__val": 2}, r"data holds folders train and val.*set data.path=.*/data"),
        ({"cat__train": 2, "cat__test": 2, "dog__train": 2}, "cat holds folders test and train"),
    ],
)
def test_splits_that_contradict_one_another_are_one_line(tmp_path, names, says):
    with pytest.raises(UserError, match=says):
        folder(path=beside(tmp_path, **names), held_out=0.5)


def test_linked_folders_are_followed_and_pipes_are_not_waited_for(tmp_path):
    beside(tmp_path / "elsewhere", cat=3, dog=3)
    (tmp_path / "mine").mkdir()
    for name in "cat", "dog":
        (tmp_path / "mine" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "mine/cat/again").symlink_to(tmp_path / "mine")  # a circle
    data = folder(path=str(tmp_path / "mine"), held_out=0.5)
    assert len(data.train) + len(data.test) == 6 and data.classes == 2
    os.mkfifo(tmp_path / "mine/dog/pipe.png")
    with pytest.raises(UserError, match=r"pipe.png is not a regular file"):
        folder(path=str(tmp_path / "mine"), held_out=0.5)


# -- whatever a picture is stored as


def png16(path: Path, pixels: np.ndarray, kind: int) -> None:
    """Written by hand, for Pillow writes no colours of 16 bits: kind 2 of RGB, 4 of grey and alpha, 6 of RGBA."""
    h, w = pixels.shape[:2]
    part = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = part(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b""))


DEEP = [0, 128, 129, 25_700, 25_828, 25_829, 32_767, 32_768, 65_535]
NEAREST = [0, 0, 1, 100, 100, 101, 127, 128, 255]  # of 65,535 in 255: round(x / 257)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_greys_of_16_bits_are_rounded_to_the_nearest(tmp_path, suffix):
    Image.fromarray(np.array([DEEP], np.uint16)).save(tmp_path / f"0.{suffix}")
    assert pictured(tmp_path / f"0.{suffix}", None, True)[0, 0].tolist() == NEAREST
    assert pictured(tmp_path / f"0.{suffix}", None, False)[:, 0].tolist() == [NEAREST] * 3


def test_big_endian_and_inverted_greys_of_16_bits(tmp_path):
    Image.fromarray(np.array([DEEP], ">u2")).save(tmp_path / "0.tif")
    assert pictured(tmp_path / "0.tif", None, True)[0, 0].tolist() == NEAREST
    Image.fromarray(np.array([DEEP], np.uint16)).save(tmp_path / "1.tif", tiffinfo={262: 0})
    assert pictured(tmp_path / "1.tif", None, True)[0, 0].tolist() == [255 - x for x in NEAREST]


def test_colours_of_16_bits_are_rounded_to_the_nearest(tmp_path):
    red = np.array(DEEP)
    png16(tmp_path / "0.png", np.stack([red, red[::-1], 0 * red], -1)[None], 2)
    assert pictured(tmp_path / "0.png", None, False)[:, 0].tolist() == [NEAREST, NEAREST[::-1], [0] * 9]
    png16(tmp_path / "1.png", np.array([[[0, 0], [0, 65_535], [0, 32_768], [51_400, 65_535]]]), 4)
    assert pictured(tmp_path / "1.png", None, True)[0, 0].tolist() == [255, 0, 127, 200]


def test_floats_from_0_to_1_are_greys_and_others_are_one_line(tmp_path):
    Image.fromarray(np.array([[0, 0.25, 0.5, 1]], np.float32)).save(tmp_path / "0.tif")
    assert pictured(tmp_path / "0.tif", None, True)[0, 0].tolist() == [0, 64, 128, 255]
    for i, wrong in enumerate([[0, 255], [-0.1, 1], [0, math.nan], [0, math.inf]]):
        Image.fromarray(np.array([wrong], np.float32)).save(tmp_path / f"wrong{i}.tif")
        with pytest.raises(
            UserError, match=rf"wrong{i}.tif has floating-point numbers from .*scale it to between them"
        ):
            pictured(tmp_path / f"wrong{i}.tif", None, True)
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "1.tif")
    with pytest.raises(UserError, match="1.tif has whole numbers of 32 bits"):
        pictured(tmp_path / "1.tif", None, True)


def transparent() -> dict[str, tuple[Image.Image, dict]]:
    """Pictures whose first pixel is clear and hides red or black, and whose second is an opaque grey of 100."""
    rgba = Image.fromarray(np.array([[[255, 0, 0, 0], [100, 100, 100, 255]]], np.uint8))
    la = Image.fromarray(np.array([[[0, 0], [100, 255]]], np.uint8), "LA")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 100, 100, 100])
    grey, colour = Image.fromarray(np.array([[7, 100]], np.uint8)), rgba.convert("RGB")
    deep = Image.fromarray(np.array([[7, 25_700]], np.uint16))
    return {
        "rgba.png": (rgba, {}), "rgba.webp": (rgba, {"lossless": True, "exact": True}), "rgba.tif": (rgba, {}), "la.png": (la, {}),
        "palette.png": (palette, {"transparency": 0}), "palette.gif": (palette, {"transparency": 0}),
        "bytes.png": (palette, {"transparency": b"\x00\xff"}), "grey.png": (grey, {"transparency": 7}),
        "colour.png": (colour, {"transparency": (255, 0, 0)}), "deep.png": (deep, {"transparency": 7}),
    }  # fmt: skip


@pytest.mark.parametrize("name", transparent())
def test_what_is_transparent_lies_on_the_background(tmp_path, name):
    picture, how = transparent()[name]
    picture.save(tmp_path / name, **how)
    assert pictured(tmp_path / name, None, False)[:, 0].tolist() == [[255, 100]] * 3
    assert pictured(tmp_path / name, None, True, "black")[0, 0].tolist() == [0, 100]


def test_half_transparent_pixels_are_mixed(tmp_path):
    Image.fromarray(np.array([[[10, 20, 30, 128], [0, 0, 0, 1]]], np.uint8)).save(tmp_path / "0.png")
    on_white = [[round((128 * c + 127 * 255) / 255), 254] for c in (10, 20, 30)]
    assert pictured(tmp_path / "0.png", None, False)[:, 0].tolist() == on_white
    data = folder(path=beside(tmp_path / "two", cat=4), background="black", held_out=0.5)
    assert unmarked(data) == "two-3x4x6-256-on-black"


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "seen"),
    [
        ("1", "png", 1, (255, 255, 255)),
        ("L", "png", 77, (77, 77, 77)),
        ("P", "gif", 0, (0, 0, 0)),
        ("CMYK", "tif", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", "tif", (255, 255, 255, 255), (0, 0, 0)),
        ("YCbCr", "tif", (255, 128, 128), (255, 255, 255)),
        ("RGBA", "png", (9, 8, 7, 255), (9, 8, 7)),
    ],
)
def test_every_way_to_write_a_colour(tmp_path, mode, suffix, colour, seen):
    Image.new(mode, (2, 2), colour).save(tmp_path / f"0.{suffix}")
    assert tuple(pictured(tmp_path / f"0.{suffix}", None, False)[:, 0, 0].tolist()) == seen


def test_many_pictures_in_one_file_are_one_line(tmp_path):
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 100, 255)]
    for suffix in "gif", "tif", "png", "webp":
        frames[0].save(tmp_path / f"0.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match=rf"0.{suffix} holds 3 pictures; save each of them"):
            pictured(tmp_path / f"0.{suffix}", None, True)


@pytest.mark.filterwarnings("error")
def test_a_picture_too_large_to_be_one_is_refused_unread(tmp_path):
    Image.new("1", (30_000, 30_000)).save(tmp_path / "0.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "1.png")
    start = time.monotonic()
    for name in "0.png", "1.png":
        with pytest.raises(UserError, match=rf"{name} is not a picture that can be read \(Image size"):
            pictured(tmp_path / name, None, True)
    assert time.monotonic() - start < 2


def test_a_picture_turned_by_its_exif_stays_turned_however_it_is_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    Image.fromarray(np.array([[0, 65_535]], np.uint16)).save(tmp_path / "0.png", exif=exif)
    Image.fromarray(np.array([[[0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)).save(tmp_path / "1.png", exif=exif)
    Image.fromarray(np.array([[0, 65_535]], np.uint16)).save(tmp_path / "2.tif", tiffinfo={0x0112: 6})
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "3.tif", tiffinfo={0x0112: 6})
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "4.webp", lossless=True, exif=exif)
    for name in "0.png", "1.png", "2.tif", "3.tif", "4.webp":
        assert pictured(tmp_path / name, None, True)[0].tolist() == [[0], [255]]


def test_programs_are_not_started_for_a_picture(tmp_path):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "0.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(UserError, match="0.png is not a picture that can be read"):
        pictured(tmp_path / "0.png", None, True)


def test_grey_pictures_and_frames_are_binarised_too(tmp_path):
    for i, shade in enumerate((127, 128)):
        paint(tmp_path / f"mine/{i}.png", (shade,) * 3)
    data = folder(path=str(tmp_path / "mine"), grey=True, held_out=0.5, protocol="threshold")
    assert {*data.train.unique().tolist(), *data.test.unique().tolist()} == {0, 1} and data.levels == 2
    path = played(tmp_path / "played", [episode(100 * i) for i in range(3)], False)
    cut = recorded(path=path, size=2, held_out=0.4, protocol="threshold")
    assert cut.levels == 2 and cut.name.endswith("-1x2x2-8-threshold")
    seen = torch.cat([cut.train, cut.test])[:, 0, 0, 0].tolist()
    assert sorted(seen) == [0] * 8 + [1] * 4
    anew = recorded(path=path, size=2, held_out=0.4, protocol="dynamic", resident_gb=0, root=str(tmp_path / "cache"))
    assert anew.resampled and anew.mapped and anew.test.max() <= 1 and anew.train.max() > 1


def test_a_class_unknown_in_training_is_a_mistake(tmp_path):
    paint(tmp_path / "train/cat/0.png", (0, 0, 0))
    paint(tmp_path / "test/dog/0.png", (0, 0, 0))
    with pytest.raises(UserError, match="of class dog there are pictures to test on and none to train on"):
        folder(path=str(tmp_path))


# -- recordings


def played(folder_: Path, episodes: list[Episode], frames: bool, per_shard: int = 3, **about) -> str:
    index = {"format": recording.FORMAT, "frame_stack": 4, "frames": "own" if frames else None, "shards": [], **about}
    folder_.mkdir(exist_ok=True)
    for number, first in enumerate(range(0, len(episodes), per_shard)):
        shard = episodes[first : first + per_shard]
        index["shards"].append(recording.write_shard(folder_, number, shard, first))
    recording.write_index(folder_, index)
    return str(folder_)


def episode(number: int, steps: int = 3, size: int = 4, colour=None) -> Episode:
    """All its pixels are its own number, so that each frame says where it is from."""
    obs = np.full((steps + 1, size, size), number, np.uint8)
    frames = None if colour is None else np.broadcast_to(np.uint8(colour), (steps, size, size, 3)).copy()
    last = np.arange(steps) == steps - 1
    zeros = np.zeros(steps, np.float32)
    return Episode(obs, np.zeros(steps, np.int64), zeros, zeros, last, frames)


def test_whole_episodes_are_held_out(tmp_path):
    path = played(tmp_path, [episode(i, steps=2 + i % 3) for i in range(10)], False, env={"game": "pong"})
    data = recorded(path=path, size=2, levels=256, held_out=0.3)
    train, test = (set(x.flatten().tolist()) for x in (data.train, data.test))
    assert not train & test and train | test == set(range(10)) and len(test) == 3
    assert len(data.train) + len(data.test) == sum(3 + i % 3 for i in range(10))
    assert data.name == "pong-1x2x2-256" and data.spec == ((1, 2, 2), 256, 0)
    mapped = recorded(path=path, size=2, levels=256, held_out=0.3, resident_gb=0, root=str(tmp_path / "cache"))
    assert mapped.mapped and torch.equal(mapped.train, data.train) and torch.equal(mapped.test, data.test)


def test_frames_are_scaled_by_area_and_quantised(tmp_path):
    checks = np.array([[0, 100], [200, 60]], np.uint8).repeat(2, 0).repeat(2, 1)  # 4 x 4
    one = episode(0)
    one.obs[:] = checks
    path = played(tmp_path, [one, one], False)
    assert recorded(path=path, size=2, held_out=0.5).test[0, 0].tolist() == [[0, 3], [6, 1]]
    assert recorded(path=path, size=1, held_out=0.5, levels=256).test[0, 0].tolist() == [[90]]
    assert recorded(path=path, size=None, held_out=0.5, levels=256).test[0, 0].tolist() == checks.tolist()


def test_colours_or_their_luma(tmp_path):
    path = played(tmp_path, [episode(0, colour=(255, 0, 0)), episode(1, colour=(255, 0, 0))], True)
    load = partial(recorded, path=path, what="frames", size=2, held_out=0.5, levels=256)
    assert load().test[0, 0, 0].tolist() == [76, 76] and len(load().test) == 3
    assert load(grey=False).test[0, :, 0, 0].tolist() == [255, 0, 0]


def test_equal_pictures_count_once(tmp_path):
    path = played(tmp_path, [episode(i) for i in range(4)], False)
    data = recorded(path=path, size=2, levels=256, held_out=0.5, unique=True)
    assert (len(data.train), len(data.test)) == (2, 2) and data.name.endswith("-unique")


def test_a_wrong_recording_is_named(tmp_path):
    with pytest.raises(UserError, match="is not a recording"):
        recorded(path=str(tmp_path))
    path = played(tmp_path / "one", [episode(0)], False)
    with pytest.raises(UserError, match=r"has 1 episode\(s\), and data.held_out=0.1.*record more"):
        recorded(path=path)
    path = played(tmp_path / "two", [episode(0), episode(1)], False)
    with pytest.raises(UserError, match="holds no frames; record it with frames=true"):
        recorded(path=path, what="frames", held_out=0.5)
    vectors = episode(0)._replace(obs=np.zeros((4, 9), np.float32))
    path = played(tmp_path / "vectors", [vectors, vectors], False)
    with pytest.raises(UserError, match=r"observations are not pictures \(float32 \[9\]\).*data.what=frames"):
        recorded(path=path, held_out=0.5)


def test_the_cache_is_where_the_system_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_module.cache(None) == tmp_path / "gen_lab" and cache_module.cache("/x") == Path("/x")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_module.cache(None) == Path.home() / ".cache/gen_lab"


GREYS = np.arange(20 * 64).reshape(20, 8, 8) % 256


@pytest.mark.parametrize(
    "arrays",
    [
        {"x_train": GREYS / 1.0, "x_test": GREYS[:5] / 1.0, "y_train": np.arange(20) % 3, "y_test": np.arange(5) % 3},
        {"train": GREYS.reshape(20, 64), "test": GREYS[:5].reshape(5, 64)},
        {"arr_0": GREYS},
        {"images": GREYS / 1.0, "labels": np.arange(20) % 3},
        {"labels": np.arange(20) % 3, "pictures": GREYS / 1.0},
        {"data": GREYS.reshape(20, 64), "target": np.arange(20)[:, None] % 3},
        {"arr_0": GREYS, "arr_1": np.arange(20) % 3, "arr_2": GREYS[:5], "arr_3": np.arange(5) % 3},
        {"train": GREYS, "other": GREYS[:5], "names": np.array(["a", "b"])},
        {"X_train": GREYS, "X_test": GREYS[:5], "Y_train": np.arange(20) % 3, "Y_test": np.arange(5) % 3},
        {
            "train": GREYS,
            "test": GREYS[:5],
            "val": GREYS[:7],
            "y_train": np.arange(20) % 3,
            "y_test": np.arange(5) % 3,
            "y_val": np.arange(7) % 3,
        },
    ],
)
def test_the_line_that_is_shown_makes_the_arrays_right(tmp_path, monkeypatch, arrays):
    monkeypatch.chdir(tmp_path)
    np.savez("yours.npz", **arrays)
    with pytest.raises(UserError) as error:
        npz(path="yours.npz")
    line = str(error.value).partition("x = np.load")
    exec(f"{line[1]}{line[2]}".replace("H, W", "8, 8"), {"np": np})
    made = next(tmp_path.glob("images.np?"))
    data = npz(path=str(made))
    one = sum(array.ndim > 1 and array.shape[1] > 1 for array in arrays.values()) == 1
    assert (len(data.train), len(data.test)) == ((18, 2) if one else (20, 5))
    assert data.classes == (3 if {"y_train", "Y_train", "labels", "target", "arr_1"} & {*arrays} else 0)
    assert data.train.max() > 200
    assert (data.validation is not None) == ("val" in arrays)


def test_the_line_that_is_shown_keeps_the_levels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("yours.npz", train=GREYS % 2, test=GREYS[:5] % 2, levels=2)
    with pytest.raises(UserError, match="levels=x\\['levels'\\]") as error:
        npz(path="yours.npz")
    exec("x = np.load" + str(error.value).partition("x = np.load")[2], {"np": np})
    assert npz(path="images.npz").levels == 2


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    np.save(tmp_path / "a.npy", np.uint8(GREYS))
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    np.savez(tmp_path / "b.npz", train=np.uint8(GREYS), test=np.uint8(GREYS[:5]))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    assert len(npz(path=str(tmp_path / "A.NPY")).train) == 18 and len(npz(path=str(tmp_path / "b.npy")).train) == 20
