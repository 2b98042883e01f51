"""Small run folders written by hand, whose comparison is known."""

import csv
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.core import files
from rl_lab.core.comparing.compare import analyse
from rl_lab.core.comparing.tables import captions, show
from rl_lab.core.errors import UserError
from rl_lab.core.folders import choose_metric, read_run
from rl_lab.core.launching import cli
from rl_lab.core.style import COLORS

compare = stated("command/rl/compare")


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def contrast():
    """compare, but for its files."""

    def printed(runs, **settings):
        results, notes = analyse(runs, **settings)
        show(results, [*captions(results), *notes], [])
        return results.rows

    return printed


@pytest.fixture
def written(tmp_path):
    """compare, writing where the test can look."""
    return lambda runs, **settings: compare(runs, out=tmp_path / "out", **settings)


def line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# -- the table


def test_final_best_area_and_threshold_of_one_group(runs, contrast):
    write_run(runs / "a", [0.0, 0.4, 0.2], seed=0)
    write_run(runs / "b", [0.0, 0.8, 1.0], seed=1)
    (row,) = contrast([runs])
    assert (row.group, row.seeds) == ("dqn_four_rooms", 2)
    assert row.final == pytest.approx((0.6, 0.2, 1.0))
    assert row.best == pytest.approx((0.7, 0.4, 1.0))
    assert row.area == pytest.approx(((0.25 + 0.65) / 2, 0.25, 0.65))
    # 90 % of the way from 0 to 0.6, which b alone reaches
    assert (row.reached, row.steps_to_threshold, row.seconds_to_threshold) == (1, 10, 1)


def test_a_given_threshold_and_its_median(runs, contrast, capsys):
    for seed, values in enumerate(([0, 0.5, 0, 1], [0, 0, 0.5], [0, 0, 0, 0, 0, 0.5], [0, 0, 0])):
        write_run(runs / str(seed), values, seed=seed)
    (row,) = contrast([runs], threshold=0.5)
    assert (row.reached, row.steps_to_threshold, row.seconds_to_threshold) == (3, 20, 2)
    assert "threshold: 0.5, as asked; k/n: median of the k seeds that reached it." in capsys.readouterr().out


def test_where_lower_is_better_best_is_the_least_and_the_threshold_comes_from_above(runs, contrast, capsys):
    metric = "eval/nll_nats[mnist]"
    write_run(runs / "a", [200, 90, 95], metric=metric, name="vae_mnist")
    write_run(runs / "b", [180, 120, 100], metric=metric, name="pixelcnn_mnist")
    first, second = contrast([runs])
    assert (first.group, first.final.point, first.best.point) == ("vae_mnist", 95, 90)
    assert (first.steps_to_threshold, second.reached) == (10, 1)  # 200 - 0.9 (200 - 95) = 105.5
    out = capsys.readouterr().out
    assert "eval/nll_nats[mnist]: lower is better; of a single run each." in out
    assert "threshold: 105.5, 90 % of the way from the worst first value to the best final one" in out


def test_areas_are_taken_over_the_steps_that_every_group_covers(runs, contrast, capsys):
    write_run(runs / "a", [0, 1, 2, 3, 4], name="long")
    write_run(runs / "b", [0, 1, 2], name="short")
    long, short = contrast([runs])
    assert (long.group, long.area.point, short.area.point) == ("long", 1.0, 1.0)
    out = capsys.readouterr().out
    assert "area: mean height of the curve from step 0 to 20, which all curves cover." in out
    assert "final: at each run's own last row, from step 20 to 40." in out


def test_seeds_without_a_step_in_common(runs, contrast, capsys):
    write_run(runs / "a", [0.0, 0.5])
    write_run(runs / "b", [0.5, 1.0], seed=1, start=50)
    (row,) = contrast([runs])
    assert (row.final.point, math.isnan(row.area.point)) == (0.75, True)
    assert "area: blank, as there are no steps that all curves cover." in capsys.readouterr().out


