"""Measures of samples: against closed forms and brute force, on digits spoilt in known ways, and by the command line."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from stated import stated
from torch import Tensor
from torch.nn import functional as F

from gen_lab.__main__ import COMMANDS
from gen_lab.data import Images
from gen_lab.judging import distances
from gen_lab.judging import judge as judging
from gen_lab.judging.classes import class_coverage
from gen_lab.judging.features import Net
from gen_lab.judging.judge import lesson, three_splits
from gen_lab.judging.seeing import Seen
from gen_lab.models.independent import Independent
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.core.run import Run

Judge = stated("judge/random")
digits = stated("data/digits")
fit = stated("loop/fit", iwae_samples=0)
classifier = stated("judge/classifier", "features")
random = stated("judge/random", "features")

CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.double)


# -- distances


def with_moments(mean: Tensor, cov: Tensor, count: int = 50) -> Tensor:
    """Vectors whose own mean and covariance (over count - 1) are exactly these."""
    x = normal(count, len(mean))
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T
    return mean + white @ torch.linalg.cholesky(cov).T


def test_frechet_distance_of_diagonal_gaussians():
    """|(1, 2)|^2 + (1 - 3)^2 + (2 - 4)^2 = 13."""
    a = with_moments(torch.zeros(2).double(), torch.tensor([1.0, 4]).double().diag())
    b = with_moments(torch.tensor([1.0, 2]).double(), torch.tensor([9.0, 16]).double().diag())
    assert distances.frechet_distance(a, b).item() == pytest.approx(13, abs=1e-9)
    assert distances.frechet_distance(b, a).item() == pytest.approx(13, abs=1e-9)
    assert distances.frechet_distance(a, a).item() == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_gaussians_of_the_same_axes():
    axes = torch.linalg.qr(normal(3, 3)).Q
    a, b = (axes * torch.tensor(s).double() @ axes.T for s in ([1.0, 4, 9], [16.0, 4, 25]))
    got = distances.gaussian_frechet_distance(torch.zeros(3), a, torch.zeros(3), b)
    assert got.item() == pytest.approx((1 - 4) ** 2 + 0 + (3 - 5) ** 2, abs=1e-9)


def test_frechet_distance_of_any_two_gaussians():
    x, y = normal(5, 5, seed=1), normal(5, 5, seed=2)
    a, b = x @ x.T + 0.1 * torch.eye(5), y @ y.T + 0.1 * torch.eye(5)
    assert (a @ b - b @ a).abs().max() > 1
    mean = normal(5, seed=3)
    expected = mean.square().sum() + (a + b).trace() - 2 * np.trace(sqrtm((a @ b).numpy())).real
    got = distances.frechet_distance(with_moments(torch.zeros(5).double(), a), with_moments(mean, b))
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)


def test_kernel_distance_by_hand():
    a, b = normal(6, 4), normal(9, 4, seed=1) + 0.5

    def kernel(x, y):
        return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / 4 + 1) ** 3

    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert distances.kernel_distance(a, b).item() == pytest.approx(sum(within) - 2 * between, rel=1e-12)


def test_mmd_by_hand():
    a, b = normal(6, 4), normal(9, 4, seed=1) + 0.5
    bandwidth = sorted(math.dist(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i < j)[7]

    def kernel(x, y):
        return math.exp(-(math.dist(x, y) ** 2) / (2 * bandwidth**2))

    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert distances.mmd(a, b).item() == pytest.approx(sum(within) - 2 * between, rel=1e-9)
    mostly_one = torch.cat([a[:1].expand(40, -1), a])
    assert 0 < distances.mmd(mostly_one, b) < 2 and distances.mmd(a[:1].expand(9, -1), a[:1].expand(9, -1)) == 0


@pytest.mark.parametrize("measure", [distances.kernel_distance, distances.mmd])
def test_between_equal_distributions_the_mean_is_zero(measure):
    values = torch.stack([measure(normal(20, 4, seed=2 * i), normal(30, 4, seed=2 * i + 1)) for i in range(400)])
    assert values.mean().abs() < 4 * values.std() / 400**0.5
    assert values.min() < 0 < values.max()


def shares_by_hand(reference: np.ndarray, samples: np.ndarray, k: int) -> dict[str, float]:
    def reach(x):
        return [sorted(math.dist(p, q) for j, q in enumerate(x) if j != i)[k - 1] for i, p in enumerate(x)]

    real, fake = reach(reference), reach(samples)
    apart = [[math.dist(r, s) for r in reference] for s in samples]
    n, m = len(reference), len(samples)
    return {
        "precision": np.mean([any(apart[i][j] <= real[j] for j in range(n)) for i in range(m)]),
        "recall": np.mean([any(apart[i][j] <= fake[i] for i in range(m)) for j in range(n)]),
        "density": sum(apart[i][j] <= real[j] for i in range(m) for j in range(n)) / (k * m),
        "coverage": np.mean([any(apart[i][j] <= real[j] for i in range(m)) for j in range(n)]),
    }


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_density_coverage_by_hand(k):
    reference, samples = normal(25, 3), 0.6 * normal(14, 3, seed=1) + 0.7
    got = distances.precision_recall_density_coverage(reference, samples, k)
    expected = shares_by_hand(reference.numpy(), samples.numpy(), k)
    assert {name: x.item() for name, x in got.items()} == pytest.approx(expected)
    assert len({round(x, 6) for x in expected.values()}) == 4  # so that none stands in for another


def test_coverage_alone_misses_a_collapse():
    """Samples that keep a fifth of the spread: only recall and density tell."""
    got = distances.precision_recall_density_coverage(normal(1000, 64), 0.2 * normal(1000, 64, seed=1))
    assert got["precision"] == 1 and got["recall"] == 0 and got["coverage"] == 1
    assert 180 < got["density"] < 200


def test_shares_of_two_sets_of_one_distribution():
    got = distances.precision_recall_density_coverage(normal(1000, 64), normal(1000, 64, seed=1))
    assert 0.66 < got["precision"] < 0.76 and 0.66 < got["recall"] < 0.76
    assert 0.92 < got["density"] < 1.08 and 0.95 < got["coverage"] < 0.99


def test_a_sample_on_the_edge_of_a_ball_lies_within(monkeypatch):
    """Of copies each ball of the reference holds its centre and k neighbours, the last of them on its edge."""
    monkeypatch.setattr(distances, "AT_ONCE", 20_000)
    reference = normal(601, 64)
    copies = (reference * (1 + 1e-7 * normal(601, 64, seed=1)))[torch.randperm(601, generator=rng())]
    got = distances.precision_recall_density_coverage(reference, copies)
    assert {name: x.item() for name, x in got.items()} == {"precision": 1, "recall": 1, "density": 1.2, "coverage": 1}


def test_blocks_change_nothing(monkeypatch):
    a, b = normal(43, 5), normal(31, 5, seed=1) + 0.3

    def everything():
        shares = distances.precision_recall_density_coverage(a, b, 2)
        return [distances.kernel_distance(a, b), distances.mmd(a, b), *shares.values(), *distances.nearest(b, a)]

    whole = everything()
    for pairs in 1, 100, 43 * 30:  # rows of one, of a few, all but the last
        monkeypatch.setattr(distances, "AT_ONCE", pairs)
        assert all(len(x) * 43 <= max(pairs, 43) for x in distances.blocks(b, 43))
        for got, expected in zip(everything(), whole, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_nearest():
    train = torch.tensor([[0.0, 0], [3, 4], [10, 0]])
    apart, index = distances.nearest(torch.tensor([[3.0, 3], [9, 0], [0, 0]]), train)
    assert apart.tolist() == [1, 1, 0] and index.tolist() == [1, 2, 0]


def test_equal_images_are_no_distance_apart():
    """Though float32 features of the same image may differ in the last digits, and squares cancel."""
    x = 30 * normal(200, 64).float()
    apart, index = distances.nearest(x * (1 + 3e-7), x)
    assert (apart == 0).all() and torch.equal(index, torch.arange(200))


def test_memorised_is_a_share_of_the_samples():
    train, held_out, fresh = normal(500, 8), normal(500, 8, seed=1), normal(500, 8, seed=2)
    samples = torch.cat([train[:150], fresh[:350]])  # 30 % are copies
    (own, _), (near, _), (far, _) = (distances.nearest(x, train) for x in (held_out, samples, fresh))
    assert distances.memorised(own, own).item() == pytest.approx(0.05, abs=0.003)
    assert distances.memorised(far, own).item() == pytest.approx(0.05, abs=0.03)
    assert distances.memorised(near, own).item() == pytest.approx(0.3 + 0.7 * 0.05, abs=0.03)
    assert distances.memorised(torch.zeros(9), torch.zeros(9)) == 1  # ties count: a copy is a copy


def test_class_coverage():
    reference = torch.arange(10).repeat(10)
    samples = torch.cat([torch.arange(5).repeat(20), torch.tensor([7])])  # one of the seventh, by mistake
    got = class_coverage(samples, reference)
    p = 20 / 101
    assert got["classes_covered"] == 5
    assert class_coverage(torch.cat([samples, torch.full((5,), 8)]), reference)["classes_covered"] == 5  # 5 of 106
    assert class_coverage(torch.cat([samples, torch.full((6,), 8)]), reference)["classes_covered"] == 6  # 6 of 107
    assert got["class_kl_nats"].item() == pytest.approx(5 * p * math.log(p / 0.1) + math.log(1 / 10.1) / 101)
    assert class_coverage(reference, reference) == {"classes_covered": 10, "class_kl_nats": pytest.approx(0)}
    assert class_coverage(torch.full((7,), 3), reference)["class_kl_nats"].item() == pytest.approx(math.log(10))


# -- three splits


def numbered(first: int, count: int) -> Tensor:
    """Images [N, 1, 2, 8] of two levels whose pixels spell their number."""
    number = torch.arange(first, first + count)
    return (number[:, None] >> torch.arange(16) & 1).to(torch.uint8).view(-1, 1, 2, 8)


def spelt(x: Tensor) -> Tensor:
    return (x.flatten(1).long() << torch.arange(16)).sum(1)


class Numbers:
    """Features that tell which image it was."""

    name = "numbers"

    def __init__(self, images: Images, told=None):
        self.lesson = images

    def __call__(self, x: Tensor) -> Seen:
        return Seen(torch.stack([spelt(x), torch.ones(len(x))], 1).float(), None)


def labelled(train: int = 700, test: int = 300, **more) -> Images:
    labels = [torch.arange(n) % 3 for n in (train, test)]
    return Images("numbered", numbered(0, train), numbered(1000, test), 2, *labels, 3, **more)


def test_no_image_is_in_two_splits():
    judge = Judge(labelled(), features=Numbers, at_most=10_000)
    taught = set(spelt(judge.net.lesson.train).tolist())
    reference, held_out = (set(x.features[:, 0].long().tolist()) for x in (judge.reference, judge.held_out))
    assert len(taught) == len(held_out) == 150 and taught | held_out == set(range(1000, 1300))
    assert reference == set(range(700))  # the last, partial batch included
    assert len(judge.net.lesson.test) == 0
    assert torch.equal(judge.net.lesson.train_labels, (spelt(judge.net.lesson.train) - 1000) % 3)
    assert judge.samples == 150  # as many as the floor is made of


def test_splits_are_bounded_and_drawn_from_all_classes():
    """A folder's images come class by class: the first ones would be of one class alone."""
    data = labelled()
    in_order = data._replace(test_labels=torch.arange(300) // 100)
    taught, reference, held_out = three_splits(in_order, 60)
    assert [len(x) for x in (taught, reference, held_out)] == [60, 60, 60]
    assert len(set(in_order.test_labels[taught].tolist())) == len(set(in_order.test_labels[held_out].tolist())) == 3
    judge = Judge(data, features=Numbers, at_most=60)
    assert len(judge.reference.features) == 60 and len(judge.train.features) == 700
    assert judge.record["nearest_among"] == 700 and judge.record["reference"] == 60
    copies = judge.see(numbered(0, 700))  # of which the reference knows but 60
    assert judge.measured(copies)["memorised"] == 1 and judge.measured(copies)["nearest"] == 0


class Stamp:
    """Always the same numbers; notes how it was asked."""

    def __init__(self, classes: int = 0):
        self.spec, self.asked, self.labels = Spec((1, 2, 8), 2, classes), [], []

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        self.asked.append(count)
        self.labels += [] if label is None else label.tolist()
        return numbered(sum(self.asked) - count, count)


def test_every_sample_counts():
    model, judge = Stamp(), Judge(labelled(), features=Numbers, samples=600)
    metrics = judge(model, rng())
    assert model.asked == [256, 256, 88]
    assert torch.equal(spelt(judge.draw(Stamp(), rng())), torch.arange(600))
    assert metrics["eval/memorised[numbered-numbers]"] == 1 and metrics["eval/nearest[numbered-numbers]"] == 0
    assert metrics["eval/recall[numbered-numbers]"] > 0.8
    assert "eval/frechet_floor[numbered-numbers]" in metrics


def test_conditional_models_are_asked_for_the_classes_of_training_images():
    data = labelled()._replace(train_labels=(torch.arange(700) < 70).long())  # a tenth of class 1, the rest of 0
    model, judge = Stamp(classes=3), Judge(data, features=Numbers, samples=600)
    judge.draw(model, rng())
    assert len(model.labels) == 600 and set(model.labels) == {0, 1} and 30 < sum(model.labels) < 90


def test_resampled_training_images_are_shown_as_bits():
    data = labelled()._replace(train=255 * numbered(0, 700), resampled=True)
    assert set(Judge(data, features=Numbers).train.features[:, 0].tolist()) == set(range(700))


def test_neighbours_show_the_closest_first():
    judge = Judge(labelled(), features=Numbers)
    images = numbered(695, 9)  # 695 to 699 are copies
    pairs = spelt(judge.neighbours(images, 7)).view(7, 2)
    assert (pairs[:5, 0] == pairs[:5, 1]).all() and set(pairs[:5, 0].tolist()) == set(range(695, 700))
    assert pairs[5:].tolist() == [[700, 699], [701, 699]]


def test_too_few_images_are_a_mistake():
    with pytest.raises(UserError, match="judge.k=5 needs 7 or more images in each split, and numbered leaves 6"):
        Judge(labelled(test=12), features=Numbers)
    with pytest.raises(UserError, match="judge.k=5 needs 7.*leaves 4"):
        Judge(labelled(), features=Numbers, samples=4)


# -- on digits


@pytest.fixture(scope="module")
def data() -> Images:
    return digits(protocol="levels", train=600)


@pytest.fixture(scope="module")
def judge(data) -> Judge:
    return Judge(data, features=partial(classifier, updates=200))


@pytest.fixture(scope="module")
def spoilt(data, judge) -> dict[str, dict[str, float]]:
    """Measures of the held-out digits themselves, spoilt in ways that get worse and worse."""
    held_out = three_splits(data, 10_000)[2]
    real, labels, train, draws = data.test[held_out], data.test_labels[held_out], data.train, rng()
    few = real[labels < 5]

    def noisy(sigma: float) -> Tensor:
        return data.spec.nearest(real / 16 + sigma * torch.randn(real.shape, generator=draws))

    def some(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (len(real),), generator=draws)]

    pixels = [some(train)[:, :, i, j] for i in range(8) for j in range(8)]
    sets = {
        "floor": real,
        "noise .05": noisy(0.05),
        "noise .2": noisy(0.2),
        "five classes missing": some(few),
        "independent pixels": torch.stack(pixels, -1).view(real.shape),
        "uniform noise": torch.randint(17, real.shape, generator=draws),
        "mean image": train.float().mean(0).round().expand(real.shape),
        "copies": some(train),
    }
    measures = {name: judge.measured(judge.see(x)) for name, x in sets.items()}
    return {name: {k: v.item() for k, v in found.items()} for name, found in measures.items()}


