"""A trained model goes without its images until they are needed."""

import shutil

import numpy as np
import pytest
import torch

import gen_lab
from gen_lab.data import images
from rl_lab.core import checkpoint
from rl_lab.core.errors import UserError

TINY = (
    "model=vae",
    "model/likelihood=categorical",
    "loop.batch_size=8",
    "loop.total_steps=2",
    "loop.pictured=4",
    "loop.iwae_samples=0",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 4, (16, 1, 8, 8), np.uint8)
    np.savez("x.npz", train=images, test=images, levels=4)
    run = gen_lab.train("data=npz", "data.path=x.npz", *TINY, "tracker=none", "device=cpu")
    return shutil.copytree(run, tmp_path / "sent")


def test_it_draws_where_the_images_are_not(folder):
    trained = gen_lab.load(folder, device="cpu")
    drawn = trained.sample(4)
    assert torch.equal(trained.model.spec.scaled(drawn), trained.spec.scaled(drawn)) and trained.spec.levels == 4
    (folder.parent / "x.npz").unlink()
    alone = gen_lab.load(folder, device="cpu")
    assert torch.equal(alone.sample(4), drawn)
    with pytest.raises(UserError, match="there is no file .*x.npz"):
        alone.data  # noqa: B018


def test_images_of_another_kind_are_refused(folder):
    other = np.zeros((16, 1, 8, 8), np.uint8)
    np.savez(folder.parent / "x.npz", train=other, test=other, levels=2)
    with pytest.raises(
        UserError, match="learned images of 1 x 8 x 8, 4 levels, and .* has images of 1 x 8 x 8, 2 levels"
    ):
        gen_lab.load(folder, device="cpu").data  # noqa: B018