def test_seeds_of_a_row_each_share_no_seconds_and_are_drawn_all_the_same(runs, written, tmp_path):
    for seed in range(2):
        folder = write_run(runs / str(seed), [0.5 + seed], seed=seed)
        row = json.loads((folder / "metrics.jsonl").read_text())
        (folder / "metrics.jsonl").write_text(json.dumps(row | {"seconds": 1.0 + seed}) + "\n")
    written([runs])
    assert (tmp_path / "out/compare.png").stat().st_size > 0


def test_a_planner_of_one_row_takes_no_area_from_the_others(runs, contrast):
    write_run(runs / "a", [0, 1, 2])
    write_run(runs / "b", [3.0], name="value_iteration")
    planner, learner = contrast([runs])
    assert math.isnan(planner.area.point)
    assert learner.area.point == 1


def test_nobody_learned(runs, contrast, capsys):
    write_run(runs / "a", [1.0, 0.5, 0.2])
    (row,) = contrast([runs])
    assert row.reached == 0
    assert "threshold: none, as no group ends better than the worst begins.\n" in capsys.readouterr().out


def test_one_seed_is_said_to_be_one(runs, contrast, capsys):
    write_run(runs / "a", [0, 1, 0.75])
    (row,) = contrast([runs])
    assert row.final.point == 0.75 and np.isnan([row.final.low, row.final.high]).all()
    assert "n=1" in capsys.readouterr().out


def test_the_files_hold_the_table(runs, written, tmp_path, capsys):
    for seed in range(2):
        write_run(runs / f"a{seed}", [0, 0.5, 1 + seed], seed=seed)
        write_run(runs / f"b{seed}", [0, 0.5, 3 + seed], seed=seed, name="a2c_four_rooms")
    rows = written([runs])
    with (tmp_path / "out/compare.csv").open() as file:
        best, second = csv.DictReader(file)
    assert (best["group"], best["metric"], best["seeds"]) == ("a2c_four_rooms", "eval/return", "2")
    assert [float(best[k]) for k in ("final", "final_low", "final_high")] == [3.5, 3, 4]
    assert (float(best["steps_to_threshold"]), best["reached"], float(best["threshold"])) == (20, "1", 3.15)
    assert (second["steps_to_threshold"], second["reached"]) == ("nan", "0")
    assert [row.group for row in rows] == ["a2c_four_rooms", "dqn_four_rooms"]
    out = capsys.readouterr().out
    for suffix in ("csv", "png", "svg"):
        path = tmp_path / f"out/compare.{suffix}"
        assert path.stat().st_size > 200
        assert str(path) in out