def test_digits_spoilt_more_are_further_away(spoilt, judge):
    print(*(f"{name:22} {x}" for name, x in spoilt.items()), sep="\n")
    order = [
        "floor",
        "noise .05",
        "noise .2",
        "five classes missing",
        "independent pixels",
        "uniform noise",
        "mean image",
    ]
    frechet = [spoilt[name]["frechet"] for name in order]
    assert frechet == sorted(frechet) and len(set(frechet)) == 7
    assert spoilt["floor"] == {name: x.item() for name, x in judge.floor.items()}
    assert (
        frechet[0] < 1
        and frechet[1] > 1.05 * frechet[0]
        and frechet[2] > 2 * frechet[0]
        and frechet[3] > 2 * frechet[2]
    )
    for measure in "kernel_distance", "mmd":
        values = [spoilt[name][measure] for name in order[:5]]
        assert values == sorted(values) and abs(values[0]) < 0.02


def test_what_is_missing_is_recalled_less_and_what_is_wrong_is_less_precise(spoilt):
    floor, missing, noise = (spoilt[name] for name in ("floor", "five classes missing", "uniform noise"))
    assert min(floor[name] for name in ("precision", "recall", "coverage")) > 0.9 and 0.85 < floor["density"] < 1.1
    assert missing["precision"] > 0.9 and missing["recall"] < 0.7 and missing["coverage"] < 0.7
    assert noise["precision"] < 0.7 and noise["coverage"] < 0.3


