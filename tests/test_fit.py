"""The loop of gen_lab: what it learns, what it writes, and that a stopped run goes on as if nothing had happened."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stated import stated
from stopping import StopsAt, equal
from vae_cases import PLAIN

from gen_lab.__main__ import COMMANDS
from gen_lab.data import Batches, Images
from gen_lab.judging.evaluation import evaluate
from gen_lab.judging.pictures import read_sheet, write_sheet
from gen_lab.losses import bernoulli_nll
from gen_lab.models.vae import VAE
from gen_lab.networks.coders import mlp_decoder, mlp_encoder
from gen_lab.trained.loading import apart, load
from gen_lab.types import Spec
from rl_lab.core import checkpoint
from rl_lab.core.errors import NotFinite, NothingLeft, UserError
from rl_lab.core.launching import cli
from rl_lab.core.run import Run, Stopped

digits = stated("data/digits")
fit = stated("loop/fit", iwae_samples=0)
gan = stated("model/gan_mlp")

CPU = torch.device("cpu")
BOUND = "eval/nll_bound_nats[digits-binarised]"
vae = partial(VAE, encoder=partial(mlp_encoder, hidden=64), decoder=partial(mlp_decoder, hidden=64),
              optimizer=partial(torch.optim.Adam, lr=2e-3), latents=8, **PLAIN)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Images:
    return digits(protocol="binarised")


def fitted(folder: Path, data: Images, model=vae, checkpoint_every: float = math.inf, **knobs) -> VAE:
    usual = {"batch_size": 64, "total_steps": 200, "log_every": 15, "eval_every": 50, "iwae_samples": 3, "pictured": 4}
    with Run(folder, 0, "cpu", names={"name": "test"}, config={}, checkpoint_every=checkpoint_every) as run:
        return fit(data, model, run, **usual | knobs)


def rows(folder: Path) -> list[dict]:
    """Everything but the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


class Interrupted(VAE):
    """Does `what` in the middle of its update number `at`; in what a resumed run builds, nothing more."""

    def __init__(self, *args, at: int, what, **knobs):
        super().__init__(*args, **knobs)
        self.at, self.what, self.count = at, what, 0

    def update(self, x, label=None):
        self.count += 1
        return (self.what(self, x) if self.count == self.at else None) or super().update(x)


def interrupted(at: int, what) -> partial:
    return partial(Interrupted, *vae.args, **vae.keywords, at=at, what=what)


def terminate(_model, _x) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def die(_model, _x) -> None:
    raise RuntimeError("power cut")


# -- data


def test_digits_are_split_as_the_reference_figures_are(data):
    """25.30 nats: independent pixels, fitted on the 1,500 and scored on the 297."""
    assert data.train.shape == (1500, 1, 8, 8) and data.test.shape == (297, 1, 8, 8) and data.train.dtype == torch.uint8
    x, test = data.train.float(), data.test
    assert set(x.unique().tolist()) == {0, 1}
    logits = ((x.sum(0) + 0.01) / (len(x) + 0.02)).logit()
    assert bernoulli_nll(logits, test).mean().item() == pytest.approx(25.30, abs=0.005)


def test_digits_protocols_are_of_the_same_images(data):
    grey = digits(protocol="levels")
    assert grey.levels == 17 and grey.name == "digits-levels" and grey.train.max() == 16
    for binary, levels in (data.train, grey.train), (data.test, grey.test):
        assert torch.equal(binary, (levels >= 8).to(torch.uint8))
    assert grey.spec.scaled(grey.train).max() == 1 and data.spec == ((1, 8, 8), 2, 10)


def numbered(count: int) -> Images:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Images("numbered", pixels, pixels, 256)


