"""gen-lab compare: what stands in its table and its csv, from run folders' files."""

import csv
import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image

from gen_lab.__main__ import COMMANDS
from gen_lab.comparison import Cell, compare, measures, written
from rl_lab.core import cli
from rl_lab.core.comparing.groups import arrange
from rl_lab.core.folders import read_runs


def run(folder, model: str, seed: int, **last):
    """Two evaluations, of which the first is of no account."""
    where = folder / model / str(seed)
    where.mkdir(parents=True)
    config = {"name": model, "seed": seed, "choices": {"model": model}, "model": {"_target_": model}}
    (where / "config.yaml").write_text(yaml.dump(config))
    row = {name.replace("__", "["): value for name, value in last.items()}
    row = {f"eval/{name}]" if "[" in name else name: value for name, value in row.items()}
    first = {name: 99.0 for name in row}
    lines = [{"step": 0, "seconds": 0.0, **first}, {"step": 50, "seconds": 1.0, **row}]
    (where / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (where / "summary.json").write_text(json.dumps({"state": "finished"}))
    return where


@pytest.fixture
def runs(tmp_path):
    for seed, nats in enumerate((17.0, 18.0, 19.0)):
        run(tmp_path, "pixelcnn", seed, nll_nats__d=nats, nll_nats_se__d=0.3, bits_per_dim__d=nats / 50)
    run(tmp_path, "vae", 0, nll_bound_nats__d=18.5, nll_bound_nats_se__d=0.2, iwae100_nats__d=17.2,
        iwae100_nats_se__d=0.1, **{"frechet__d-600-ab": 0.5})  # fmt: skip
    run(tmp_path, "gan", 0, **{"frechet__d-600-ab": 0.25, "recall__d-600-ab": 0.75})
    return tmp_path


def test_bounds_stand_beside_likelihoods_and_say_so(runs):
    tables = measures(arrange(read_runs([runs], []), (), [])[""])
    assert tables["d"] == {
        "pixelcnn": {
            "nats": Cell(18.0, pytest.approx(1 / 3**0.5)),
            "bits/dim": Cell(pytest.approx(0.36), pytest.approx(0.02 / 3**0.5)),
        },
        "vae": {"nats": Cell(17.2, 0.1, bound=True)},
    }
    assert tables["d-600-ab"]["gan"]["frechet"].mean == 0.25 and math.isnan(tables["d-600-ab"]["gan"]["frechet"].error)


def test_the_command_prints_and_writes_them(runs, capsys):
    given = ["compare", str(runs), f"out={runs}/out", "tracker=none"]
    assert cli.main("gen-lab", "gen", COMMANDS, given) == 0
    printed = capsys.readouterr().out
    assert "≤ 17.20 ± 0.10" in printed and printed.index("vae") < printed.index("pixelcnn")
    with (runs / "out/measures.csv").open() as file:
        rows = {(row["data"], row["model"], row["measure"]): row for row in csv.DictReader(file)}
    assert rows["d", "vae", "nats"]["is_bound"] == "True"
    assert float(rows["d-600-ab", "gan", "recall"]["mean"]) == 0.75
    assert not (runs / "out/compare.png").exists()  # the three have no measure in common


def test_curves_of_what_all_runs_have(runs):
    compare([runs / "vae", runs / "gan"], out=runs / "out", resamples=20)
    assert (runs / "out/compare.png").exists()
    assert "frechet" in (runs / "out/compare.csv").read_text()


def test_samples_stand_side_by_side(runs, capsys):
    """Of each model the last sheet; those without one are left out."""
    for model, shades in {"vae": (255, 0), "gan": (0, 255)}.items():
        (runs / model / "0/pictures").mkdir()
        for step, shade in enumerate(shades):
            Image.new("RGB", (50, 50), (shade, 0, 0)).save(runs / model / f"0/pictures/samples_{step:08d}.png")
    compare([runs], out=runs / "out", resamples=20)
    assert "samples.png" in capsys.readouterr().out
    picture = np.asarray(Image.open(runs / "out/samples.png").convert("RGB"), int)
    middle = picture[picture.shape[0] * 2 // 3]
    colours = [tuple(map(int, middle[int(len(middle) * x)])) for x in (0.25, 0.75)]
    assert sorted(colours) == [(0, 0, 0), (255, 0, 0)] and colours[0] == (255, 0, 0)  # gan before vae, as in names


def test_runs_that_were_never_evaluated(tmp_path, capsys):
    run(tmp_path, "vae", 0, loss=1.0)
    assert cli.main("gen-lab", "gen", COMMANDS, ["compare", str(tmp_path), f"out={tmp_path}/out", "tracker=none"]) == 2
    assert "have not been evaluated yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cell", "text"),
    [(Cell(123.456, 1.5), "123.5 ± 1.5"), (Cell(0.012345, math.nan), "0.01235"), (Cell(0.0, math.nan), "0"),
     (Cell(17.123, 0.25, True), "≤ 17.12 ± 0.25"), (Cell(-3.0, 0.5), "-3.000 ± 0.500")],
)  # fmt: skip
def test_as_many_digits_as_tell(cell, text):
    assert written(cell) == text