def test_classes_that_are_missing_are_told(spoilt):
    names = "floor", "noise .05", "noise .2", "copies", "five classes missing", "mean image"
    assert [spoilt[name]["classes_covered"] for name in names] == [10, 10, 10, 10, 5, 1]
    assert spoilt["floor"]["class_kl_nats"] < 0.03
    assert 0.4 < spoilt["five classes missing"]["class_kl_nats"] < math.log(2)  # less for the classifier's mistakes


def test_copies_are_told_from_fresh_digits(spoilt):
    """By their distances alone: every other measure finds them better than real."""
    assert spoilt["copies"]["memorised"] == 1 and spoilt["copies"]["nearest"] == 0
    assert spoilt["floor"]["memorised"] == pytest.approx(0.05, abs=0.01)
    assert all(x["memorised"] < 0.15 for name, x in spoilt.items() if name != "copies")
    assert spoilt["copies"]["frechet"] < spoilt["floor"]["frechet"]


def test_the_net_and_the_numbers_are_stated(judge, data):
    assert judge.record["accuracy"] > 0.93
    counts = [judge.record[k] for k in ("samples", "reference", "held_out", "taught_on")]
    assert counts == [599, 600, 599, 598] and judge.record["reference_split"] == "train"
    assert re.fullmatch(r"comparing 599 samples with 600 training images, beside 599 held-out ones; "
                        rf"features {judge.net.name}, a classifier right on 9\d\.\d%", judge.about)  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{8}", judge.net.name)
    assert list(judge.named(judge.floor))[0] == f"eval/frechet[digits-levels-600-{judge.net.name}]"


