"""The deeper classifier of large labelled sets, on a small one that counts as large here."""

import pytest
import torch
from stated import stated

from gen_lab.data import Images
from gen_lab.judging import deep, features
from gen_lab.judging.deep import shifted
from gen_lab.judging.judge import three_splits

SMALL = stated("judge/classifier", "features", updates=20)
Judge = stated("judge/classifier", samples=40, features=SMALL)


def bars(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright bar at a place that the label says, on noise: [N, 1, 16, 16] and [N]."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=rng)
    x = torch.randint(100, (count, 1, 16, 16), generator=rng, dtype=torch.uint8)
    for i, k in enumerate(label.tolist()):
        x[i, :, :, 2 + 5 * k : 5 + 5 * k] = 255
    return x, label


@pytest.fixture
def data(tmp_path, monkeypatch) -> Images:
    monkeypatch.setattr(features, "MANY", 200)
    monkeypatch.setattr(deep, "GREY", 4)
    monkeypatch.setattr(deep, "BATCH", 20)
    (train, label), (test, its_label) = bars(200, 0), bars(100, 1)
    return Images("bars", train, test, 256, label, its_label, 3, root=str(tmp_path / "data"))


def test_all_training_images_teach_and_halves_of_the_test_set_are_compared(data, tmp_path):
    judge = Judge(data)
    assert judge.record["accuracy"] > 0.95
    counts = [judge.record[name] for name in ("taught_on", "reference", "held_out", "reference_split")]
    assert counts == [200, 50, 50, "test"] and "with 50 test images, beside 50 held-out ones" in judge.about
    one, _, other = three_splits(data, 10_000)
    assert torch.equal(judge.reference.features, judge.net(data.test[one]).features)
    assert torch.equal(judge.held_out.features, judge.net(data.test[other]).features)
    raw = judge.net(data.test).features
    assert raw.mean(0).abs().max() < 0.02 and ((raw.std(0) - 1).abs() < 0.02).float().mean() > 0.5  # some are dead


def test_it_learns_once_and_is_kept_beside_the_data(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("rl_lab.core.progress.TOLD_EVERY", 0.0)
    monkeypatch.setattr(deep, "TOLD", 10)
    name = Judge(data, say=said.append).net.name
    assert any("the judge of samples learns, once, for it is kept: 10 of 40 updates" in words for words in said)
    assert len([*(tmp_path / "data/judges").glob("*.pt")]) == 1  # what it sees is kept of larger sets
    monkeypatch.setattr(deep, "learn", None)
    assert Judge(data).net.name == name
    with pytest.raises(TypeError):
        Judge(data._replace(train=255 - data.train))


def test_a_judge_of_few_images_is_what_it_was(data):
    assert type(Judge(data._replace(train=data.train[:150], train_labels=data.train_labels[:150])).net) is features.Net
    assert Judge(data, taught_on="test").record["reference_split"] == "train"


def test_images_are_moved_and_their_edges_repeated():
    x = torch.arange(36.0).view(1, 1, 6, 6).expand(500, 1, 6, 6)
    moved = shifted(x, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x[:1], (2, 2, 2, 2), mode="replicate")
    places = {(i, j): padded[0, :, i : i + 6, j : j + 6] for i in range(5) for j in range(5)}
    seen = [next(place for place, y in places.items() if torch.equal(y, z)) for z in moved]
    assert set(seen) == set(places)
