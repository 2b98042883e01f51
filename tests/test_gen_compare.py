"""gen-lab compare: what stands in its table and its csv, from run folders' files."""

import csv
import json
import math
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from stated import stated

from gen_lab.__main__ import COMMANDS
from gen_lab.commands.compare import in_row, written
from gen_lab.commands.measures import Cell, joined, measures, proper
from rl_lab.core.comparing.groups import arrange
from rl_lab.core.folders import read_runs
from rl_lab.core.launching import cli

compare = stated("command/gen/compare")


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


def tables_of(folder, notes=None):
    (groups,) = arrange(
        [run._replace(curves=joined(proper(run.curves))) for run in read_runs([folder], [])], (), []
    ).values()
    return measures(groups, [] if notes is None else notes)


def test_bounds_stand_beside_likelihoods_and_say_so(runs):
    tables = tables_of(runs)
    assert tables["d"] == {
        "pixelcnn": {
            "nats": Cell(18.0, pytest.approx(1 / 3**0.5), False, 3, (50, 50)),
            "bits/dim": Cell(pytest.approx(0.36), pytest.approx(0.02 / 3**0.5), False, 3, (50, 50)),
        },
        "vae": {"nats": Cell(17.2, 0.1, True, 1, (50, 50), draws=100)},
    }
    assert tables["d-600-ab"]["gan"]["frechet"].mean == 0.25 and math.isnan(tables["d-600-ab"]["gan"]["frechet"].error)


def evaluated(folder, step: int, scores: dict, measures: dict | None = None, **more) -> None:
    record = {"step": step, "scores": scores, **({"measures": measures} if measures else {}), **more}
    (folder / "evaluation.json").write_text(json.dumps(record))


def test_nats_and_bits_of_a_row_are_of_one_bound(tmp_path):
    """18.2 nats of 64 pixels are 0.4103 bits each; the 17.1 by importance weights are 0.3855."""
    nat = 1 / (64 * math.log(2))
    run(tmp_path, "vae", 0, nll_bound_nats__d=18.2, bits_per_dim_bound__d=18.2 * nat, iwae100_nats__d=17.1,
        iwae100_nats_se__d=0.2, kl_bound_nats__d=3.0)  # fmt: skip
    row = tables_of(tmp_path)["d"]["vae"]
    assert (row["nats"].mean, row["nats"].bound) == (17.1, True)
    assert row["bits/dim"].mean == pytest.approx(0.38547, abs=5e-6) and row["bits/dim"].bound
    assert row["bits/dim"].error == pytest.approx(0.2 * nat)
    assert row["kl_nats"].mean == pytest.approx(1.9) and row["kl_nats"].bound  # 3.0 less the 1.1 that the bound fell
    assert set(row) == {"nats", "bits/dim", "kl_nats"}