def test_features_learn_from_half_of_the_test_set_alone(data):
    taught, _, held_out = three_splits(data, 10_000)
    changed = data._replace(train=16 - data.train, test=data.test.index_copy(0, held_out, 16 - data.test[held_out]))
    assert torch.equal(lesson(data, taught).train, lesson(changed, taught).train)
    assert Judge(changed, features=random).net.name == Judge(data, features=random).net.name
    assert not lesson(data._replace(flipped=True), taught).flipped


# -- the same on every machine


FIGURES = "frechet", "kernel_distance", "mmd", "recall"
ELSEWHERE = f"""
from functools import partial
from stated import stated
Judge, digits = stated("judge/random"), stated("data/digits")
classifier, random = stated("judge/classifier", "features"), stated("judge/random", "features")
for features in partial(classifier, updates=20), random:
    judge = Judge(digits(protocol="levels", train=600), features=features)
    print(judge.net.name, *(judge.floor[name].item() for name in {FIGURES}))
"""


@pytest.mark.slow
def test_the_net_is_the_same_whatever_library_takes_its_sums(data):
    """Bit for bit, and its distances to what float32 holds. Kernels without vector instructions stand for another
    machine; the names are those on the machine where this was written.
    """
    plain = os.environ | {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        capture_output=True,
        text=True,
        check=True,
        env=plain,
        cwd=Path(__file__).parent,
    ).stdout
    names = []
    for line, features in zip(said.splitlines(), (partial(classifier, updates=20), random), strict=True):
        here, (name, *there) = Judge(data, features=features), line.split()
        assert name == here.net.name
        figures = [here.floor[figure].item() for figure in FIGURES]
        assert [*map(float, there)] == pytest.approx(figures, rel=1e-5, abs=1e-7)
        names.append(name)
    assert names == ["70ba8ee2", "random-eb1112d2"]


