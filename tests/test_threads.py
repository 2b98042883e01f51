"""`threads=auto`: of the cores as many as the network keeps busy, noted as a number and kept by a resumed run."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hydra.types import RunMode

from rl_lab.__main__ import COMMANDS
from rl_lab.core import threads
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli, execution

TINY = ["experiment=dqn_russell_norvig", "tracker=none", "device=cpu", "loop.total_steps=64", "loop.eval_episodes=1"]


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 8)
    yield
    torch.set_num_threads(1)


def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5, 7, 8})
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    assert threads.cores() == 6
    for quota, cores in {"max 100000": 6, "250000 100000": 2, "50000 100000": 1, "900000 100000": 6, "?": 6}.items():
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        assert threads.cores() == cores, quota


def test_small_networks_have_one_thread_and_large_ones_share_the_cores(eight_cores, monkeypatch):
    assert threads.suited(threads.LARGE - 1, beside=1) == 1
    assert [threads.suited(threads.LARGE, beside) for beside in (1, 2, 3, 8, 20)] == [4, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.suited(threads.LARGE, beside=1) == 3
    assert [threads.of_emulators(count) for count in (1, 8, 64)] == [1, 8, 8]


def test_the_setting_is_a_number_or_auto():
    assert threads.setting("auto") == "auto" and threads.setting(2) == 2 and threads.setting(2.0) == 2
    assert threads.kept(3) == 3 and threads.kept("auto") == 1
    for value, words in {0: "at least 1", None: "a whole number", "many": "a whole number"}.items():
        with pytest.raises(UserError, match=f"^threads=.* must be {words}, or auto$"):
            threads.setting(value)


def lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


def noted(folder: str) -> tuple[int, int]:
    """In the settings and in the summary."""
    config = yaml.safe_load(Path(folder, "config.yaml").read_text())
    return config["threads"], json.loads(Path(folder, "summary.json").read_text())["threads"]


def test_a_run_notes_the_number_and_keeps_it(eight_cores, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert lab("train", *TINY, "hydra.run.dir=small") == 0
    assert noted("small") == (1, 1)
    monkeypatch.setattr(threads, "LARGE", 10)
    assert lab("train", *TINY, "hydra.run.dir=large") == 0
    assert noted("large") == (4, 4) and "threads=auto: 4, of 8 cores, for " in capsys.readouterr().err
    assert lab("train", *TINY, "threads=2", "hydra.run.dir=typed") == 0
    assert noted("typed") == (2, 2) and "threads=auto" not in capsys.readouterr().err
    monkeypatch.setattr(threads, "cores", lambda: 1)  # another machine
    assert lab("train", "run=large", "loop.total_steps=128") == 0 and noted("large") == (4, 4)
    assert lab("train", "run=large", "loop.total_steps=192", "threads=auto") == 0 and noted("large") == (1, 1)


def test_a_plan_and_every_seed_of_many_note_it_too(eight_cores, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threads, "LARGE", 10)
    plan = ["planner=value_iteration", "env=book", "loop.film=false", "loop.eval_episodes=1"]
    assert lab("train", *plan, "tracker=none", "device=cpu", "hydra.run.dir=plan") == 0
    assert noted("plan") == (1, 1)
    assert lab("train", *TINY, "loop=seeds", "loop.seeds=2", "hydra.run.dir=seeds") == 0
    assert noted("seeds") == noted("seeds/seed0") == noted("seeds/seed1") == (4, 4)


def test_jobs_side_by_side_share_the_cores(eight_cores, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threads, "LARGE", 10)
    assert lab("train", "-m", *TINY, "seed=0,1", "hydra/launcher=basic", "hydra.sweep.dir=jobs") == 0
    found = sorted(Path("jobs").rglob("config.yaml"))
    assert [yaml.safe_load(path.read_text())["threads"] for path in found] == [4, 4], "one after the other"
    launched = SimpleNamespace(mode=RunMode.MULTIRUN, launcher={"n_jobs": 5})
    monkeypatch.setattr(execution, "HydraConfig", SimpleNamespace(get=lambda: launched))
    assert threads.suited(threads.LARGE, execution._beside()) == 1
    launched.mode = RunMode.RUN
    assert execution._beside() == 1