def test_an_epoch_shows_no_image_twice():
    batches = Batches(numbered(100), 30, seed=0)
    drawn = [torch.cat([batches.draw()[0] for _ in range(3)]).flatten() for _ in range(40)]
    assert all(len(set(epoch.tolist())) == 90 for epoch in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert set(torch.cat(drawn).tolist()) == set(range(100))  # whom one epoch left out, another shows


def test_batches_go_on_where_they_were():
    whole, again = Batches(numbered(100), 30, seed=0), Batches(numbered(100), 30, seed=7)
    for _ in range(5):
        whole.draw()
    again.load_state_dict(whole.state_dict())
    for _ in range(10):
        assert torch.equal(whole.draw()[0], again.draw()[0])


def test_a_batch_larger_than_the_data_is_a_mistake():
    with pytest.raises(UserError, match="loop.batch_size=101 must be 100 or less.*100 images"):
        Batches(numbered(100), 101, seed=0)


# -- evaluation


def test_every_test_image_counts_once():
    """297 images in batches of 256 and 41: neither the last batch nor its weight is lost."""
    values = torch.rand(297, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    test = torch.zeros(297, 1, 1, 1, dtype=torch.uint8)

    class Scorer:
        seen, spec = 0, Spec((1, 1, 1), 2)

        def score(self, x, generator, iwae_samples=0, label=None):
            self.seen += len(x)
            return {"nats": values[self.seen - len(x) : self.seen].float()}

    metrics = evaluate(Scorer(), Images("toy", test, test, 2), seed=0)
    assert set(metrics) == {"eval/nats[toy]", "eval/nats_se[toy]"}
    assert metrics["eval/nats[toy]"].item() == pytest.approx(values.mean().item(), rel=1e-6)
    assert metrics["eval/nats_se[toy]"].item() == pytest.approx(values.std().item() / 297**0.5, rel=1e-6)


def test_evaluation_repeats_itself(data):
    model = vae(data.spec, CPU, 0)
    assert evaluate(model, data, 0, 5) == evaluate(model, data, 0, 5)
    assert evaluate(model, data, 0, 5) != evaluate(model, data, 1, 5)


# -- learning


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_vae_beats_independent_pixels(tmp_path, data, seed):
    """25.30 nats is what pixels reach one by one; 18.3 is where this model ends after ten times as long."""
    with Run(tmp_path, seed, "cpu", names={"name": "test"}, config={}) as run:
        fit(data, vae, run, batch_size=128, total_steps=1_000, eval_every=1_000, iwae_samples=50)
    final = rows(tmp_path)[-1]
    assert final["step"] == 1_000
    assert 17 < final[BOUND] < 20.5
    assert 16.5 < final["eval/iwae50_nats[digits-binarised]"] < final[BOUND]
    assert 0.2 < final["eval/nll_bound_nats_se[digits-binarised]"] < 0.4
    assert final["eval/bits_per_dim_bound[digits-binarised]"] == pytest.approx(final[BOUND] / (64 * math.log(2)))


def test_rows_and_pictures(tmp_path, data):
    model = fitted(tmp_path, data, log_every=80)
    by_step = {row["step"]: set(row) for row in rows(tmp_path) if "vae/kl_nats" in row}
    assert list(by_step) == [80, 160]
    evaluations = [row["step"] for row in rows(tmp_path) if BOUND in row]
    assert evaluations == [0, 50, 100, 150, 200]
    assert [row["step"] for row in rows(tmp_path) if "eval/iwae3_nats[digits-binarised]" in row] == [200]
    names = {f"{kind}_{step:08d}.png" for kind in ("samples", "means", "reconstructions") for step in evaluations}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names | {"real.png"}
    with Image.open(tmp_path / "videos/training.gif") as film:
        assert film.n_frames == 5
        film.seek(4)
        last = Image.open(tmp_path / "pictures/samples_00000200.png").convert("L")
        assert np.abs(np.asarray(film.convert("L"), float) - np.asarray(last)).mean() < 8
    x = data.test[:2]
    (a, b), (a_mean, b_mean) = x, model.reconstruct(x)
    pairs = np.asarray(read_sheet(write_sheet(tmp_path / "pairs.png", torch.stack([a, a_mean, b, b_mean]))))
    shown = np.asarray(read_sheet(tmp_path / "pictures/reconstructions_00000200.png"))
    assert np.array_equal(shown[: len(pairs)], pairs) and len(shown) > len(pairs)  # what it is stands below


def test_rows_are_means_over_the_updates_between_them(tmp_path, data):
    seen = []

    class Recorded(VAE):
        def update(self, x, label=None):
            seen.append(super().update(x))
            return seen[-1]

    fitted(tmp_path, data, partial(Recorded, *vae.args, **vae.keywords), total_steps=60, log_every=20)
    found = [row["vae/kl_nats"] for row in rows(tmp_path) if "vae/kl_nats" in row]
    kl = torch.stack([m["vae/kl_nats"] for m in seen]).view(3, 20).mean(1)
    torch.testing.assert_close(torch.tensor(found), kl)


# -- stopping and going on


class Labelled(VAE):
    """Keeps what it was shown: labels that do not go with their images, or other bits, are another state."""

    saved = (*VAE.saved, "shown")

    def __init__(self, *args, **knobs):
        super().__init__(*args, **knobs)
        self.shown = torch.zeros(10, 64)  # the sum of the images of each class

    def update(self, x, label=None):
        self.shown.index_add_(0, label, x.flatten(1).float())
        return super().update(x)


class Stopping(StopsAt, Labelled):
    """Stopped in its update number `at`."""


@pytest.mark.parametrize("at", [30, 47])  # the end of an epoch is after 46 batches of 32
def test_labels_and_fresh_bits_go_on_bit_for_bit(tmp_path, data, at):
    grey = digits(protocol="levels")
    pixels = grey.train * 255 // 16
    resampled = data._replace(name="digits-dynamic", train=pixels.to(torch.uint8), resampled=True)
    build, knobs = partial(Labelled, *vae.args, **vae.keywords), {"batch_size": 32, "total_steps": 60}
    whole = fitted(tmp_path / "whole", resampled, build, **knobs)
    with pytest.raises(Stopped):
        fitted(tmp_path / "stopped", resampled, partial(Stopping, *vae.args, **vae.keywords, at=at), **knobs)
    resumed = fitted(tmp_path / "stopped", resampled, build, **knobs)
    assert equal(whole.state_dict(), resumed.state_dict())
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")
    means = torch.stack([pixels[grey.train_labels == k].float().mean(0).flatten() / 255 for k in range(10)])
    shown = whole.shown / whole.shown.sum(1, keepdim=True) * means.sum(1, keepdim=True)
    assert (shown - means).abs().max() < 0.15


@pytest.mark.parametrize("at", [1, 50, 51, 107])  # before an evaluation, after one, amid an interval and an epoch
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, data, at):
    whole = fitted(tmp_path / "whole", data)
    with pytest.raises(Stopped):
        fitted(tmp_path / "stopped", data, interrupted(at, terminate))
    assert checkpoint.read(tmp_path / "stopped/checkpoint.pt")["step"] == at
    resumed = fitted(tmp_path / "stopped", data)
    assert equal(whole.state_dict(), resumed.state_dict())
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")
    for picture in (tmp_path / "whole/pictures").iterdir():
        assert picture.read_bytes() == (tmp_path / "stopped/pictures" / picture.name).read_bytes()


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, data):
    """Killed after the evaluation at step 100, which its checkpoint of step 100 does not know of."""
    whole = fitted(tmp_path / "whole", data)
    with pytest.raises(RuntimeError, match="power cut"):
        fitted(tmp_path / "killed", data, interrupted(101, die), checkpoint_every=0)
    assert rows(tmp_path / "killed")[-1]["step"] == checkpoint.read(tmp_path / "killed/checkpoint.pt")["step"] == 100
    assert equal(whole.state_dict(), fitted(tmp_path / "killed", data).state_dict())
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