def test_the_latest_figures_count_and_say_of_which_update_they_are(tmp_path, capsys):
    """A GAN stopped at update 559, whose only row of measures is of update 0, and what evaluate found later."""
    gan = run(tmp_path, "gan", 0, **{"frechet__d-ab": 99.0})
    rows = [{"step": 0, "seconds": 0.0, "eval/frechet[d-ab]": 99.0, "eval/recall[d-ab]": 0.5},
            {"step": 559, "seconds": 9.0, "gan/loss": 1.0}]  # fmt: skip
    (gan / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = []
    assert tables_of(tmp_path, notes)["d-ab"]["gan"]["frechet"] == Cell(
        99.0, pytest.approx(math.nan, nan_ok=True), False, 1, (0, 0)
    )
    assert notes == [f"{gan} has learned for 559 updates, and its figures are of update 0; gen-lab evaluate run={gan} "
                     "measures it as it is."]  # fmt: skip
    evaluated(gan, 559, {}, {"eval/frechet[d-ab]": 0.5}, floor={"eval/frechet[d-ab]": 0.2, "eval/recall[d-ab]": 0.9})
    notes.clear()
    row = tables_of(tmp_path, notes)["d-ab"]["gan"]
    assert (row["frechet"].mean, row["frechet"].steps, row["frechet_floor"].mean) == (0.5, (559, 559), 0.2)
    assert (row["recall"].mean, row["recall"].steps) == (0.5, (0, 0)) and not notes
    run(tmp_path, "other", 0, **{"frechet__d-ab": 0.7})
    assert cli.main("gen-lab", "gen", COMMANDS, ["compare", str(tmp_path), f"out={tmp_path}/out", "tracker=none"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"gan +559 +0.5000 +0.2000 +0.5000 @0", " ".join(printed.split())) or "0.5000 @0" in printed
    with (tmp_path / "out/measures.csv").open() as file:
        rows = {(row["model"], row["measure"]): row for row in csv.DictReader(file)}
    assert (rows["gan", "frechet"]["last_update"], rows["gan", "recall"]["last_update"]) == ("559", "0")


def test_an_older_evaluation_does_not_stand_for_a_newer_row(tmp_path):
    where = run(tmp_path, "vae", 0, nll_bound_nats__d=18.2, iwae10_nats__d=17.5)
    evaluated(where, 20, {"eval/nll_bound_nats[d]": 30.0, "eval/iwae1000_nats[d]": 16.0})
    row = tables_of(tmp_path)["d"]["vae"]
    assert (row["nats"].mean, row["nats"].steps) == (17.5, (50, 50))
    evaluated(where, 50, {"eval/nll_bound_nats[d]": 18.2, "eval/iwae1000_nats[d]": 16.9})
    assert tables_of(tmp_path)["d"]["vae"]["nats"].mean == 16.9


def test_figures_of_the_best_weights_are_of_their_update(tmp_path):
    where = run(tmp_path, "vae", 0, nll_bound_nats__d=18.2, iwae10_nats__d=17.5, **{"best/update": 20.0})
    notes = []
    assert tables_of(tmp_path, notes)["d"]["vae"]["nats"].steps == (20, 20) and not notes
    evaluated(where, 20, {"eval/nll_bound_nats[d]": 18.2, "eval/iwae1000_nats[d]": 16.8})
    assert tables_of(tmp_path)["d"]["vae"]["nats"][:1] == (16.8,)


def test_bounds_by_other_numbers_of_draws_have_no_best(tmp_path):
    run(tmp_path, "few", 0, nll_bound_nats__d=18.2, iwae5_nats__d=17.5, bits_per_dim_bound__d=0.4)
    run(tmp_path, "many", 0, nll_bound_nats__d=18.2, iwae500_nats__d=17.0, bits_per_dim_bound__d=0.4)
    compare([tmp_path], out=tmp_path / "out", resamples=20)
    text = (tmp_path / "out/index.html").read_text()
    assert 'class="best"' not in text and "≤ 17.00 (500 draws)" in text and "≤ 17.50 (5 draws)" in text


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"images": 10, "of": 10_000}, "it is of 10 of 10,000 test images"),
        ({"images": 10_000, "of": 10_000, "changes": ["data.held_out=0.1"]}, "it is with data.held_out=0.1"),
    ],
)
def test_a_quick_look_does_not_stand_for_the_whole_test_set(tmp_path, more, what):
    where = run(tmp_path, "vae", 0, nll_bound_nats__d=18.2)
    evaluated(where, 50, {"eval/nll_bound_nats[d]": 9.0}, **more)
    notes = []
    assert tables_of(tmp_path, notes)["d"]["vae"]["nats"].mean == 18.2
    assert notes == [f"{where}/evaluation.json is left out: {what}."]


@pytest.mark.parametrize("text", ["{", "[]", '{"step": "x", "scores": {"eval/a[d]": 1}}', '{"step": 1}', "[" * 100_000])
def test_a_damaged_evaluation_is_named_and_left_out(tmp_path, text):
    where = run(tmp_path, "vae", 0, nll_bound_nats__d=18.2)
    (where / "evaluation.json").write_text(text)
    notes = []
    assert tables_of(tmp_path, notes)["d"]["vae"]["nats"].mean == 18.2
    assert len(notes) == 1 and f"{where}/evaluation.json is left out" in notes[0]


def test_an_evaluation_is_not_read_through_a_link(tmp_path):
    where = run(tmp_path / "runs", "vae", 0, nll_bound_nats__d=18.2)
    evaluated(tmp_path, 50, {"eval/nll_bound_nats[d]": 1.0})
    (where / "evaluation.json").symlink_to(tmp_path / "evaluation.json")
    notes = []
    assert tables_of(tmp_path / "runs", notes)["d"]["vae"]["nats"].mean == 18.2
    assert "is a link, and is not followed" in notes[0]


def test_two_divergences_have_two_names(tmp_path):
    """KL(data || model) beside an exact likelihood; in folders of older runs, KL(q || prior) elsewhere."""
    run(tmp_path, "pixelcnn", 0, nll_nats__d=21.3, kl_nats__d=0.1)
    run(tmp_path, "vae", 0, nll_bound_nats__d=22.0, kl_nats__d=4.0, kl_nats_se__d=0.3, kl_bound_nats__d=0.8)
    tables = tables_of(tmp_path)["d"]
    assert (tables["pixelcnn"]["kl_nats"].mean, tables["pixelcnn"]["kl_nats"].bound) == (0.1, False)
    assert (tables["vae"]["kl_nats"].mean, tables["vae"]["kl_nats"].bound) == (0.8, True)
    assert (tables["vae"]["kl_prior_nats"].mean, tables["vae"]["kl_prior_nats"].error) == (4.0, 0.3)


