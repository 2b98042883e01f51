"""Data sets that need no network: what they hold, what they refuse, and that batches keep images and labels together."""

import math
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from gen_lab.data import Batches, Images, digits, folder, ising, npz, recorded, xor_chain
from gen_lab.data import cache as cache_module
from gen_lab.data.images import bits, quantised
from gen_lab.fit import evaluate
from gen_lab.models.vae import VAE, mlp_decoder, mlp_encoder
from gen_lab.types import Spec
from rl_lab.core import recording
from rl_lab.core.errors import UserError
from rl_lab.core.learner import generator
from rl_lab.core.recording import Episode

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
        assert (x * 255).round().long().flatten().tolist() == label.tolist()
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
    assert set(first.unique().tolist()) == {0.0, 1.0} and not torch.equal(first, second)
    mean = torch.stack([batches.draw()[0] for _ in range(200)]).mean()
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
    assert torch.equal(bits(pixels, generator(0, CPU)), pixels / 255)


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
    model = VAE(data.spec, CPU, 0, encoder=partial(mlp_encoder, hidden=4), decoder=partial(mlp_decoder, hidden=4),
                optimizer=partial(torch.optim.Adam), latents=1, beta=1.0)  # fmt: skip
    metrics = evaluate(model, data, seed=0)
    difference = metrics["eval/nll_bound_nats[ising-4x4-0.4]"] + data.log_prob(data.test).mean()
    assert metrics["eval/kl_bound_nats[ising-4x4-0.4]"].item() == pytest.approx(difference.item(), rel=1e-5)


# -- npz


def arrays(**changed) -> dict:
    rng = np.random.default_rng(0)
    usual = {"train": rng.integers(4, size=(7, 3, 5, 6), dtype=np.uint8), "levels": 4,
             "test": rng.integers(4, size=(3, 3, 5, 6), dtype=np.uint8)}  # fmt: skip
    return {k: v for k, v in (usual | changed).items() if v is not None}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("gigabytes", [8.0, 1e-7])
def test_npz(tmp_path, save, gigabytes):
    written = arrays(train_labels=np.arange(7) % 3, test_labels=np.array([2, 0, 1]))
    save(tmp_path / "mine.npz", **written)
    for _ in range(2):  # the second time from the map that is there
        data = npz(path=str(tmp_path / "mine.npz"), resident_gb=gigabytes, root=str(tmp_path / "cache"))
        assert data.name == "mine-3x5x6-4" and data.spec == ((3, 5, 6), 4, 3)
        assert np.array_equal(data.train, written["train"]) and np.array_equal(data.test, written["test"])
        assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and data.test_labels.tolist() == [2, 0, 1]
        assert data.mapped == (gigabytes < 1) == (tmp_path / "cache").exists()
    assert ("memory-mapped from disk" in data.told) == data.mapped and "7 + 3 images of 3 x 5 x 6" in data.told


def test_a_map_gives_the_same_batches(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    maps = [npz(path=str(tmp_path / "mine.npz"), resident_gb=gb, root=str(tmp_path)) for gb in (8, 0)]
    resident, mapped = (Batches(data.to(CPU), 3, seed=0) for data in maps)
    for _ in range(5):
        assert torch.equal(resident.draw()[0], mapped.draw()[0])


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
        ({"test": None}, "has no array 'test'; it needs train and test"),
        ({"levels": None}, "has no 'levels'"),
        ({"levels": 300}, "no 'levels' between 2 and 256"),
        ({"levels": 3}, "'train' goes up to 3, and of 3 levels the highest is 2"),
        ({"train": np.zeros((7, 5, 6), np.uint8)}, r"'train' is uint8 \[7, 5, 6\]; it must be uint8 \[N, C, H, W\]"),
        ({"train": np.zeros((7, 3, 5, 6))}, "'train' is float64"),
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
    with pytest.raises(UserError, match="nowhere.npz"):
        npz(path=str(tmp_path / "nowhere.npz"))
    np.savez(tmp_path / "evil.npz", **arrays(levels=np.array([{}], object)))
    with pytest.raises(UserError, match="evil.npz"):
        npz(path=str(tmp_path / "evil.npz"))


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
    assert data.name == f"{tmp_path.name}-3x4x6-256"
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
    with pytest.raises(UserError, match=r"has 1 pictures .*too few.*data.held_out=0.5"):
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
    with pytest.raises(UserError, match=r"observations are no pictures \(float32 \[9\]\).*data.what=frames"):
        recorded(path=path, held_out=0.5)


def test_the_cache_is_where_the_system_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_module.cache(None) == tmp_path / "gen_lab" and cache_module.cache("/x") == Path("/x")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_module.cache(None) == Path.home() / ".cache/gen_lab"