def test_the_picture_shows_every_group_and_names_the_metric(runs, written, tmp_path):
    from PIL import Image

    for seed in range(3):
        write_run(runs / f"a{seed}", [0, 0.5, 1], seed=seed)
        write_run(runs / f"b{seed}", [0, 0.2, 0.4], seed=seed, name="a2c_four_rooms")
    written([runs])
    pixels = np.asarray(Image.open(tmp_path / "out/compare.png").convert("RGB")).reshape(-1, 3)
    for color in COLORS[:2]:
        assert (pixels == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum() > 500
    assert not (pixels == [int(COLORS[2][i : i + 2], 16) for i in (1, 3, 5)]).all(-1).any()
    svg = (tmp_path / "out/compare.svg").read_text()
    for text in (
        "eval/return, higher is better",
        "final score",
        "steps",
        "seconds",
        "dqn_four_rooms (n=3)",
        "a2c_four_rooms (n=3)",
    ):
        assert f"<!-- {text} -->" in svg


def test_a_residual_over_two_orders_of_magnitude_is_drawn_on_a_logarithmic_axis_and_a_return_is_not(runs, tmp_path):
    write_run(runs / "a", [1, 0.5, 0.0099], metric="plan/residual")
    write_run(runs / "b", [1, 0.5, 0.0101], metric="plan/residual")
    write_run(runs / "c", [0.3, 50, 400])
    for folder, logarithmic in (("a", True), ("b", False), ("c", False)):
        compare([runs / folder], out=tmp_path / folder)
        assert (r"\mathdefault{10^{" in (tmp_path / folder / "compare.svg").read_text()) == logarithmic


# -- groups


def test_runs_that_differ_in_seed_and_place_alone_are_one_group(runs, contrast):
    for seed, device in enumerate(("cpu", "cuda", "auto")):
        place = {"device": device, "threads": seed, "tracker": {"mode": device}, "checkpoint": {"x": seed}}
        write_run(runs / str(seed), seed=seed, top=place | {"env": {"seed": "${seed}"}})
    (row,) = contrast([runs])
    assert (row.group, row.seeds) == ("dqn_four_rooms", 3)


def test_groups_of_one_name_are_told_apart_by_what_differs(runs, contrast):
    for seed in range(2):
        write_run(runs / f"a{seed}", [0, 1.0], seed=seed)
        write_run(runs / f"b{seed}", [0, 0.5], seed=seed, gamma=0.9)
        write_run(runs / f"c{seed}", [0, 0.1], seed=seed, name="a2c_four_rooms")
    rows = contrast([runs])
    assert [(row.group, row.seeds) for row in rows] == [
        ("dqn_four_rooms agent.gamma=0.99", 2), ("dqn_four_rooms agent.gamma=0.9", 2), ("a2c_four_rooms", 2),
    ]  # fmt: skip


def test_a_chosen_agent_stands_for_all_its_settings(runs, contrast):
    write_run(runs / "a", [0, 1.0], name="mine")
    write_run(runs / "b", [0, 0.5], name="mine", choices={"agent": "a2c", "env": "four_rooms"},
              _target_="rl_lab.agents.a2c.A2C", gamma=0.9, optimizer={"lr": 0.1}, gae_lambda=1.0)  # fmt: skip
    assert [row.group for row in contrast([runs])] == ["mine agent=dqn", "mine agent=a2c"]


def test_a_setting_is_named_beside_the_chosen_agent_where_the_agent_does_not_imply_it(runs, contrast):
    a2c = dict(name="mine", choices={"agent": "a2c", "env": "four_rooms"}, _target_="rl_lab.agents.a2c.A2C")
    write_run(runs / "a", [0, 1.0], name="mine")
    write_run(runs / "b", [0, 0.5], **a2c)
    write_run(runs / "c", [0, 0.2], **a2c, gamma=0.9)
    assert [row.group for row in contrast([runs])] == [
        "mine agent=dqn agent.gamma=0.99",
        "mine agent=a2c agent.gamma=0.99",
        "mine agent=a2c agent.gamma=0.9",
    ]


def test_a_seed_run_twice_counts_once(runs, contrast, capsys):
    write_run(runs / "a", [0, 1.0], seed=0)
    write_run(runs / "b", [0, 0.5, 0.6], seed=0)
    write_run(runs / "c", [0, 0.8], seed=1)
    (row,) = contrast([runs])
    assert (row.seeds, row.final.low, row.final.high) == (2, 0.6, 0.8)
    assert f"{runs / 'a'} is left out: {runs / 'b'} has its seed and settings." in capsys.readouterr().out


def test_a_folder_named_twice_counts_once(runs, contrast, capsys):
    write_run(runs / "dqn" / "a", seed=0)
    write_run(runs / "dqn" / "b", seed=1)
    (runs / "link").symlink_to(runs / "dqn" / "a")
    (row,) = contrast([runs / "dqn", runs / "dqn" / "a", runs / "dqn/../dqn/b", runs / "link"])
    assert row.seeds == 2
    assert "left out" not in capsys.readouterr().out


# -- reading


def test_a_line_cut_by_a_kill_is_ignored(runs):
    folder = write_run(runs / "a", [0.1, 0.2])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "seconds": 2.0, "eval/ret')
    curve = read_run(folder).curves["eval/return"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([0, 10], [0.1, 0.2])


def test_rows_of_several_kinds_make_a_curve_each(runs):
    folder = write_run(runs / "a", [0.1, 0.2])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "seconds": 1.5, "episode/return": 7.0, "dqn/td_error": NaN}\n')
    curves = read_run(folder).curves
    assert sorted(curves) == ["episode/return", "eval/return"]
    assert [x.tolist() for x in curves["episode/return"]] == [[10], [1.5], [7]]


def test_what_a_resumed_run_took_back_is_void(runs):
    folder = write_run(runs / "a", [0.1, 0.2, 0.3, 0.4])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "seconds": 9.0, "eval/return": 0.9}\n')
    curve = read_run(folder).curves["eval/return"]
    assert [x.tolist() for x in curve] == [[0, 10, 15], [0, 1, 9], [0.1, 0.2, 0.9]]


