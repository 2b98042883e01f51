"""`rl-lab evaluate` of many runs: a folder of them, figures in one file, paths whole, folders that may not be written."""

import errno
import json
import shutil
from pathlib import Path

import pytest

import rl_lab
from gen_lab.__main__ import COMMANDS as GEN
from rl_lab.__main__ import COMMANDS as RL
from rl_lab.core import conf_dir, files
from rl_lab.core.launching import cli

FEW = "experiment=value_iteration_russell_norvig", "loop.film=false", "loop.eval_episodes=1", "tracker=none"
LONG = "a_folder_with_a_name_that_no_table_of_eighty_or_a_hundred_columns_has_room_for" * 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs, one of them in a folder of a long name, and a folder that no run has begun in."""
    home = tmp_path_factory.mktemp("evaluate")
    for name in f"{LONG}/0", "b/1":
        rl_lab.train(*FEW, f"hydra.run.dir={home}/runs/{name}", "device=cpu")
    return home


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    for path in made.rglob("evaluation.json"):
        path.unlink()
    return made


def evaluate(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", RL, ["evaluate", *arguments, "episodes=2", "device=cpu"])


def test_a_folder_stands_for_the_runs_below_it_and_paths_are_whole(here, capsys):
    assert evaluate("runs", "tracker=none") == 0
    printed = capsys.readouterr().out
    assert [f" runs/{name} " in printed for name in (f"{LONG}/0", "b/1")] == [True, True]
    records = {path.parent: json.loads(path.read_text()) for path in Path("runs").rglob("evaluation.json")}
    assert {*map(str, records)} == {f"runs/{LONG}/0", "runs/b/1"}
    for folder, record in records.items():
        found = rl_lab.evaluate(folder, episodes=2, device="cpu")
        assert found == record


def test_of_a_folder_with_runs_of_both_labs_those_of_one_are_meant(here, tmp_path, capsys):
    shutil.copytree(here / "runs/b", tmp_path / "runs/b")
    (images := tmp_path / "runs/vae/1").mkdir(parents=True)
    config = "name: vae\nseed: 0\nloop:\n  judge:\n    seed: 0\n  _target_: gen_lab.fit.fit\n"
    (images / "config.yaml").write_text(config)
    (images / "checkpoint.pt").touch()
    assert evaluate(str(tmp_path / "runs")) == 0
    assert [*tmp_path.rglob("evaluation.json")] == [tmp_path / "runs/b/1/evaluation.json"]
    assert evaluate(str(images)) == 2
    assert "is a run of gen-lab: gen-lab train resumes it, gen-lab evaluate judges it" in capsys.readouterr().err


def test_the_figures_of_all_may_go_to_one_file(here, capsys):
    assert evaluate("runs", "out=found/all.json") == 0
    records = json.loads(Path("found/all.json").read_text())
    assert {*records} == {f"runs/{LONG}/0", "runs/b/1"} and not list(Path("runs").rglob("evaluation.json"))
    assert records["runs/b/1"] == rl_lab.evaluate("runs/b/1", episodes=2, device="cpu")
    assert evaluate("runs/b/1", "out=found") == 2
    assert "out=found must end in .json" in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_is_evaluated_all_the_same(here, capsys, monkeypatch):
    """As root no mode of a folder forbids anything: the system's answer is put in its place."""

    def refused(path, text):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "write", refused)
    assert evaluate("runs/b/1") == 0
    out, err = capsys.readouterr()
    assert "runs/b/1" in out and err.count("cannot be written to, so that evaluation.json is left out") == 1

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "write", full)
    assert evaluate("runs/b/1") == 2


def test_a_run_finds_what_it_reads_from_any_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("maps").mkdir()
    Path("maps/my.txt").write_text("S.G")
    drawn = "planner=value_iteration", "env=four_rooms", "loop.film=false", "loop.eval_episodes=1", "tracker=none"
    rl_lab.train(*drawn, "env.mdp.map=maps/*.txt", "hydra.run.dir=run", "device=cpu")
    assert f"map: {tmp_path}/maps/my.txt" in Path("run/config.yaml").read_text()
    monkeypatch.chdir("/")
    assert evaluate(f"run={tmp_path}/run") == 0 and "gen" not in capsys.readouterr().err


def test_a_command_for_one_run_takes_no_folder_of_two(here, capsys):
    assert cli.main("rl-lab", "rl", RL, ["export", "runs", "to=x.pt2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("root", "name"), [(path.parent.name, path.stem) for path in sorted((conf_dir() / "command").glob("*/*.yaml"))]
)
def test_every_command_takes_tracker_none(root, name, tmp_path, monkeypatch, capsys):
    """Nothing else is asked of them, so that most say what they lack."""
    monkeypatch.chdir(tmp_path)
    code = cli.main(f"{root}-lab", root, RL if root == "rl" else GEN, [name, "tracker=none"])
    out, err = capsys.readouterr()
    assert code in (0, 2) and "tracker" not in out + err