def test_sums_are_exact_in_any_order(data):
    """Of images in another order, every gradient is the same to the last bit; plain float64 differs."""
    x, label = data.train[:64], data.train_labels[:64]
    net, shuffled = Net(data.spec, 0), torch.randperm(64, generator=rng())

    def gradients(order: Tensor) -> list[Tensor]:
        off = net.logits(x[order]) - F.one_hot(label[order], 10)
        return [*torch.autograd.grad((off * off).sum(), [*net.parameters()])]

    for a, b in zip(gradients(torch.arange(64)), gradients(shuffled), strict=True):
        assert torch.equal(a, b) and a.abs().sum() > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gen_lab.judging.features.rounded", lambda x, grid: x)
        pairs = zip(gradients(torch.arange(64)), gradients(shuffled), strict=True)
        assert not all(torch.equal(a, b) for a, b in pairs)


def test_features_that_never_vary_are_no_nan(data):
    grey = data._replace(train=torch.full((30, 1, 1, 1), 8, dtype=torch.uint8), train_labels=None, classes=0)
    net = random(grey)
    assert net(torch.full((3, 1, 1, 1), 8)).features.abs().max() < 1e-2  # but for the rounding of what it saw


def test_what_a_net_sees_in_many_images_is_kept(tmp_path, monkeypatch):
    """And other images are seen anew."""
    monkeypatch.setattr(judging, "KEPT_FROM", 100)
    seen = []

    class Counting(Numbers):
        def __call__(self, x):
            seen.append(len(x))
            return super().__call__(x)

    judged = partial(Judge, features=Counting, root=str(tmp_path))
    first = judged(labelled())
    assert sum(seen) > len(labelled().train)
    seen.clear()
    again = judged(labelled())
    assert not seen and again.floor.keys() == first.floor.keys()
    assert all(torch.equal(again.floor[name], x) for name, x in first.floor.items())
    changed = labelled()
    judged(changed._replace(train=1 - changed.train))
    assert seen


