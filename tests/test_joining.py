"""Films and comparisons at W&B: what is made of a run joins the run, or it is said why not; no run is opened for it."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from run_folders import write_run

from rl_lab.__main__ import COMMANDS
from rl_lab.core.joining import join
from rl_lab.core.launching import cli
from rl_lab.core.tracking import nothing, wandb_run


def offline(folder: Path) -> tuple[dict, list[dict]]:
    """What W&B's own files say of a run: how it was opened, and its rows."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in text.splitlines()]
    opened = next(record["run"] for record in records if record["type"] == "run")
    return opened, [record["history"]["item"] for record in records if record["type"] == "history"]


@pytest.mark.slow
def test_a_film_joins_the_wandb_run_of_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["experiment=value_iteration_four_rooms", "loop.film=false", "tracker.mode=offline", "tracker.project=p"]
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", *few, "hydra.run.dir=run", "device=cpu"]) == 0
    (first,) = tmp_path.glob("runs/wandb/offline-run-*")
    about = json.loads(Path("run/summary.json").read_text())
    assert cli.main("rl-lab", "rl", COMMANDS, ["render", "run", "out=run/x.png", "device=cpu"]) == 0
    assert "added to the W&B run of run, offline: " in capsys.readouterr().err
    (second,) = set(tmp_path.glob("runs/wandb/offline-run-*")) - {first}
    ending = rf".*-{about['identity']['id']}(-1)?"  # the second one of a second is numbered
    assert re.fullmatch(ending, first.name) and re.fullmatch(ending, second.name)
    (kept,) = second.glob("files/media/images/picture*.png")
    assert kept.read_bytes() == Path("run/x.png").read_bytes()
    (before, _), (after, rows) = offline(first), offline(second)
    for key in "project", "display_name", "run_group", "job_type":
        assert before[key] == after[key], key
    plain = [{k: v for k, v in said["config"]["update"].items() if k[0] != "_"} for said in (before, after)]
    assert plain[0] == plain[1] and [row["step"] for row in rows] == [about["step"]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"wandb": None}, "W&B has no run of run, which was trained without tracker=wandb"),
        ({"state": "running"}, "run has not ended, and W&B takes the rows of one process at a time; do it again when it has"),
        ({"step": None}, "run/summary.json does not say where the run stands"),
        ({"identity": {"id": "x-1", "name": "x", "folder": "/"}}, "run is a copy of a run, and W&B has the run under its first folder"),
    ],
)  # fmt: skip
def test_a_film_that_joins_no_run_says_why(tmp_path, monkeypatch, capsys, change, why):
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"))
    identity = {"id": "x-1", "name": "x", "folder": str(tmp_path / "run")}
    about = {"name": "x", "state": "finished", "wandb": "offline: x", "identity": identity, "step": 20, "final": {}}
    Path("run/summary.json").write_text(json.dumps(about | change))
    join(partial(wandb_run, mode="no call may come to this"), Path("run"), {"video": Path("x.mp4")})
    assert capsys.readouterr().err == f"not sent to W&B: {why}\n"
    join(partial(nothing), Path("run"), {})
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_comparison_opens_no_run_and_says_why_to_who_asked_for_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a"))
    why = "not sent to W&B: a comparison is of many runs, and belongs to none; out/index.html is all of it\n"
    for asked, said in ((["tracker=wandb"], why), (["tracker=none"], ""), ([], "")):
        assert cli.main("rl-lab", "rl", COMMANDS, ["compare", "runs", "out=out", *asked]) == 0
        assert capsys.readouterr().err == said and not Path("runs/wandb").exists()