def test_a_finished_run_resumed_stays_as_it_is(tmp_path, data):
    fitted(tmp_path, data, total_steps=60)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(NothingLeft, match="stands at step 60, of 60"):
        fitted(tmp_path, data, total_steps=60)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_a_finished_run_can_be_lengthened(tmp_path, data):
    whole = fitted(tmp_path / "whole", data, total_steps=120)
    fitted(tmp_path / "short", data, total_steps=70)
    assert equal(whole.state_dict(), fitted(tmp_path / "short", data, total_steps=120).state_dict())
    assert rows(tmp_path / "whole") == rows(tmp_path / "short")


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_parameters(tmp_path, data):
    def poison(model, x):
        return VAE.update(model, x * math.nan)

    with pytest.raises(NotFinite, match=r"vae/recon_nats is nan at step 101.*checkpoint.pt.*learning rate"):
        fitted(tmp_path / "poisoned", data, interrupted(101, poison))
    with pytest.raises(Stopped):
        fitted(tmp_path / "good", data, interrupted(100, terminate))
    poisoned, good = (checkpoint.read(tmp_path / name / "checkpoint.pt") for name in ("poisoned", "good"))
    for part in "encoder", "decoder", "optimizer":
        assert equal(poisoned["model"][part], good["model"][part])
    fitted(tmp_path / "poisoned", data)
    assert [row["step"] for row in rows(tmp_path / "poisoned") if BOUND in row] == [0, 50, 100, 150, 200]


def test_another_model_is_not_resumed(tmp_path, data):
    fitted(tmp_path, data, total_steps=5)
    with pytest.raises(UserError, match="its model does not fit"):
        fitted(tmp_path, data, partial(vae, latents=9), total_steps=10)


# -- the command line


def gen_lab(*arguments: str) -> int:
    return cli.main("gen-lab", "gen", COMMANDS, list(arguments))


TRAIN = "train", "tracker=none", "hydra.run.dir={tmp}/x"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vae"
    settings = ["experiment=vae_digits", "tracker=none", "device=cpu", "loop.total_steps=30"]
    assert gen_lab("train", *settings, f"hydra.run.dir={folder}") == 0
    return folder


def test_sample_command(folder):
    assert gen_lab("sample", f"run={folder}", "count=5", "seed=3", "device=cpu", "tracker=none") == 0
    with np.load(folder / "samples_seed3_count5.npz") as saved:
        images, levels = saved["images"], saved["levels"]
    assert images.shape == (5, 1, 8, 8) and images.dtype == np.uint8
    assert set(np.unique(images)) == {0, 1} and levels == 2
    sheet = np.asarray(Image.open(folder / "samples_seed3_count5.png"))
    assert sheet.shape[1] == 5 * (8 * 6 + 2) + 2 and (sheet[5, 5] == 255 * images[0, 0, 0, 0]).all()


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Path:
    """A small PixelCNN that is told the digit."""
    folder = tmp_path_factory.mktemp("runs") / "pixelcnn"
    settings = ["model=pixelcnn", "data=digits", "model.conditional=true", "model.network.channels=4",
                "model.network.blocks=1", "model.network.head_channels=8", "loop.total_steps=60"]  # fmt: skip
    assert gen_lab("train", *settings, "tracker=none", "device=cpu", f"hydra.run.dir={folder}") == 0
    return folder