# -- in a run


independent = partial(Independent, smoothing=0.5)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_judged_at_each_evaluation_and_resumes_to_the_same_figures(tmp_path, data):
    judged = partial(Judge, features=random, samples=50)

    def fitted(folder: Path, steps: int) -> list[dict]:
        with Run(folder, 0, "cpu", names={"name": "test"}, config={}) as run:
            fit(data, independent, run, batch_size=64, total_steps=steps, eval_every=10, pictured=0, judge=judged)
        return [{k: v for k, v in row.items() if k.endswith("]") or k == "step"} for row in rows(folder)]

    whole = fitted(tmp_path / "whole", 20)
    fitted(tmp_path / "short", 13)
    assert fitted(tmp_path / "short", 20) == whole
    figures = [row for row in whole if any("frechet[" in k for k in row)]
    assert [row["step"] for row in figures] == [0, 10, 20]
    names = {re.sub(r"\[.*", "", k) for k in figures[0] if "random-" in k}
    assert names == {f"eval/{k}" for k in ("frechet", "frechet_floor", "kernel_distance", "mmd", "precision", "recall",
                                           "density", "coverage", "memorised", "nearest")}  # fmt: skip
    assert len({figures[0][k] for k in figures[0] if "frechet[" in k}) == 1


def gen_lab(*arguments: str) -> int:
    return cli.main("gen-lab", "gen", COMMANDS, list(arguments))


