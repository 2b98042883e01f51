"""A trained model goes without its images until they are needed."""

import shutil

import numpy as np
import pytest
import torch

import gen_lab
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
    with pytest.raises(UserError, match="x.npz cannot be read"):
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


def test_older_checkpoints_say_nothing_of_it(folder):
    drawn = gen_lab.load(folder, device="cpu").sample(4)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["batches"]["spec"]
    checkpoint.write(folder / "checkpoint.pt", state)
    assert torch.equal(gen_lab.load(folder, device="cpu").sample(4), drawn)