def test_likelihood_given_the_label_is_named_so(conditional, capsys):
    assert gen_lab("evaluate", f"run={conditional}", "device=cpu") == 0
    scores = json.loads((conditional / "evaluation.json").read_text())["scores"]
    name = "[digits-binarised-given-label]"
    assert {f"eval/nll_nats{name}", f"eval/nll_nats_se{name}", f"eval/bits_per_dim{name}"} < set(scores)
    final = json.loads((conditional / "summary.json").read_text())["final"]
    assert final[f"eval/nll_nats{name}"] == pytest.approx(scores[f"eval/nll_nats{name}"])
    assert scores[f"eval/bits_per_dim{name}"] == pytest.approx(scores[f"eval/nll_nats{name}"] / (64 * math.log(2)))


def test_sample_a_class(conditional):
    """The samples of a class are those that the model draws of it alone, and not those of another."""
    for label in 3, 4:
        arguments = [f"run={conditional}", f"label={label}", "count=6", "seed=1", "device=cpu", "tracker=none"]
        assert gen_lab("sample", *arguments) == 0
    three, four = (np.load(conditional / f"samples_seed1_label{k}_count6.npz")["images"] for k in (3, 4))
    model = load(conditional, "cpu").model
    x = model.sample(64, torch.Generator().manual_seed(1), torch.full((64,), 3))
    assert np.array_equal(x[:6].numpy(), three) and not np.array_equal(three, four)


def test_the_first_samples_do_not_depend_on_the_count(folder, conditional, tmp_path):
    """Nor on what else is asked for: a film, or a sheet that is put elsewhere."""
    for run, name in (folder, "vae_digits"), (conditional, "pixelcnn_digits"):
        drawn = []
        for count in 3, 70:
            usual = [f"run={run}", f"count={count}", "device=cpu", "tracker=none", f"out={tmp_path}", "columns=3"]
            assert gen_lab("sample", *usual) == 0
            drawn.append(np.load(tmp_path / f"{name}_samples_seed0_count{count}.npz")["images"])
            assert read_sheet(tmp_path / f"{name}_samples_seed0_count{count}.png").width == 3 * 50 + 2
        assert drawn[1].shape == (70, 1, 8, 8) and np.array_equal(drawn[0], drawn[1][:3])
        assert not np.array_equal(drawn[1][:6], drawn[1][64:])
        assert (tmp_path / f"{name}_means_seed0_count70.png").exists() == (run == folder)


def test_python_draws_what_the_command_does(folder, conditional, tmp_path):
    """However many are asked for, and by a label, labels or none."""
    for run, name in (folder, "vae_digits"), (conditional, "pixelcnn_digits"):
        assert gen_lab("sample", f"run={run}", "count=70", "device=cpu", "tracker=none", f"out={tmp_path}") == 0
        drawn = torch.from_numpy(np.load(tmp_path / f"{name}_samples_seed0_count70.npz")["images"])
        trained = load(run, "cpu")
        assert torch.equal(trained.sample(70), drawn) and torch.equal(trained.sample(5), drawn[:5])
        if run == conditional:
            assert torch.equal(trained.sample(70, label=torch.arange(70) % 10), drawn)
            assert not torch.equal(trained.sample(5, label=3), drawn[:5])
    with pytest.raises(UserError, match=r"count=1000000000 needs .* of memory"):
        trained.sample(10**9)


def test_runs_of_one_name_do_not_write_over_one_another(folder, tmp_path):
    """Their files are told apart by the ends of their paths, as long as that takes."""
    runs = [tmp_path / end for end in ("a/0", "b/0", "b/1")]
    for run in runs:
        shutil.copytree(folder, run)
    command = ["sample", *map(str, runs), "count=2", "device=cpu", "tracker=none", f"out={tmp_path / 'all'}"]
    assert gen_lab(*command) == 0
    ends = "a_0", "b_0", "b_1"
    assert {f"vae_digits_{end}_samples_seed0_count2.npz" for end in ends} < set(os.listdir(tmp_path / "all"))
    assert apart([Path("x/7")]) == [""] and apart([Path("x/7"), Path("y/8")]) == ["_7", "_8"]


def test_a_damaged_run_does_not_stop_the_others(folder, tmp_path, capsys):
    for name in "abc":
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "b/checkpoint.pt").write_bytes(b"no checkpoint")
    runs = [str(tmp_path / name) for name in "abc"]
    assert gen_lab("sample", *runs, "count=2", "device=cpu", "tracker=none") == 2
    assert "b/checkpoint.pt" in capsys.readouterr().err
    assert [(tmp_path / name / "samples_seed0_count2.npz").exists() for name in "abc"] == [True, False, True]


