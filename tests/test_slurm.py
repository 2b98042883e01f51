"""Studies under Slurm: a job that is preempted, or whose time runs out, saves, goes on in the queue, and is waited for."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rl_lab.core.interrupts import Stopped
from rl_lab.core.studies import launcher, slurm
from rl_lab.core.studies.jobs import run_job
from rl_lab.core.studies.report import Ranking, follow
from rl_lab.core.studies.study import Study

TABLE = ["agent=q_learning", "env=russell_norvig", "tracker=none", "device=cpu", "env.num_envs=4", "loop.eval_episodes=2",
         "loop.total_steps=20_000", "loop.eval_every=10_000", "checkpoint.every=10_000"]  # fmt: skip


@pytest.fixture
def in_slurm(tmp_path, monkeypatch):
    """`in_slurm(restarts)`: a scontrol that knows of so many, as a job of submitit sees it."""

    def pretend(restarts: int) -> None:
        (tmp_path / "bin").mkdir()
        script = f'#!/bin/sh\n[ "$4" = 7_1 ] && echo "JobId=9 JobState=COMPLETING Requeue=1 Restarts={restarts}"\n'
        (tmp_path / "bin/scontrol").write_text(script)
        (tmp_path / "bin/scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        for name, value in {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "1", "RESTART_COUNT": "2"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)

    return pretend


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.chdir(tmp_path)
    study = Study.begin(Path("runs"), "mine", "rl-lab", ["-m", "seed=0,1"], None)
    study.add([["seed=0"], ["seed=1"]], 0)
    return study


@pytest.mark.parametrize(("restarts", "again"), [(2, False), (3, True)])
def test_a_job_is_started_again_where_slurm_counts_one_more_start(in_slurm, restarts, again):
    in_slurm(restarts)
    assert slurm.starts_again(Stopped(signal.SIGTERM)) == again


def test_outside_slurm_nobody_starts_it_again(in_slurm, monkeypatch):
    in_slurm(3)
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    assert not slurm.starts_again(Stopped(signal.SIGTERM))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("PATH", "")
    assert not slurm.starts_again(Stopped(signal.SIGTERM))


def test_before_the_time_limit_submitit_asks_for_more_time_or_says_that_there_is_none(in_slurm, capsys):
    in_slurm(2)
    before = signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(-1))
    try:
        assert slurm.starts_again(Stopped(signal.SIGUSR2))

        def refuse(number, frame):
            raise RuntimeError("Job not requeued because: timed-out too many times.")

        signal.signal(signal.SIGUSR2, refuse)
        assert not slurm.starts_again(Stopped(signal.SIGUSR2))
        assert capsys.readouterr().err == "Job not requeued because: timed-out too many times.\n"
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_job_that_starts_again_leaves_no_result_and_is_said_to_wait(study, in_slurm, monkeypatch):
    def stopped(begun: bool):
        raise Stopped(signal.SIGTERM)

    def run(number: int):
        return run_job(study, number, Path(f"runs/x/{number}"), "rl-lab", stopped, os.getpid())

    in_slurm(3)
    with pytest.raises(SystemExit):
        run(0)
    assert study.job(0).state == "waiting" and study.job(0).reason == "saved; Slurm starts it again"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")  # of a job that is cancelled
    assert run(1) is None and study.job(1).state == "interrupted"
    study.stop()  # by whoever launched the study
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert run(1) is None


def test_a_job_that_goes_back_into_the_queue_has_not_ended(study, monkeypatch):
    """Of two jobs: one is put back, begins again, and ends; then the other."""
    lines, done = [], threading.Event()
    out = type("Out", (), {"write": lambda self, text: lines.append(text.strip()), "flush": lambda self: None})()
    states = [{}, {0: "running"}, {0: "waiting"}, {0: "running"}, {0: "finished"}, {0: "finished", 1: "finished"}]
    with study.holding(0):  # alive, as it says that it is
        for now, following in zip(states, [*states[1:], None], strict=True):
            for number, state in now.items():
                reason = {"reason": "saved; Slurm starts it again"} if state == "waiting" else {}
                study.note(number, state=state, seconds=2.0, **reason)
            if not now:
                monkeypatch.setattr("rl_lab.core.studies.report.POLL", 0.01)
                reporter = threading.Thread(
                    target=follow, args=(Ranking(study), [0, 1], 2, 0, time.monotonic(), out, done)
                )
                reporter.start()
            time.sleep(0.3)
            if following is None:
                done.set()
        reporter.join()
    assert [line for line in lines if line.startswith(("started", "["))] == [
        "started: seed=0", "[0/2] waiting in 2 s: seed=0  saved; Slurm starts it again", "started: seed=0",
        "[1/2] finished in 2 s: seed=0", "[2/2] finished in 2 s: seed=1"
    ]  # fmt: skip


def test_who_waits_for_the_first_job_is_told_ever_less_often(study, monkeypatch, capsys):
    """Ray takes minutes to start."""
    monkeypatch.setattr(launcher, "PATIENCE", 0.1)
    done = threading.Event()
    waiting = threading.Thread(target=launcher._reassure, args=(study, [0, 1], "Ray starts its workers", done))
    waiting.start()
    time.sleep(0.9)  # after 0.1, 0.3 and 0.7 s
    with study.holding(1):
        study.note(1, state="running")
        waiting.join(5)
    assert not waiting.is_alive()
    assert capsys.readouterr().err.splitlines() == ["no job has begun after 0 s: Ray starts its workers"] * 2 + [
        "no job has begun after 1 s: Ray starts its workers"
    ]


def test_without_accounting_the_queue_says_how_jobs_are():
    pytest.importorskip("submitit")
    from submitit.slurm.slurm import SlurmInfoWatcher

    watcher = SlurmInfoWatcher()
    for job in ("7_0", "7_1", "7_2", "8"):
        watcher.register_job(job)
    lines = b"7_0|RUNNING|node1\n7_1|PENDING|\n8|CANCELLED|node2\n"
    states = slurm._states(SlurmInfoWatcher.read_info, watcher, lines)
    assert {job: about["State"] for job, about in states.items()} == {
        "7_0": "RUNNING", "7_1": "PENDING", "7_2": "COMPLETED", "8": "CANCELLED"
    }  # fmt: skip


# -- in a real one


def rows(folder: Path) -> list[dict]:
    """Everything but the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sbatch"), reason="no Slurm: sbatch is not on the path")