@pytest.mark.parametrize("spec", [[1, 8, 8, 4], [1, 8, 8, 1, 0], [1, -8, 8, 4, 0], "abcde", [1, 8, 8, 5, 0], None])
def test_a_checkpoint_that_says_something_else_does_not_fit(folder, spec):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["batches"]["spec"] = spec
    checkpoint.write(folder / "checkpoint.pt", state)
    with pytest.raises(UserError, match="does not fit"):
        gen_lab.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: state.pop("batches"), "it has no 'batches'"),
        (lambda state: state.pop("model"), "it has no 'model'"),
        (lambda state: state.pop("step"), "it has no 'step'"),
        (lambda state: state["model"]["decoder"].popitem(), "it has no '2.bias'"),
        (lambda state: state["model"]["encoder"].update(x=torch.zeros(2)), "it has 'x', which is not wanted"),
        (lambda state: state["batches"].update(spec=[1, 4, 4, 4, 0]), "1.weight in it is [128, 64], and [128, 16] is wanted"),
        (lambda state: state.update(best=3), "a part of it is of another kind: 'int' object has no attribute 'get'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_words(folder, damage, words):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    damage(state)
    checkpoint.write(folder / "checkpoint.pt", state)
    with pytest.raises(UserError) as error:
        gen_lab.load(folder, device="cpu")
    own = "bring back the run's own checkpoint, or delete it with the summary.json and metrics.jsonl beside it, to train anew by run="
    assert str(error.value) == f"{folder}/checkpoint.pt does not fit {folder}/config.yaml ({words}); {own}"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A conditional model of 4 levels and 3 classes."""
    place = tmp_path_factory.mktemp("labelled")
    images, label = np.random.default_rng(0).integers(0, 4, (16, 1, 8, 8), np.uint8), np.arange(16) % 3
    np.savez(place / "x.npz", train=images, test=images, levels=4, train_labels=label, test_labels=label)
    run = gen_lab.train("data=npz", f"data.path={place}/x.npz", *TINY, "model.conditional=true", "tracker=none",
                        "device=cpu", f"hydra.run.dir={place}/run")  # fmt: skip
    return gen_lab.load(run, device="cpu")


X, Z = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, 8)
IMAGES = "images must be a tensor of whole numbers [B, 1, 8, 8], levels 0 to 3, and are "
FLOATS = "tensor float32 [3, 1, 8, 8]; spec.nearest(x) makes levels of numbers in [0, 1]"
LABEL = "label must be one whole number, or a tensor int64 [3] of them, and is "
CODES = "z must be a tensor float32 [B, 8], as code gives it, and is "


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        (lambda it: it.score(X.float(), label=0), IMAGES + FLOATS),
        (lambda it: it.code(X * float("nan"), label=0), IMAGES + FLOATS),
        (lambda it: it.score(X[:, :, :4], label=0), IMAGES + "tensor uint8 [3, 1, 4, 8]"),
        (lambda it: it.score(X[0], label=0), IMAGES + "tensor uint8 [1, 8, 8]"),
        (lambda it: it.score(X + 4, label=0), IMAGES + "4 to 4"),
        (lambda it: it.code(X.long() - 1, label=0), IMAGES + "-1 to -1"),
        (lambda it: it.score(X.bool(), label=0), IMAGES + "tensor bool [3, 1, 8, 8]"),
        (lambda it: it.score(X.numpy(), label=0), IMAGES + "ndarray uint8 [3, 1, 8, 8]"),
        (lambda it: it.score(None), IMAGES + "NoneType"),
        (lambda it: it.score(X, seed=-1, label=0), "seed=-1 must be at least 0"),
        (lambda it: it.score(X, iwae_samples="a", label=0), "iwae_samples=a must be a whole number"),
        (lambda it: it.score(X), "model.conditional=true needs a label for each image: label=<class>, or a tensor of them"),
        (lambda it: it.code(X, label=torch.tensor([0, 1])), LABEL + "tensor int64 [2]"),
        (lambda it: it.sample(3, label="a"), LABEL + "'a'"),
        (lambda it: it.sample(3, label=1.5), LABEL + "1.5"),
        (lambda it: it.sample(0), "count=0 must be at least 1"),
        (lambda it: it.sample(True), "count=True must be a whole number"),
        (lambda it: it.sample(3, seed="x"), "seed=x must be a whole number"),
        (lambda it: it.decode(Z[0], label=0), CODES + "tensor float32 [8]"),
        (lambda it: it.decode(Z[:, :3], label=0), CODES + "tensor float32 [3, 3]"),
        (lambda it: it.decode(Z.double(), label=0), CODES + "tensor float64 [3, 8]"),
        (lambda it: it.decode(None, label=0), CODES + "NoneType"),
        (lambda it: it.decode(Z / 0, label=0), "z must be finite, and holds nan or inf; leave out the rows that do"),
    ],
)  # fmt: skip
def test_what_it_cannot_take_is_one_line(labelled, mistake, line):
    assert labelled.code(X, label=0).shape == Z.shape
    with pytest.raises(UserError) as error:
        mistake(labelled)
    assert str(error.value) == line


def test_a_temperature_is_for_this_once(labelled):
    drawn, cold = labelled.sample(64, label=0), labelled.sample(64, label=0, temperature=1e-6)
    assert torch.equal(cold, labelled.sample(64, label=0, temperature=1e-6)) and not torch.equal(cold, drawn)
    assert torch.equal(labelled.sample(64, label=0), drawn) and labelled.model.temperature == 1
    with pytest.raises(UserError, match="temperature=0 must be above 0"):
        labelled.sample(1, label=0, temperature=0)
    with pytest.raises(UserError, match="temperature=1e-40 must be at least 1e-06"):
        labelled.sample(1, label=0, temperature=1e-40)
    assert labelled.model.temperature == 1
    with pytest.raises(UserError, match="temperature=1e\\+300 must be at most 10,000"):
        labelled.sample(1, label=0, temperature=1e300)


def test_levels_of_any_whole_type_are_taken(labelled):
    scores = labelled.score(X + 1, label=0, iwae_samples=3)
    for x in ((X + 1).to(torch.uint16), (X + 1).to(torch.uint64), (X + 1).long(), (X + 1).to_sparse()):
        again = labelled.score(x, label=0, iwae_samples=3)
        assert all(torch.equal(again[name], scores[name]) for name in scores)
    assert all(len(x) == 0 for x in labelled.score(X[:0], label=0, iwae_samples=3).values())


def test_an_evaluation_of_some_images(folder):
    some, other, whole = (gen_lab.evaluate(folder, images=count, device="cpu") for count in (4, 4, None))
    assert some == other != whole and some.keys() == whole.keys()
    with pytest.raises(UserError, match="images=0 must be at least 1"):
        gen_lab.evaluate(folder, images=0, device="cpu")


def test_labels_of_any_whole_type_are_taken(labelled):
    drawn = labelled.sample(3, label=torch.tensor([0, 1, 2]))
    assert torch.equal(labelled.sample(3, label=torch.tensor([0, 1, 2], dtype=torch.uint8)), drawn)
    assert torch.equal(labelled.sample(np.int64(3), label=[0, 1, 2]), drawn)


def test_older_checkpoints_say_nothing_of_it(folder):
    drawn = gen_lab.load(folder, device="cpu").sample(4)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["batches"]["spec"]
    checkpoint.write(folder / "checkpoint.pt", state)
    assert torch.equal(gen_lab.load(folder, device="cpu").sample(4), drawn)


def test_many_images_are_scored_a_few_at_a_time(labelled, monkeypatch):
    x, label = labelled.data.test, labelled.data.test_labels
    sizes, own = [], labelled.model.score
    monkeypatch.setattr(images, "TESTED_AT_ONCE", 5)
    monkeypatch.setattr(labelled.model, "score", lambda x, *of: sizes.append(len(x)) or own(x, *of))
    scores = labelled.score(x, label=label)
    assert sizes == [5, 5, 5, 1] and {len(score) for score in scores.values()} == {16}
    alone = labelled.score(x[:5], label=label[:5])
    assert all(torch.equal(scores[name][:5], alone[name]) for name in scores)