def test_an_evaluation_of_the_same_images_elsewhere_is_no_other(tmp_path):
    """Of data=npz the root is that of its cache."""
    data = digits(protocol="binarised")
    np.savez(tmp_path / "d.npz", train=data.train.numpy(), test=data.test.numpy(), levels=2)
    settings = ["model=vae", "data=npz", f"data.path={tmp_path}/d.npz", "loop.total_steps=2", "device=cpu"]
    assert gen_lab("train", *settings, "tracker=none", f"hydra.run.dir={tmp_path}/x") == 0
    evaluate_ = ["evaluate", f"run={tmp_path}/x", "iwae_samples=0", "device=cpu"]
    assert gen_lab(*evaluate_, f"data.root={tmp_path}") == 0
    assert not json.loads((tmp_path / "x/evaluation.json").read_text()).get("changes")
    assert gen_lab(*evaluate_, "data.protocol=threshold") == 0
    assert json.loads((tmp_path / "x/evaluation_changed.json").read_text())["changes"] == ["data.protocol=threshold"]


def test_a_sheet_has_a_class_a_row(conditional):
    assert gen_lab("sample", f"run={conditional}", "count=25", "seed=7", "device=cpu", "tracker=none") == 0
    images = np.load(conditional / "samples_seed7_count25.npz")["images"]
    sheet = np.asarray(read_sheet(conditional / "samples_seed7_count25.png"))
    assert sheet.shape[1] == 2 * 50 + 2 and len(sheet) > 10 * 50 + 2
    for k in range(10):
        for j in range(2):
            shown = sheet[2 + 50 * k : 50 + 50 * k : 6, 2 + 50 * j : 50 + 50 * j : 6, 0]
            assert np.array_equal(shown, 255 * images[10 * j + k, 0])


def test_cold_samples_are_likelier(conditional, folder, capsys):
    usual = [f"run={conditional}", "count=64", "device=cpu", "tracker=none"]
    assert gen_lab("sample", *usual) == gen_lab("sample", *usual, "temperature=0.2") == 0
    model, rng = load(conditional, "cpu").model, torch.Generator()
    warm, cold = (torch.from_numpy(np.load(conditional / f"samples_seed0{more}.npz")["images"])
                  for more in ("", "_temperature0.2"))  # fmt: skip
    nats = [model.score(x, rng, label=torch.arange(64) % 10)["nll_nats"].mean() for x in (warm, cold)]
    assert nats[1] < nats[0] - 5
    assert gen_lab("sample", f"run={folder}", "temperature=0.5", "count=4", "device=cpu", "tracker=none") == 0


def test_evaluations_before_the_last_are_of_some_images(tmp_path, data):
    fitted(tmp_path, data, eval_images=40)
    curve = [row[BOUND] for row in rows(tmp_path) if BOUND in row]
    error = [row[BOUND.replace("nats", "nats_se")] for row in rows(tmp_path) if BOUND in row]
    assert len(curve) == 5 and error[-1] < 0.6 * error[-2]
    model = fitted(tmp_path / "whole", data, total_steps=0)
    some = data.some(40)
    assert len(some.test) == 40 and torch.equal(some.test, data.some(40).test)
    first = evaluate(model, some, Run.stream(Seeded, "eval"))[BOUND].item()
    assert curve[0] == pytest.approx(first)


class Seeded:
    seed = 0


def test_validation_images_are_not_trained_on_and_the_test_set_is_for_the_end(tmp_path, data):
    kept = data.parted(300, None, False)
    assert (len(kept.train), len(kept.validation), len(kept.test)) == (1_200, 300, 297)
    assert torch.equal(torch.cat([kept.train, kept.validation]).sum(0), data.train.sum(0))
    every = torch.cat([kept.train_labels, kept.validation_labels])
    assert torch.equal(every.bincount(), data.train_labels.bincount()) and not torch.equal(every, data.train_labels)
    assert len(data.parted(300, 100, False).train) == 100
    fitted(tmp_path, kept)
    watched = BOUND.replace("]", "-validation]")
    assert [row["step"] for row in rows(tmp_path) if watched in row] == [0, 50, 100, 150]
    assert [row["step"] for row in rows(tmp_path) if BOUND in row] == [200]
    with pytest.raises(
        UserError, match="data.validation=1400 and data.subset=200 leave nothing to train on of the 1500"
    ):
        data.parted(1_400, 200, False)