def test_jobs_that_slurm_puts_back_go_on_by_themselves_bit_for_bit(tmp_path, monkeypatch):
    """One is preempted, one is told that its time runs out. Slurm starts them again after two minutes or so."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "rl_lab", "train", *TABLE]
    name = f"hydra.launcher.name=t{os.getpid()}"
    study = ["-m", "seed=0,1", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60", name]
    strikes = {0: ["scontrol", "requeue"], 1: ["scancel", "--signal=USR2"]}
    process = subprocess.Popen([*command, *study], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 900
        while process.poll() is None:
            assert time.monotonic() < end
            for job in jobs():
                if job.number in strikes and job.state == "running" and begun(job):
                    ids = [id for id in of_slurm(name) if id.endswith(f"_{job.number}")]
                    subprocess.run([*strikes.pop(job.number), *ids], check=True)
            time.sleep(0.2)
        err = process.communicate()[1]
    finally:
        process.kill()
        subprocess.run(["scancel", f"--name=t{os.getpid()}"])
    assert process.returncode == 0, err
    assert [job.state for job in jobs()] == ["finished"] * 2
    assert err.count("saved; Slurm starts it again") == 2 and err.count("started: ") == 4 and "sacct" not in err
    for seed, job in enumerate(jobs()):
        folder = Path("runs/studies/x/y") / job.folder
        assert "resumed at step" in (Path(*Path("runs/studies").glob("*/*")) / f"jobs/{seed}.log").read_text()
        subprocess.run([*command, f"seed={seed}", f"hydra.run.dir=alone{seed}"], check=True, capture_output=True)
        assert rows(Path(os.path.normpath(folder))) == rows(Path(f"alone{seed}"))


def jobs() -> list:
    found = list(Path("runs/studies").glob("*/*/study.yaml"))
    return Study(found[0].parent).jobs() if found else []


def begun(job) -> bool:
    """Whether its run is past its first steps."""
    rows_of = Path(os.path.normpath(Path("runs/studies/x/y") / job.folder)) / "metrics.jsonl"
    return rows_of.exists() and rows_of.stat().st_size > 0


def of_slurm(name: str) -> list[str]:
    found = ["squeue", "--me", "--noheader", "--array", "--format=%i", f"--name={name.partition('=')[2]}"]
    return subprocess.run(found, capture_output=True, text=True, check=True).stdout.split()


class FailedJobError(RuntimeError):
    """By the name of submitit's, which is not installed everywhere."""


class SlurmLauncher:
    """By the name of its plugin."""


NOPE = "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition"


@pytest.mark.parametrize(
    ("error", "launches", "words"),
    [
        (
            FailedJobError(NOPE),
            SlurmLauncher(),
            "Slurm takes no such job: invalid partition specified: nope; Batch job",
        ),
        (
            RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?'),
            SlurmLauncher(),
            "needs Slurm's srun",
        ),
        (RuntimeError("CUDA error"), SlurmLauncher(), None),
        (FailedJobError(NOPE), object(), None),
    ],
)
def test_what_slurm_refuses_is_a_line_and_other_faults_are_none_of_it(error, launches, words):
    said = slurm.refusal(error, launches)
    assert said.startswith(words) or words in said if words else said is None