def test_a_killed_run_without_a_summary_is_compared_and_said(runs, contrast, capsys):
    write_run(runs / "a", state=None)
    write_run(runs / "b", seed=1, state="running")
    write_run(runs / "c", seed=2)
    assert contrast([runs])[0].seeds == 3
    assert f"not finished: {runs / 'a'}, {runs / 'b'}." in capsys.readouterr().out


def test_a_run_without_rows_below_a_folder_is_left_out_and_said(runs, contrast, capsys):
    write_run(runs / "a")
    write_run(runs / "b", [], seed=1)
    assert contrast([runs])[0].seeds == 1
    assert f"{runs / 'b'} is left out: it has no rows." in capsys.readouterr().out


# -- the default metric


@pytest.mark.parametrize(
    "metrics, expected",
    [
        ([{"eval/return", "episode/return"}, {"eval/return", "episode/return"}], "eval/return"),
        ([{"eval/return", "episode/return"}, {"episode/return", "plan/residual"}], "episode/return"),
        ([{"eval/nll_nats[a]", "vae/kl"}, {"eval/nll_nats[a]", "vae/kl", "eval/return"}], "eval/nll_nats[a]"),
        ([{"plan/residual"}, {"plan/residual", "eval/return"}], "plan/residual"),
    ],
)
def test_the_default_metric_is_the_first_choice_that_every_run_has(runs, metrics, expected):
    found = []
    for i, names in enumerate(metrics):
        folder = write_run(runs / str(i), [])
        row = {"step": 0, "seconds": 0.0} | dict.fromkeys(names, 1.0)
        (folder / "metrics.jsonl").write_text(json.dumps(row))
        found.append(read_run(folder))
    assert choose_metric(found) == expected


# -- a user's mistakes, to the letter


def test_a_folder_that_is_no_run(tmp_path, contrast):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(UserError) as error:
            contrast([folder])
        assert line(error) == f"no run in {folder}; a run folder holds config.yaml and metrics.jsonl"


def test_of_several_folders_one_that_is_no_run_is_left_out_and_said(runs, written, capsys):
    good, bare = write_run(runs / "a"), write_run(runs / "b", seed=1)
    (bare / "config.yaml").unlink()
    written([good, bare])
    said = capsys.readouterr().out
    assert f"left out: no run in {bare}; a run folder holds config.yaml and metrics.jsonl." in said


def test_no_folder_at_all(contrast):
    with pytest.raises(UserError) as error:
        contrast([])
    assert line(error) == "no runs to compare; name their folders: runs/<name>"


def test_a_run_without_rows(runs, contrast):
    folder = write_run(runs / "a", [])
    for _ in range(2):
        with pytest.raises(UserError) as error:
            contrast([folder])
        assert line(error) == f"{folder} has no rows in metrics.jsonl yet; wait for them or leave it out"
        (folder / "metrics.jsonl").unlink(missing_ok=True)


@pytest.mark.parametrize("text", ["", "- 1", "seed: 1", "name: x"])
def test_a_config_that_is_none(runs, contrast, text):
    folder = write_run(runs / "a")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        contrast([folder])
    assert line(error) == f"{folder}/config.yaml is not the config of a run; leave it out"


def test_a_misspelt_metric(runs, contrast):
    write_run(runs / "a")
    with pytest.raises(UserError) as error:
        contrast([runs], metric="eval/retrun")
    assert line(error) == "no metric 'eval/retrun'; did you mean eval/return?"