def test_exact_curves_and_bounds_are_drawn_together_and_told_apart(tmp_path):
    run(tmp_path, "pixelcnn", 0, nll_nats__d=17.0)
    run(tmp_path, "vae", 0, nll_bound_nats__d=18.0)
    compare([tmp_path], out=tmp_path / "out", resamples=20)
    with (tmp_path / "out/compare.csv").open() as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"pixelcnn", "≤ vae"} and {row["metric"] for row in rows.values()} == {"eval/nats[d]"}
    assert (float(rows["pixelcnn"]["final"]), float(rows["≤ vae"]["final"])) == (17.0, 18.0)
    assert (tmp_path / "out/compare.png").exists()


def test_one_run_of_each_says_nothing_of_how_sure_it_is(tmp_path):
    for name, nats in ("good", 17.0), ("bad", 18.0):
        run(tmp_path, name, 0, nll_nats__d=nats)
    compare([tmp_path], out=tmp_path / "out", resamples=20)
    with (tmp_path / "out/pairwise.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["group"] == "good"]
    assert (row["probability_of_improvement"], row["low"], row["high"]) == ("1.0", "nan", "nan")
    text = (tmp_path / "out/index.html").read_text()
    assert "n=1" not in text and "Probability of improvement" not in text and "Distribution" not in text
    assert "2 groups, 1 seed each, 2 runs" in text and "[1.00, 1.00]" not in text
    assert "updates to threshold" in text and "from update 0 to 50" in text and " steps" not in text


def test_the_command_prints_and_writes_them(runs, capsys):
    given = ["compare", str(runs), f"out={runs}/out", "tracker=none"]
    assert cli.main("gen-lab", "gen", COMMANDS, given) == 0
    printed = capsys.readouterr().out
    assert "≤ 17.20 ± 0.10" in printed and printed.index("vae") < printed.index("pixelcnn")
    with (runs / "out/measures.csv").open() as file:
        rows = {(row["data"], row["model"], row["measure"]): row for row in csv.DictReader(file)}
    assert (rows["d", "vae", "nats"]["is_bound"], rows["d", "vae", "nats"]["draws"]) == ("True", "100")
    assert float(rows["d-600-ab", "gan", "recall"]["mean"]) == 0.75
    assert not (runs / "out/compare.png").exists()  # the three have no measure in common


def test_the_page_says_each_measure_in_words_and_who_is_best_of_one_protocol(runs, monkeypatch):
    run(runs, "dcgan", 0, **{"frechet__d-600-ab": 0.5, "recall__d-600-ab": 0.8, "frechet_floor__d-600-ab": 0.2,
                             "memorised__d-600-ab": 0.9})  # fmt: skip
    compare([runs], out=runs / "out", resamples=20)
    text = (runs / "out/index.html").read_text()
    for words in ("negative log-likelihood, nats an image ↓", "the same, bits a dimension ↓", "Fréchet distance ↓",
                  "recall, share of real images ↑", "Fréchet distance of held-out images<", ">seconds<"):  # fmt: skip
        assert words in text
    best = re.findall(r'<td class="best">(.*?)</td>', text)
    assert (
        best == ["≤ 17.20 ± 0.10 (100 draws)", "0.2500", "0.8000"] and "d-600: samples, as net ab sees them" in text
    )  # of those that several models have, never what was copied


def settings(folder, state="finished", **more):
    """Of a run; those of its loop and its judge among them."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.dump(config | more))
    (folder / "summary.json").write_text(json.dumps({"state": state}))


@pytest.mark.parametrize(("count", "words"), [(50, "2.000 (50 images)"), (30, "2.000")])
def test_a_row_says_how_many_images_it_is_of(tmp_path, count, words):
    """As many as were asked for, or all where there are fewer."""
    where = run(tmp_path, "a", 0, nll_nats__d=2.0, images__d=float(count))
    settings(where, "stopped", loop={"eval_images": 50})
    row = tables_of(tmp_path)["d"]["a"]
    assert in_row(row, ["nats"]) == [words] and [*row] == ["nats"]


@pytest.mark.parametrize(("state", "best"), [("finished", ["1.000"]), ("stopped", [])])
def test_nobody_is_best_of_other_images(tmp_path, state, best):
    """Before a run's end a few images are evaluated, at its end all."""
    whole, part = (run(tmp_path, model, 0, nll_nats__d=nats) for model, nats in (("a", 2.0), ("b", 1.0)))
    settings(whole, loop={"eval_images": None})
    settings(part, state, loop={"eval_images": 1_000})
    compare([tmp_path], out=tmp_path / "out", resamples=20)
    text = (tmp_path / "out/index.html").read_text()
    assert re.findall(r'<td class="best">(.*?)</td>', text) == best
    assert ("1.000 (1,000 images)" in text) == (not best)


@pytest.mark.parametrize(("k", "floor", "best"), [(5, 0.2, 2), (3, 0.2, 0), (5, 0.21, 0)])
def test_nobody_is_best_of_another_judge(tmp_path, k, floor, best):
    """Another neighbour, or other held-out images, whose own distance is another."""
    for model, frechet, neighbour, own in (("a", 0.5, 5, 0.2), ("b", 0.25, k, floor)):
        measured = {"frechet__d-0123abcd": frechet, "frechet_floor__d-0123abcd": own, "recall__d-0123abcd": frechet}
        settings(run(tmp_path, model, 0, **measured), judge={"k": neighbour, "samples": None})
    compare([tmp_path], out=tmp_path / "out", resamples=20)
    assert (tmp_path / "out/index.html").read_text().count('<td class="best">') == best


def test_all_columns_are_shown_however_narrow_the_terminal(runs, capsys, monkeypatch):
    monkeypatch.setattr("gen_lab.commands.compare.WIDE", 80)
    more = {f"measure{i}__d": float(i) for i in range(12)}
    run(runs, "wide", 0, nll_nats__d=1.0, **more)
    compare([runs], out=runs / "out", resamples=20)
    printed = capsys.readouterr().out
    assert all(f"measure{i}" in printed for i in range(12)) and "…" not in printed


def test_real_images_stand_beside_the_samples(runs):
    for model in "vae", "gan":
        (runs / model / "0/pictures").mkdir()
        Image.new("RGB", (50, 50), (255, 0, 0)).save(runs / model / "0/pictures/samples_00000050.png")
    Image.new("RGB", (50, 50), (0, 0, 255)).save(runs / "vae/0/pictures/real.png")
    compare([runs], out=runs / "out", resamples=20)
    picture = np.asarray(Image.open(runs / "out/samples.png").convert("RGB"), int)
    middle = picture[picture.shape[0] * 2 // 3]
    assert [tuple(map(int, middle[int(len(middle) * x)])) for x in (1 / 6, 1 / 2)] == [(0, 0, 255), (255, 0, 0)]


def test_runs_of_the_other_lab_are_left_out(runs, tmp_path, capsys):
    walk = tmp_path / "walk"
    walk.mkdir()
    config = {"name": "walk", "seed": 0, "choices": {"agent": "dqn", "env": "book"}, "env": {"size": 3}}
    (walk / "config.yaml").write_text(yaml.dump(config))
    (walk / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": 0.0, "eval/return": 1.0}) + "\n")
    compare = ["compare", f"out={tmp_path}/out", "tracker=none"]
    assert cli.main("gen-lab", "gen", COMMANDS, [*compare, f"{runs}/vae", str(walk)]) == 0
    assert "1 run of rl-lab train left out; rl-lab compare reads them." in " ".join(capsys.readouterr().out.split())
    assert cli.main("gen-lab", "gen", COMMANDS, [*compare, str(walk)]) == 2
    line = f"gen-lab: {walk} holds no model: it is not a run of gen-lab train; rl-lab compare reads it\n"
    assert capsys.readouterr().err == line


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


def test_one_without_an_evaluation_is_named_with_what_to_type(runs, capsys):
    folder = run(runs, "gan_alone", 0, **{"gan/generator_loss": 0.5})
    notes: list[str] = []
    assert "gan_alone" not in str(tables_of(runs, notes))
    words = f"has not been evaluated; gen-lab evaluate run={folder} judge=classifier does that."
    assert notes == [f"{folder} is in no table: it {words}"]


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


def test_more_resamples_than_tell_anything_are_one_line(runs, capsys):
    given = ["compare", str(runs), f"out={runs}/out", "tracker=none", "resamples=1e12"]
    assert cli.main("gen-lab", "gen", COMMANDS, given) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "resamples=1000000000000" in line.replace("1e+12", "1000000000000") and "between 1 and 1,000,000" in line
