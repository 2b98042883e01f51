"""The trackers that write into the run's own folder."""

import csv
import json
import sys

import hydra
import pytest

from rl_lab.__main__ import COMMANDS
from rl_lab.core.launching import cli
from rl_lab.core.local_trackers import tensorboard_run

TRAIN = ["env=gym", "env.num_envs=4", "agent=a2c_mlp", "loop.eval_episodes=4", "loop.eval_every=100",
         "loop.log_every=100", "hydra.run.dir=run"]  # fmt: skip


def run(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, [*arguments])


@pytest.fixture(autouse=True)
def _in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def columns(folder) -> list[dict]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(x) for name, x in row.items() if x} for row in csv.DictReader(file)]


def test_csv_holds_the_rows_in_columns_and_a_resumed_run_goes_on_in_them(tmp_path):
    assert run("train", *TRAIN, "tracker=csv", "loop.total_steps=300") == 0
    folder = tmp_path / "run"
    assert columns(folder) == rows(folder) and len(rows(folder)) >= 4
    with (folder / "metrics.csv").open("a") as file:
        file.write("999,9.0\n")  # of a session that was killed after its last checkpoint
    assert run("train", "run=run", "loop.total_steps=500") == 0
    assert columns(folder) == rows(folder) and rows(folder)[-1]["step"] == 500
    head = (folder / "metrics.csv").read_text().partition("\n")[0]
    assert head.startswith("step,seconds,eval/return,") and head.split(",").count("eval/return") == 1


def test_a_tracker_that_fails_stops_no_run(tmp_path, capsys):
    assert run("train", *TRAIN, "tracker=csv", "loop.total_steps=100") == 0
    (tmp_path / "run/metrics.csv").unlink()
    (tmp_path / "run/metrics.csv").mkdir()
    assert run("train", "run=run", "loop.total_steps=200") == 0
    assert "Csv takes no more rows (UserError: " in capsys.readouterr().err
    assert rows(tmp_path / "run")[-1]["step"] == 200


def test_without_tensorboard_a_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    built, build = [], hydra.utils.instantiate
    monkeypatch.setattr(
        hydra.utils, "instantiate", lambda node, **how: built.append(node["_target_"]) or build(node, **how)
    )
    assert run("train", *TRAIN, "tracker=tensorboard", "loop.total_steps=100") == 2
    assert built == ["rl_lab.core.local_trackers.tensorboard_run"], "no world, and no data"
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said.endswith('tracker=tensorboard needs tensorboard; pip install "rl-lab[tensorboard]"') and "\n" not in said
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_rows_pictures_films_and_settings(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = ["planner=value_iteration", "env=russell_norvig", "loop.film=true", "hydra.run.dir=plan"]
    assert run("train", *plan, "tracker=tensorboard") == 0
    seen = EventAccumulator(str(tmp_path / "plan/tensorboard"))
    seen.Reload()
    assert {*seen.Tags()["images"]} == {"plan/values", "plan/q", "plan/sweeps"}
    film = seen.Images("plan/sweeps")[0].encoded_image_string
    assert film == (tmp_path / "plan/videos/sweeps.gif").read_bytes()
    (settings,) = seen.Tensors("settings/text_summary")
    assert b"value_iteration" in settings.tensor_proto.string_val[0]

    assert run("train", *TRAIN, "tracker=tensorboard", "loop.total_steps=300") == 0
    assert run("train", "run=run", "loop.total_steps=500") == 0
    seen = EventAccumulator(str(tmp_path / "run/tensorboard"))
    seen.Reload()
    for name in seen.Tags()["scalars"]:
        known = [(row["step"], pytest.approx(row[name])) for row in rows(tmp_path / "run") if name in row]
        assert [(event.step, event.value) for event in seen.Scalars(name)] == known
    assert {name for row in rows(tmp_path / "run") for name in row} == {*seen.Tags()["scalars"], "step", "seconds"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_of_a_run_that_never_began_ends_quietly():
    pytest.importorskip("tensorboard")
    tensorboard_run(config={}, id="x").finish()