TRAIN = "train", "tracker=none", "device=cpu", "loop.total_steps=3", "loop.eval_every=3"
QUICK = "judge=classifier", "judge.features.updates=60"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vae"
    assert gen_lab(*TRAIN, *QUICK, "experiment=vae_digits", "data.train=600", f"hydra.run.dir={folder}") == 0
    return folder


def test_evaluate_prints_samples_beside_the_floor(folder, capsys):
    assert gen_lab("evaluate", f"run={folder}", *QUICK, "iwae_samples=2", "device=cpu", "judge.samples=300") == 0
    record, printed = json.loads((folder / "evaluation.json").read_text()), capsys.readouterr().out
    judge = record["judge"]
    assert (judge["samples"], judge["reference"], judge["held_out"], judge["averaged"]) == (300, 600, 599, False)
    assert record["floor"].keys() == record["measures"].keys() and len(record["floor"]) == 11
    trained = rows(folder)[-1]
    for name in "frechet", "classes_covered":
        full = f"eval/{name}[digits-binarised-600-{judge['features']}]"
        assert (
            full in trained
            and f"{record['measures'][full]:.4f}" in printed
            and f"{record['floor'][full]:.4f}" in printed
        )
        assert full.removeprefix("eval/") in printed
    assert (
        trained[full.replace("classes_covered", "frechet_floor")]
        == record["floor"][full.replace("classes_covered", "frechet")]
    )
    assert "nll_bound_nats[digits-binarised-600]" in printed and "active_units[digits-binarised-600]" in printed
    assert "comparing 300 samples with 600 training images, beside 599 held-out ones" in printed
    with Image.open(folder / "neighbours.png") as picture:
        assert picture.width == 8 * 50 + 2 < picture.height  # what it shows stands below


def test_a_run_without_labels_is_scored_and_not_judged(tmp_path, capsys):
    small = "data=xor_chain", "data.train=200", "data.test=40", "model=independent", "loop.batch_size=20"
    assert gen_lab(*TRAIN, *small, f"hydra.run.dir={tmp_path}/x") == 0
    assert gen_lab("evaluate", f"run={tmp_path}/x", "device=cpu") == 0
    printed = capsys.readouterr().out
    assert "has no labels; use judge=random" in printed and "nll_nats" in printed and "held-out images" not in printed
    assert gen_lab("evaluate", f"run={tmp_path}/x", "device=cpu", "judge=random") == 0
    assert "frechet[xor_chain-8x8-0.1-random-" in capsys.readouterr().out
    assert gen_lab("evaluate", f"run={tmp_path}/x", "device=cpu", "judge=none") == 0
    record = json.loads((tmp_path / "x/evaluation.json").read_text())
    assert record["judge"] and record["measures"], "what was known of the samples of these weights stays"
    whole = (tmp_path / "x/evaluation.json").read_bytes()
    assert gen_lab("evaluate", f"run={tmp_path}/x", "device=cpu", "judge=none", "images=10") == 0
    assert (tmp_path / "x/evaluation.json").read_bytes() == whole
    assert json.loads((tmp_path / "x/evaluation_10.json").read_text())["images"] == 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data=xor_chain", "data.train=200", "judge=classifier"], "xor_chain-8x8-0.1 has no labels; use judge=random"),
        (["data=digits", "judge=inception"], r"judge=inception needs torch-fidelity.*pip install 'rl-lab\[fid\]'"),
        (["data=digits", "judge=classifier", "judge.samples=0"], "judge.samples=0 must be at least 1"),
        (["data=digits", "judge=classifier", "judge.k=200"], "judge.k=200 needs 202 or more images"),
        (["data=digits", "judge=classifer"], "did you mean judge=classifier"),
        (["data=digits", "data.train=1797"], "data.train=1797 leaves nothing to test on: there are 1797 digits"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert gen_lab(*TRAIN, *arguments, f"hydra.run.dir={tmp_path}/x") == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert re.search(says, errors[-1]) and len(errors) == 1
    assert not (tmp_path / "x").exists()
