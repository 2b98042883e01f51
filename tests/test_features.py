"""Nets that images are compared by: the same from the same seed, standardised, kept where they are slow to learn."""

import sys
from pickle import UnpicklingError
from types import ModuleType
from urllib.error import URLError

import pytest
import torch
from stated import stated

from gen_lab.data import Images
from gen_lab.judging import features
from gen_lab.judging.features import Inception, Net, inception
from gen_lab.judging.judge import lesson, three_splits
from gen_lab.judging.seeing import NoLabels, seen
from gen_lab.types import Spec
from rl_lab.core.errors import UserError

digits = stated("data/digits")
classifier = stated("judge/classifier", "features")
random = stated("judge/random", "features")


@pytest.fixture(scope="module")
def taught() -> Images:
    data = digits(protocol="levels", train=600)
    return lesson(data, three_splits(data, 10_000)[0])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_seed_and_the_images_make_the_net_and_nothing_else_does(taught):
    one = classifier(taught, updates=5)
    torch.rand(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = classifier(taught, updates=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert one.name == again.name == one.hash and len(one.name) == 8
    others = [
        classifier(taught, updates=6),
        classifier(taught, updates=5, seed=1),
        classifier(taught._replace(train=16 - taught.train), updates=5),
        classifier(taught._replace(train_labels=9 - taught.train_labels), updates=5),
    ]
    assert len({net.name for net in [one, *others]}) == 5


def test_building_a_net_leaves_the_global_stream_alone(taught):
    before = torch.random.get_rng_state()
    classifier(taught, updates=2)
    random(taught)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("build", [lambda x: classifier(x, updates=30), random])
def test_features_are_standardised_by_what_the_net_learned_from(taught, build):
    x = seen(build(taught), taught.train.split(100)).features.double()
    assert x.shape == (598, 64)
    grid = 2**-8  # four steps of its grid: it learns in numbers on a grid, and looks in float32 without one
    torch.testing.assert_close(x.mean(0), torch.zeros(64).double(), atol=grid, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(64).double(), atol=grid, rtol=0)


def test_a_classifier_tells_classes_and_a_random_net_does_not(taught):
    net, x = classifier(taught, updates=100), taught.train[:200]
    assert (net(x).classes == taught.train_labels[:200]).float().mean() > 0.9
    other = random(taught)
    assert other(x).classes is None and other.name == f"random-{other.hash}"


def test_a_net_slow_to_learn_is_kept(taught, tmp_path, monkeypatch):
    classifier(taught, updates=3)
    assert not list(tmp_path.rglob("*.pt"))
    monkeypatch.setattr(features, "KEPT_FROM", 1)
    learned = classifier(taught, updates=3)
    (kept,) = (tmp_path / "gen_lab/judges").glob("*.pt")
    monkeypatch.setattr(features, "learn", None)  # whoever learned now would fail
    found, x = classifier(taught, updates=3), taught.train[:50]
    assert found.name == learned.name and torch.equal(found(x).features, learned(x).features)
    with pytest.raises(TypeError):  # other images are another lesson
        classifier(taught._replace(train=16 - taught.train), updates=3)
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(UserError, match="delete it"):
        classifier(taught, updates=3)


def test_a_cache_that_cannot_be_written_is_no_obstacle(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "KEPT_FROM", 1)
    (tmp_path / "file").touch()
    assert classifier(taught, updates=3, root=str(tmp_path / "file")).name


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 28, 28), (3, 33, 64)])
def test_images_of_any_size(shape):
    spec = Spec(shape, 256, 4)
    pixels = torch.randint(256, (40, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = Images("toy", pixels, pixels[:0], 256, torch.arange(40) % 4, None, 4)
    assert Net(spec, 0).body(pixels[:2]).shape == (2, 64)
    assert seen(classifier(images, updates=2), [pixels]).features.isfinite().all()


def test_without_labels_there_is_no_classifier(taught):
    with pytest.raises(NoLabels, match="digits-levels-600 has no labels; use judge=random"):
        classifier(taught._replace(train_labels=None, classes=0))


def test_inception_without_torch_fidelity_is_a_users_mistake(taught, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"pip install 'rl-lab\[fid\]'"):
        inception(taught)


def standing_in(monkeypatch, extractor) -> None:
    """For torch-fidelity's own, which cannot be installed everywhere."""
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3, module.URL_INCEPTION_V3 = extractor, "https://somewhere/weights.pth"
    package = ModuleType("torch_fidelity")
    package.feature_extractor_inceptionv3 = module
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_what_inception_is_shown(monkeypatch):
    """Bytes of three colours."""

    class Extractor(torch.nn.Module):
        def __init__(self, name, features_list):
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])

        def forward(self, x):
            assert x.dtype == torch.uint8 and x.shape == (5, 3, 8, 8)
            return (x.flatten(1).float(),)

    standing_in(monkeypatch, Extractor)
    found = Inception(Spec((1, 8, 8), 18), torch.device("cpu"))(torch.full((5, 1, 8, 8), 16))
    assert found.classes is None and (found.features == 240).all() and found.features.shape == (5, 192)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (URLError("no such host"), "could not fetch its weights .*no such host.*put https://somewhere/weights.pth at "),
        (UnpicklingError("?"), "weights.pth is damaged; delete it"),
        (RuntimeError("Missing key(s) in state_dict"), "weights.pth is damaged; delete it"),
    ],
)
def test_without_its_weights_inception_says_where_they_belong(monkeypatch, tmp_path, fault, line):
    def extractor(*names):
        raise fault

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    standing_in(monkeypatch, extractor)
    with pytest.raises(UserError, match=line) as told:
        Inception(Spec((1, 8, 8), 18), torch.device("cpu"))
    assert str(tmp_path / "hub/checkpoints/weights.pth") in str(told.value)