def test_a_metric_that_one_run_lacks(runs, contrast):
    write_run(runs / "a")
    write_run(runs / "b", metric="vae/kl", seed=1)
    with pytest.raises(UserError) as error:
        contrast([runs], metric="eval/return")
    assert line(error) == f"{runs / 'b'} has no 'eval/return'; leave it out"
    with pytest.raises(UserError) as error:
        contrast([runs])
    assert line(error) == "these runs have no metric in common; compare fewer of them"


def test_runs_of_the_other_lab_are_left_out(runs, tmp_path, capsys):
    for i, (lab, metric) in enumerate((("rl_lab.loops.training.train", "eval/return"), ("gen_lab.fit.fit", "vae/kl"))):
        for seed in range(i + 1):
            write_run(runs / f"{i}{seed}", metric=metric, seed=seed, top={"loop": {"_target_": lab, "total_steps": 20}})
    compare = "compare", f"out={tmp_path}/out"
    assert cli.main("rl-lab", "rl", COMMANDS, [*compare, str(runs)]) == 0
    assert capsys.readouterr().err == "left out: 2 runs of gen-lab, which rl-lab does not read\n"
    assert cli.main("rl-lab", "rl", COMMANDS, [*compare, str(runs / "10"), str(runs / "11")]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main("rl-lab", "rl", COMMANDS, ["compare", str(runs), "out=x.html"]) == 2
    assert capsys.readouterr().err.endswith("out=x.html is for a folder; leave off the ending: out=x\n")


def test_no_metric_that_could_be_meant(runs, contrast):
    folder = write_run(runs / "a", metric="vae/kl")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "seconds": 1.5, "vae/nll": 7.0}\n')
    with pytest.raises(UserError) as error:
        contrast([runs])
    assert line(error) == "which metric? choose metric= from vae/kl, vae/nll"


# -- the world outside


def test_a_tracker_may_open_nothing(runs, written):
    write_run(runs / "a")
    (row,) = written([runs], tracker=lambda **_: None)
    assert row.final.point == 1


def test_importing_is_quick():
    slow = "{'torch', 'matplotlib', 'wandb', 'scipy'}"
    code = f"import sys, rl_lab.core.comparing.compare; sys.exit(' '.join({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


def test_without_out_the_files_lie_under_runs(runs, monkeypatch, tmp_path):
    write_run(runs / "a")
    monkeypatch.chdir(tmp_path)
    compare([runs])
    (folder,) = (tmp_path / "runs/compare").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == [
        "aggregates.csv", "compare.csv", "compare.png", "compare.svg", "curves.csv", "index.html", "pairwise.csv",
    ]  # fmt: skip


def test_a_full_disk_leaves_none_of_the_files(runs, monkeypatch, tmp_path, capsys):
    write_run(runs / "a")
    monkeypatch.chdir(tmp_path)
    Path("before").mkdir()
    Path("before/compare.csv").write_text("of another comparison")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rl_lab.core.comparing.page.write", full)
    for out in "before", "new":
        assert cli.main("rl-lab", "rl", COMMANDS, ["compare", str(runs), f"out={out}"]) == 2
        words = f"cannot write to {out}: No space left on device; make room or choose another place (out=)"
        assert capsys.readouterr().err == f"rl-lab: {words}\n"
    assert [path.name for path in Path("before").iterdir()] == ["compare.csv"] and not Path("new").exists()
    assert Path("before/compare.csv").read_text() == "of another comparison"


def test_two_comparisons_at_once_leave_whole_files(tmp_path):
    with files.together(tmp_path / "out") as one, files.together(tmp_path / "out") as other:
        for place in one, other:
            files.write(place / "compare.csv", str(place))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compare.csv"]
    assert (tmp_path / "out/compare.csv").read_text() == str(one)


def test_a_name_is_no_formula(tmp_path, monkeypatch):
    """Dollars in a run's name would be read as mathematics, and end the drawing with a traceback."""
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        write_run(tmp_path / f"runs/{seed}", name="$\\frac{$", seed=seed)
    assert cli.main("rl-lab", "rl", COMMANDS, ["compare", "runs", "tracker=none", "out=page"]) == 0
    assert (tmp_path / "page/compare.png").exists() and "\\frac{" in (tmp_path / "page/index.html").read_text()
