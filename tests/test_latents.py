"""gen-lab latents: what stands on its sheets and on its map."""

import numpy as np
import pytest
import torch
from PIL import Image
from stated import stated

from gen_lab.__main__ import COMMANDS
from gen_lab.commands.latents import interpolations, principal, traversals
from gen_lab.fit import picture
from gen_lab.judging.evaluation import evaluate
from gen_lab.types import Spec
from rl_lab.core.launching import cli
from rl_lab.core.run import Run

digits = stated("data/digits")


class Straight:
    """The image is the code, two pixels of it."""

    def code(self, x, label=None):
        return x.flatten(1)

    def decode(self, z, label=None):
        return z.view(-1, 1, 1, 2) if label is None else z.view(-1, 1, 1, 2) + 10 * label.view(-1, 1, 1, 1)


def test_a_walk_changes_one_number_the_most_varied_first():
    z = torch.tensor([[5.0, 0.0], [3.0, 20.0], [1.0, 40.0]])  # deviations 2 and 20 around 3 and 20
    walks = traversals(Straight(), z, 2, 3, 1.0).flatten(1)
    assert walks.tolist() == [[5, 0], [5, 20], [5, 40], [1, 0], [3, 0], [5, 0]]
    assert traversals(Straight(), z, 1, 3, 1.0, torch.tensor([2])).flatten(1)[0].tolist() == [25, 20]


def test_a_way_leads_from_one_image_to_the_next():
    x = torch.tensor([[0.0, 0.0], [4.0, 8.0], [1.0, 1.0], [1.0, 3.0], [9.0, 9.0]]).view(5, 1, 1, 2)
    ways = interpolations(Straight(), x, x.flatten(1), 8, 3).flatten(1)
    assert ways.tolist() == [[0, 0], [0, 0], [2, 4], [4, 8], [4, 8], [1, 1], [1, 1], [1, 2], [1, 3], [1, 3]]


def test_units_that_tell_images_apart_are_counted():
    """Of three numbers one is always the same, and one varies by less than Burda et al. count."""

    class Model:
        spec = Spec((1, 8, 8), 2)

        def code(self, x, label=None):
            ink = x.float().mean((1, 2, 3))
            return torch.stack([10 * ink, 0.1 * ink, 0 * ink], 1)

        def decode(self, z, label=None): ...
        def score(self, x, rng, iwae_samples=0, label=None):
            return {}

    assert evaluate(Model(), digits(protocol="binarised"), 0) == {"eval/active_units[digits-binarised]": 1}


def test_a_model_told_labels_is_told_them_when_it_is_pictured(tmp_path):
    """It makes of each test image a grey of its label."""

    class Model:
        spec = Spec((1, 8, 8), 2, 10)

        def sample(self, count, rng, label=None):
            return torch.zeros(count, 1, 8, 8, dtype=torch.uint8)

        def reconstruct(self, x, label):
            return (label / 10).view(-1, 1, 1, 1).expand_as(x)

    data = digits(protocol="binarised")
    with Run(tmp_path, 0, "cpu", names={"name": "test"}, config={}) as run:
        picture(Model(), data, run, 0, 4)
    sheet = np.asarray(Image.open(tmp_path / "pictures/reconstructions_00000000.png"))
    shown = [sheet[10, 2 + 50 * i + 10, 0] for i in (1, 3)]
    assert shown == [round(255 * int(label) / 10) for label in data.test_labels[:2]]


def test_the_map_is_turned_to_where_codes_vary_most():
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(500, 3, generator=rng).double() * torch.tensor([3.0, 1.0, 0.1])
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng).double())
    z, share = principal(true @ turned)
    assert share.tolist() == pytest.approx([0.9, 0.1], abs=0.02)
    centred = true - true.mean(0)
    for i in range(2):
        assert abs(torch.corrcoef(torch.stack([z[:, i], centred[:, i]]))[0, 1]) > 0.99


@pytest.mark.parametrize("model", ["vae", "autoencoder"])
def test_the_command_leaves_its_pictures(tmp_path, model, capsys):
    given = "train", f"model={model}", "loop.total_steps=2", "tracker=none", "device=cpu", f"hydra.run.dir={tmp_path}"
    conditional = ["model.conditional=true"] * (model == "vae")
    assert cli.main("gen-lab", "gen", COMMANDS, [*given, *conditional]) == 0
    assert cli.main("gen-lab", "gen", COMMANDS, ["latents", str(tmp_path), "rows=2", "steps=3"]) == 0
    printed = capsys.readouterr().out
    for name in ("traversals", "interpolations", "latent_map"):
        assert (tmp_path / f"pictures/{name}.png").stat().st_size > 500 and f"{name}.png" in printed
    elsewhere, before = tmp_path / "elsewhere", sorted(tmp_path.rglob("*"))
    out = "rows=2", "steps=3", f"out={elsewhere}"
    assert cli.main("gen-lab", "gen", COMMANDS, ["latents", str(tmp_path), *out]) == 0
    assert len([*elsewhere.glob(f"{model}_*.png")]) == 3 and before == sorted(
        path for path in tmp_path.rglob("*") if not path.is_relative_to(elsewhere)
    )
    for command in "latents", "sample":
        assert cli.main("gen-lab", "gen", COMMANDS, [command, str(tmp_path), "out=x.png"]) == 2
        assert capsys.readouterr().err.endswith("out=x.png is for a folder; leave off the ending: out=x\n")


def test_a_model_without_latents(tmp_path, capsys):
    given = "train", "model=independent", "loop.total_steps=1", "tracker=none", f"hydra.run.dir={tmp_path}"
    assert cli.main("gen-lab", "gen", COMMANDS, [*given, "device=cpu"]) == 0
    assert cli.main("gen-lab", "gen", COMMANDS, ["latents", str(tmp_path)]) == 2
    assert "has no latents to look at" in capsys.readouterr().err


def test_a_map_names_its_labels(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from gen_lab.commands.latents import write_map

    named = []
    plain = Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda self, handles, labels, **how: named.extend(labels) or plain(self, handles, labels, **how))  # fmt: skip
    write_map(tmp_path / "map.png", torch.randn(12, 2), torch.arange(12) % 3, "codes")
    assert named == ["0", "1", "2"]