def test_half_of_the_images_shown_are_mirrored(data):
    """A resumed run mirrors those that it would have mirrored."""
    left = torch.zeros(100, 1, 2, 4, dtype=torch.uint8)
    left[..., 0] = 1
    mirrored = Images("left", left, left, 2).parted(0, None, True)
    batches, again = Batches(mirrored, 100, seed=0), Batches(mirrored, 100, seed=5)
    x = torch.cat([batches.draw()[0] for _ in range(40)])
    right = x[:, 0, 0, 3].double().mean().item()
    assert abs(right - 0.5) < 4 * 0.5 / 4_000**0.5 and bool((x[..., 0] != x[..., 3]).all())
    again.load_state_dict(batches.state_dict())
    assert torch.equal(batches.draw()[0], again.draw()[0])


def test_ctrl_c_stops_an_evaluation_at_once_and_it_is_done_again(tmp_path, data, monkeypatch):
    """The last checkpoint was long ago: nothing of the training is lost."""
    whole = fitted(tmp_path / "whole", data, total_steps=100)
    score, slow = VAE.score, []

    def scored(self, *arguments):
        slow.append(None)
        if len(slow) == 2:  # the evaluation at update 50
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the signal was not answered")
        return score(self, *arguments)

    monkeypatch.setattr(VAE, "score", scored)
    with pytest.raises(Stopped):
        fitted(tmp_path / "cut", data, total_steps=100, eval_images=200)
    monkeypatch.setattr(VAE, "score", score)
    resumed = fitted(tmp_path / "cut", data, total_steps=100, eval_images=200)
    assert [row["step"] for row in rows(tmp_path / "cut") if BOUND in row] == [0, 50, 100]
    assert equal(whole.state_dict(), resumed.state_dict())


def test_pictures_between_evaluations_and_when_it_is_stopped(tmp_path, data):
    with pytest.raises(Stopped):
        fitted(tmp_path, data, interrupted(35, terminate), picture_every=10, eval_every=100)
    names = sorted(path.name for path in (tmp_path / "pictures").glob("samples_*"))
    assert names == [f"samples_{step:08d}.png" for step in (0, 10, 20, 30, 35)]


def test_the_line_shows_what_a_gan_does(data):
    from rl_lab.core.metrics import is_shown, objective

    metrics = gan(data.spec, device=CPU, seed=0).update(data.train[:8])
    shown = {name for name in metrics if is_shown(name)}
    assert {"gan/D(x)", "gan/D(G(z))", "gan/generator_loss", "gan/discriminator_loss"} <= shown
    assert 0 < metrics["gan/D(x)"] < 1 and objective(metrics) is None
    assert is_shown("eval/frechet[digits-x]") and is_shown("autoregressive/bits_per_dim")


