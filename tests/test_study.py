"""Studies: many jobs whose folders never meet, that fail alone, and that go on after any kill with what is missing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_lab.core.study import Study

DQN = ["experiment=dqn_four_rooms", "tracker=none", "device=cpu", "env.num_envs=4", "loop.eval_episodes=2",
       "loop.eval_every=200", "agent.learning_starts=64", "checkpoint.every=0.05"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rl_lab", *arguments]


def rows(folder: Path) -> list[dict]:
    """Everything but the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def the_study() -> Study:
    (path,) = Path("runs/studies").glob("*/*/study.yaml")
    return Study(path.parent)


def states(study: Study) -> list[str]:
    return [job.state for job in study.jobs()]


def saved_step(pattern: str) -> int:
    """Of the run's checkpoint; 0 before there is one."""
    found = list(Path("runs").glob(f"{pattern}/summary.json"))
    return json.loads(found[0].read_text())["step"] if found else 0


def test_killed_in_the_middle_it_goes_on_with_what_is_missing_bit_for_bit(here):
    """kill -9 of every process: what was finished stays, the half-done goes on, the rest begins."""
    steps = "loop.total_steps=400,6_000,400"
    arguments = ["train", "-m", *DQN, steps, "hydra.launcher.n_jobs=2", "seed=0"]
    process = subprocess.Popen(command(*arguments), start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (saved_step("dqn_four_rooms/*-1_seed0") and states(the_study())[0] == "finished"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    study = the_study()
    assert states(study)[:2] == ["finished", "interrupted"]
    done = [study.folder / job.folder for job in study.jobs() if job.folder]
    before = {path: path.stat().st_mtime_ns for path in done[0].iterdir()}

    result = subprocess.run(command("study", "resume", str(study.folder)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert states(study) == ["finished"] * 3
    assert {path: path.stat().st_mtime_ns for path in done[0].iterdir()} == before, "finished jobs are not touched"
    assert "resumed at step" in study.log(1).read_text()
    folder = study.folder / study.job(1).folder
    alone = [*DQN, "loop.total_steps=6_000", "seed=0", "hydra.run.dir=alone"]
    assert subprocess.run(command("train", *alone), capture_output=True).returncode == 0
    assert rows(folder) == rows(Path("alone"))