def test_an_evaluation_says_of_which_update_the_best_weights_are_and_of_which_the_run(tmp_path):
    data, run = digits(protocol="binarised"), tmp_path / "vae"
    np.savez(tmp_path / "d.npz", train=data.train.numpy(), test=data.test.numpy(), levels=2)
    settings = ["model=vae", "data=npz", f"data.path={tmp_path}/d.npz", "data.validation=100", "loop.best=true",
                "data.subset=100", "loop.batch_size=100", "model.optimizer.lr=0.01", "loop.total_steps=500",
                "loop.eval_every=50", "device=cpu", "tracker=none"]  # fmt: skip
    assert gen_lab("train", *settings, f"hydra.run.dir={run}") == 0
    assert gen_lab("evaluate", f"run={run}", "device=cpu") == 0
    record = json.loads((run / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 500 and rows[-1]["best/update"] == record["step"] < 500
    assert {x for row in rows for name, x in row.items() if name.startswith("eval/images[")} == {100}


def test_a_setting_of_the_model_reaches_sample_and_is_named_where_it_does_not_fit(folder, capsys):
    assert gen_lab("sample", f"run={folder}", "model.latents=5", "device=cpu", "tracker=none") == 2
    assert capsys.readouterr().err.endswith("leave out model.latents=5\n")


def test_inpaint(conditional, tmp_path):
    usual = [f"run={conditional}", "count=7", "seed=2", "device=cpu", "tracker=none"]
    test = digits(protocol="binarised").test[:7].numpy()
    assert gen_lab("sample", *usual, "inpaint=top") == 0
    with np.load(conditional / "inpainted_top_seed2_count7.npz") as saved:
        assert saved["known"].tolist() == [[True] * 8] * 4 + [[False] * 8] * 4 and saved["levels"] == 2
        assert np.array_equal(saved["images"][:, :, :4], test[:, :, :4])
        assert not np.array_equal(saved["images"][:, :, 4:], test[:, :, 4:])
    sheet = np.asarray(Image.open(conditional / "inpainted_top_seed2_count7.png"))
    assert sheet.shape[1:] == (9 * 50 + 2, 3) and 4 * 50 > len(sheet) > 3 * 50 + 2  # three triples a row, and words
    assert (sheet[2:26, 2:50] == sheet[2:26, 102:150]).all() and (sheet[26:50, 2:50] == 128).all()
    mask = np.zeros((8, 8), np.uint8)
    mask[::2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert gen_lab("sample", *usual, f"inpaint={tmp_path}/mask.png") == 0
    with np.load(conditional / "inpainted_mask_seed2_count7.npz") as saved:
        assert np.array_equal(saved["images"][:, :, ::2], test[:, :, ::2])


def test_no_more_images_are_completed_than_there_are(conditional, capsys):
    assert gen_lab("sample", f"run={conditional}", "count=1_000", "inpaint=left", "device=cpu", "tracker=none") == 0
    assert "there are 297 test images to complete" in capsys.readouterr().err
    assert np.load(conditional / "inpainted_left_seed0_count297.npz")["images"].shape == (297, 1, 8, 8)


def test_film(conditional):
    usual = [f"run={conditional}", "count=3", "seed=5", "device=cpu", "tracker=none"]
    assert gen_lab("sample", *usual) == 0
    plain = np.load(conditional / "samples_seed5_count3.npz")["images"]
    assert gen_lab("sample", *usual, "film=true") == 0
    assert np.array_equal(plain, np.load(conditional / "samples_seed5_count3.npz")["images"])
    with Image.open(conditional / "samples_seed5_count3.gif") as film:
        assert 32 <= film.n_frames <= 64
        film.seek(film.n_frames - 1)
        sheet = np.asarray(Image.open(conditional / "samples_seed5_count3.png").convert("L"))
        assert np.array_equal(np.asarray(film.convert("L")), sheet)


def test_evaluate_command(folder, capsys):
    assert gen_lab("evaluate", f"run={folder}", "iwae_samples=7", "device=cpu") == 0
    record = json.loads((folder / "evaluation.json").read_text())
    assert (record["step"], record["images"], record["iwae_samples"]) == (30, 297, 7)
    kl = "eval/kl_prior_nats[digits-binarised]"
    assert record["scores"][kl] == pytest.approx(rows(folder)[-1][kl])
    printed = capsys.readouterr().out
    for name in "nll_bound_nats", "bits_per_dim_bound", "iwae7_nats":
        assert f"{name}[digits-binarised]" in printed
    assert f"{record['scores'][BOUND]:.4f}" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate"], r"which run\? gen-lab evaluate run=<folder>"),
        (["sample", "run={empty}"], "is not a run folder"),
        (["sample", "run={rl}"], "is a run of rl-lab: rl-lab train resumes it"),
        (["evaluate", "run={other}", "iwae_samples=1"], r"other/checkpoint.pt does not fit"),
        (["evaluate", "run={evil}"], r"_target_=os.mkdir is refused"),
        (["sample", "run={folder}", "count=0", "tracker=none"], "count=0 must be at least 1"),
        (["sample", "run={folder}", "label=3", "tracker=none"], "label=3 is not known.*trained without labels"),
        (["sample", "run={conditional}", "label=10", "tracker=none"], "label=10 is not known.*classes 0 to 9"),
        (
            ["sample", "run={folder}", "film=true", "tracker=none"],
            "film=true needs a model that samples pixel by pixel",
        ),
        (["sample", "run={folder}", "inpaint=top", "tracker=none"], "this model cannot complete an image"),
        (
            ["sample", "run={conditional}", "inpaint=up", "tracker=none"],
            "inpaint=up is neither top, bottom, left or right nor the picture of a mask",
        ),
        (["sample", "run={conditional}", "inpaint=top", "film=true", "tracker=none"], "leave out inpaint="),
        ([*TRAIN, "data=folder", "data.path=.", "data.levels=1"], "data.levels=1 must be between 2 and 256"),
        ([*TRAIN, "data=npz"], "data.path has no default; give it a value"),
        ([*TRAIN, "data=npz", "data.path=nowhere.npz"], "nowhere.npz; data.path=<file> names the npz"),
        ([*TRAIN, "data.protocol=levels"], "cross entropy is no likelihood"),
        ([*TRAIN, "data.protocol=grey"], "data.protocol=grey is not a choice"),
        ([*TRAIN, "model.latent=3"], "did you mean model.latents"),
        ([*TRAIN, "model.beta=-1"], "model.beta=-1 must be at least 0"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, folder, conditional, capsys, arguments, says):
    config = (folder / "config.yaml").read_text()
    changed = {
        "rl": "name: x\nseed: 0\nloop: {_target_: rl_lab.loops.training.train}\n",
        "other": config.replace("latents: 8", "latents: 9"),
        "evil": config.replace("gen_lab.data.digits\n", f"os.mkdir\n  path: {tmp_path}/made\n"),
    }
    for name, text in changed.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
        (tmp_path / name / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes())
    (tmp_path / "empty").mkdir()
    places = {
        "tmp": tmp_path,
        "empty": tmp_path / "empty",
        "folder": folder,
        "conditional": conditional,
        **{name: tmp_path / name for name in changed},
    }
    assert gen_lab(*(a.format(**places) for a in arguments)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert re.search(says, errors[-1]) and len(errors) == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_sigterm_then_resume(tmp_path):
    train = [sys.executable, "-m", "gen_lab", "train"]
    settings = ["experiment=vae_digits", "tracker=none", "device=cpu", "hydra.run.dir=stopped", "loop.total_steps=1e6"]
    process = subprocess.Popen([*train, *settings], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "stopped/metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "stopping at the next whole step" in said and "run=stopped resumes it" in said
    step = checkpoint.read(tmp_path / "stopped/checkpoint.pt")["step"]
    longer = [*train, "run=stopped", f"loop.total_steps={step + 20}"]
    again = subprocess.run(longer, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and f"resumed at step {step:,}" in again.stderr
    assert [row["step"] for row in rows(tmp_path / "stopped") if BOUND in row][-1] == step + 20
    assert json.loads((tmp_path / "stopped/summary.json").read_text())["state"] == "finished"


# -- nothing is written through a link


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("samples_seed0_count2.png", ["sample", "count=2", "tracker=none"]),
        ("samples_seed0_count2.npz", ["sample", "count=2", "tracker=none"]),
        ("inpainted_top_seed0_count2.npz", ["sample", "count=2", "inpaint=top", "tracker=none"]),
        ("samples_seed0_count2.gif", ["sample", "count=2", "film=true", "tracker=none"]),
        ("samples_seed0_label3_count2.npz", ["sample", "count=2", "label=3", "tracker=none"]),
        ("evaluation.json", ["evaluate"]),
        ("neighbours.png", ["evaluate", "judge=random"]),
    ],
)
def test_no_command_writes_through_a_link(conditional, tmp_path, capsys, name, command):
    """A stranger's folder could point at any file of the reader's."""
    shutil.copytree(conditional, tmp_path / "run")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine.txt")
    verb, *settings = command
    code = gen_lab(verb, f"run={tmp_path}/run", "device=cpu", *settings)
    errors = capsys.readouterr().err.strip().splitlines()
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert code == 2 and len(errors) == 1 and f"{name} is a link or no file at all; delete it" in errors[0]
    assert not list((tmp_path / "run").glob(".new*"))


@pytest.mark.parametrize("name", ["pictures", "pictures/traversals.png", "pictures/latent_map.png"])
def test_latents_are_not_pictured_through_a_link(folder, tmp_path, capsys, name):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    if name == "pictures":
        shutil.rmtree(tmp_path / "run/pictures")
        (tmp_path / "run/pictures").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "run" / name).symlink_to(tmp_path / "mine.txt")
    assert gen_lab("latents", f"run={tmp_path}/run", "device=cpu") == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and str(tmp_path / "run" / name) in errors[0]
    assert (tmp_path / "mine.txt").read_text() == "mine" and not list((tmp_path / "elsewhere").iterdir())


def test_a_sheet_is_not_read_through_a_link_nor_from_anything_else(tmp_path):
    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "real.png")
    assert read_sheet(tmp_path / "real.png").getpixel((0, 0)) == (9, 8, 7)
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, says in ("link", "is a link"), ("pipe", "is not a regular file"), ("text", "is not a sheet"):
        with pytest.raises(UserError, match=rf"{name}.png {says}"):
            read_sheet(tmp_path / f"{name}.png")


# -- more than memory holds


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "count=1e9", "tracker=none"], "count=1000000000 needs .* of memory, and .* are free"),
        (["evaluate", "judge=none", "iwae_samples=1e9"], "iwae_samples=1000000000, of 8 images at once, needs"),
        (["latents", "steps=1e9"], "rows=8 of steps=1000000000 needs"),
        (["evaluate", "judge=random", "judge.samples=1e12"], "judge.samples=1000000000000 needs"),
        ([*TRAIN, "data=xor_chain", "data.train=1e12"], "data.train=1000000000000 and data.test=4000 needs"),
        ([*TRAIN, "data=ising", "data.test=1e12"], "data.train=100000 and data.test=1000000000000 needs"),
        (
            [*TRAIN, "data=gaussian_ring", "data.train=1e12"],
            "data.train=1000000000000, data.test=4000 and data.modes=8",
        ),
        ([*TRAIN, "data.train=1e9"], "data.train=1000000000 leaves nothing to test on"),
        ([*TRAIN, "loop.pictured=1e12"], "loop.pictured=1000000000000 needs"),
    ],
)
def test_sizes_that_memory_cannot_hold_are_one_line(folder, tmp_path, capsys, arguments, says):
    given = [a.format(tmp=tmp_path) for a in arguments]
    if given[0] != "train":
        given += [f"run={folder}", "device=cpu"]
    start = time.monotonic()
    assert gen_lab(*given) == 2
    assert time.monotonic() - start < 20
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and re.search(says, errors[0])
