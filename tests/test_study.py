"""Studies: many jobs whose folders never meet, that fail alone, and that go on after any kill with what is missing."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gen_lab.__main__ import COMMANDS as GEN
from rl_lab.__main__ import COMMANDS
from rl_lab.core import files, threads
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli, composition, launch, rehearsal
from rl_lab.core.launching.execution import objective
from rl_lab.core.launching.explain import EXTRAS
from rl_lab.core.launching.named import runs_of
from rl_lab.core.studies import launcher, report
from rl_lab.core.studies.study import Study

QUIET = ["tracker=none", "device=cpu", "loop.eval_episodes=2"]
TABLE = ["agent=q_learning", "env=russell_norvig", "tracker=none", "device=cpu", "env.num_envs=4",
         "loop.total_steps=400", "loop.eval_every=200", "loop.eval_episodes=2", "checkpoint.every=0.05"]  # fmt: skip
LONG = ["loop.total_steps=5_000", "loop.eval_every=2_500"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rl_lab(capsys, *arguments: str) -> tuple[int, str, str]:
    """The exit code, and what stdout and stderr got."""
    code = cli.main("rl-lab", "rl", COMMANDS, list(arguments))
    return code, *capsys.readouterr()


def started(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rl_lab", *arguments]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def wait_until(true, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.1)


def the_study() -> Study:
    (path,) = Path("runs/studies").glob("*/*/study.yaml")
    return Study(path.parent)


def states() -> list[str]:
    return [job.state for job in the_study().jobs()] if list(Path("runs/studies").glob("*/*/study.yaml")) else []


def under_way(number: int) -> bool:
    """Whether the job's run has a checkpoint of its middle."""
    found = list(Path("runs").glob(f"*/*-{number}_seed*/summary.json"))
    return bool(found) and json.loads(found[0].read_text())["step"] > 0


def rows(folder: Path) -> list[dict]:
    """Everything but the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


# -- running, failing, going on


def test_killed_in_the_middle_it_goes_on_with_what_is_missing_bit_for_bit(here, capsys):
    """kill -9 of every process: what was finished stays, the half-done goes on, the rest begins."""
    steps = "loop.total_steps=400,5_000,800"
    process = started("train", "-m", *TABLE, *LONG, steps, "hydra.launcher.n_jobs=2")
    wait_until(lambda: under_way(1) and states()[0] == "finished", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    study = the_study()
    for _ in range(100):  # a killed worker holds its lock until the system has taken all of it away
        if states()[1] != "running":
            break
        time.sleep(0.1)
    assert states()[:2] == ["finished", "interrupted"]
    finished, half_done = (study.folder / study.job(number).folder for number in (0, 1))
    before = times(finished)
    for link in "runs/wandb/latest-run", "runs/old":  # W&B's, and one's own
        Path(link).parent.mkdir(exist_ok=True)
        Path(link).symlink_to(here)

    code, _, err = rl_lab(capsys, "study", "resume", str(study.folder), "hydra.launcher.n_jobs=1")
    assert (code, states()) == (0, ["finished"] * 3), err
    assert times(finished) == before, "a finished job is not run again"
    assert "resumed at step" in study.log(1).read_text()
    assert rl_lab(capsys, "train", *TABLE, *LONG, "hydra.run.dir=alone")[0] == 0
    assert rows(half_done) == rows(Path("alone"))
    assert len(list(Path("runs/q_learning_russell_norvig").iterdir())) == 3


OWN = """
import torch
from rl_lab.agents.random import Random

class Mine(Random):
    pass
"""


@pytest.mark.slow
def test_interrupted_a_study_of_an_own_agent_goes_on_with_jobs_that_had_not_begun(here, capsys):
    """The folder of its YAML, the module and the working directory are those of the study, wherever it is resumed."""
    home = here / "own"
    (home / "agent").mkdir(parents=True)
    (home / "own_agent_of_a_study.py").write_text(OWN)
    (home / "agent/mine.yaml").write_text("_target_: own_agent_of_a_study.Mine\n_partial_: true\n")
    os.chdir(home)
    settings = ["env=russell_norvig", "agent=mine", "seed=0,1", "loop.total_steps=16", "loop.eval_every=null"]
    first = ["--config-dir=.", "-m", *settings, *QUIET, "hydra.launcher.n_jobs=1", "hydra.sweep.dir=runs"]
    assert rl_lab(capsys, "train", *first)[0] == 0
    study = the_study()
    study.note(1, state="waiting")  # as where it was stopped before the second job began
    shutil.rmtree(next(Path("runs/mine_russell_norvig").glob("*_seed1")))
    moved = home / "runs/studies/sweep/moved"
    shutil.copytree(study.folder, moved)
    os.chdir(here)

    code, _, err = rl_lab(capsys, "study", "resume", str(home / "runs/studies/sweep" / study.folder.name))
    assert code == 0 and "not repeated" not in err and len(list(home.glob("runs/mine_russell_norvig/*"))) == 2, err
    code, _, err = rl_lab(capsys, "study", "resume", str(moved))
    assert code == 2 and err.startswith("not repeated from study.yaml: --config-dir=."), "a copy may be a stranger's"


def test_each_job_fails_alone_and_says_why(here, capsys, monkeypatch):
    """A device is not looked for beforehand where the jobs are sent to other machines."""
    monkeypatch.setattr(rehearsal, "HERE", ("of no launcher",))
    networks = "agent.network._target_=rl_lab.networks.torsos.linear,torch.nn.Flatten"
    anywhere = [setting for setting in TABLE if setting != "device=cpu"]
    code, _, err = rl_lab(capsys, "train", "-m", *anywhere, networks, "device=cpu,mps", "hydra.launcher.n_jobs=2")
    study = the_study()
    assert states() == ["finished", "mistake", "crashed", "mistake"] and code == 1
    assert "4 jobs: 1 finished, 2 mistake, 1 crashed" in err
    lines = [line.strip() for line in err.splitlines() if line.startswith("  ")]
    assert len(lines) == 3 and "device=mps" in lines[0]
    assert "agent.network._target_=torch.nn.Flatten device=cpu  TypeError: " in lines[1]
    assert lines[1].endswith(f"traceback in {study.log(2)}")
    assert ["Traceback" in study.log(n).read_text() for n in range(4)] == [False, False, True, False]
    assert "Traceback" not in err and "replay" not in err
    assert [line.split(" in ")[0] for line in err.splitlines() if line.startswith("[4/4]")] != []
    assert len(list(Path("runs/q_learning_russell_norvig").iterdir())) == 1, "mistakes leave no folder"

    code, out, _ = rl_lab(capsys, "study", str(study.folder))
    assert code == 0 and "400 of 400" in out and out.count("mistake") == 2 and "eval/return" in out
    assert "1 finished, 2 mistake, 1 crashed" in rl_lab(capsys, "study")[1]
    assert cli.main("gen-lab", "gen", GEN, ["study"]) == 0
    assert capsys.readouterr().out.startswith("no studies of gen-lab under runs/studies; gen-lab train -m seed=0,1,2 ")
    assert cli.main("gen-lab", "gen", GEN, ["study", "resume", str(study.folder)]) == 2
    line = f"gen-lab: {study.folder} is a study of rl-lab: rl-lab study resume {study.folder}\n"
    assert capsys.readouterr().err == line
    assert runs_of([study.folder]) == [study.folder.parents[2] / study.job(0).folder.removeprefix("../../../")]
    assert rl_lab(capsys, "compare", str(study.folder), "tracker=none", "out=c")[0] == 0

    before = times(study.folder / study.job(0).folder)
    code, _, err = rl_lab(capsys, "study", "resume", str(study.folder), "hydra/launcher=basic")
    assert code == 1 and err.count("\n[") == 3 and times(study.folder / study.job(0).folder) == before


def test_it_says_how_many_runs_how_long_and_what_was_best(here, capsys):
    sweep = ["train", "-m", *TABLE, "agent.gamma=0.5,0.99", "hydra/launcher=basic"]
    code, _, err = rl_lab(capsys, *sweep)
    lines, study = err.splitlines(), the_study()
    assert code == 0 and "2 runs, 1 at a time; how long they take is known when the first has ended" in lines
    assert [line for line in lines if line.startswith("best eval/return ") and ": agent.gamma=0." in line]
    words = report.announcement(study, [0, 1], total=2, at_once=1)
    assert re.fullmatch(
        r"2 runs, 1 at a time; about .* s, as earlier runs of these settings took .* s each, once begun", words
    )
    (here / "runs/odd/1").mkdir(parents=True)
    (here / "runs/odd/1/summary.json").symlink_to("nowhere")
    assert report.announcement(study, [0, 1], total=2, at_once=1) == words
    study.add([[*study.about["jobs"][0][:-1], "agent.gamma=0.1"]], 2)
    assert report.announcement(study, [], total=3, at_once=1) == "3 runs, and none is left to start"
    words = report.announcement(study, [2], total=3, at_once=0)
    assert words == "1 of 3 runs; how long they take is known when the first has ended"


def test_where_a_study_stands(study):
    study.add([["env=book", "agent=dqn", "seed=0"], ["env=book", "agent=dqn", "seed=1"], ["env=book", "seed=2"]], 2)
    assert report.standing(report.Ranking(study, study.jobs()), 0, 2, 5, 0, 9.0) == "0 of 5 done, 2 running, 3 to go"
    for number, value in enumerate([1.0, 5.0, 3.5, 3.0]):
        study.note(number, state="finished", value=["eval/return", value])
    words = "4 of 5 done, 1 running, 0 to go; about 20 s left; best so far eval/return 3.25: agent=dqn (2 seeds)"
    assert report.standing(report.Ranking(study, study.jobs()), 4, 1, 5, 2, 40.0) == words
    for number, value in enumerate([1.0, 5.0, 3.5, 3.0]):
        study.note(number, state="finished", value=["eval/nll_nats[x]", value])
    assert report.Ranking(study, study.jobs()).best() == "eval/nll_nats[x] 3 (2 seeds)"
    study.note(4, state="finished", value=["eval/bits_per_dim[x]", 0.1])
    assert report.Ranking(study, study.jobs()).best() == "", "figures of different names are not compared"


def test_a_finished_job_is_looked_at_once(study, monkeypatch):
    for number in (0, 1):
        study.note(number, state="finished", value=["eval/return", float(number)])
    ranking, looked = report.Ranking(study), []
    for name, home in {"summary": report, "_noted": Study}.items():
        before = getattr(home, name)
        monkeypatch.setattr(home, name, lambda *args, before=before: looked.append(args) or before(*args))
    done = threading.Event()
    done.set()
    report.follow(ranking, [0, 1], 9, 0, 0.0, io.StringIO(), done)
    assert ranking.best() == "eval/return 0.5 (2 seeds)" and len(looked) == 4  # its note, and the summary of its run
    assert report.standing(ranking, 2, 0, 9, 0, 1.0).endswith("(2 seeds)") and len(looked) == 4


def test_an_interrupted_job_is_not_done(study):
    study.note(0, state="interrupted", seconds=3.0)
    study.note(1, state="finished", value=["eval/return", 1.0], seconds=3.0)
    done, out = threading.Event(), io.StringIO()
    done.set()
    report.follow(report.Ranking(study), [0, 1], 2, 0, 0.0, out, done)
    assert "[1/2] interrupted in 3 s" in out.getvalue(), "the other one is done"


def test_scores_in_two_worlds_have_no_best(study):
    for number in (0, 1):
        folder = study.folder / str(number)
        folder.mkdir()
        study.note(number, state="finished", value=["eval/return", 1.0], folder=str(number))
        (folder / "summary.json").write_text(json.dumps({"env": "book"}))
    assert report.Ranking(study, study.jobs()).best() == "eval/return 1 (2 seeds)"
    (folder / "summary.json").write_text(json.dumps({"env": "windy"}))
    assert report.Ranking(study, study.jobs()).best() == ""


def test_of_mistakes_alone_the_exit_code_is_2_and_a_line_that_cannot_be_composed_begins_no_study(
    here, capsys, monkeypatch
):
    monkeypatch.setattr(launch, "MANY", 5)
    small = "agent=dqn", "agent.batch_size=32", "agent.replay.capacity=4"
    code, _, err = rl_lab(capsys, "train", "-m", *TABLE, *small[::2], "agent.batch_size=8,9", "hydra/launcher=basic")
    assert code == 2 and "2 jobs: 2 mistake" in err and err.endswith("\nno run began, and nothing is kept of them; "
                                                                     "type the command again without the mistake\n")  # fmt: skip
    assert not list(here.rglob("*"))
    many = "seed=" + ",".join(map(str, range(5)))
    code, _, err = rl_lab(capsys, "train", "-m", *TABLE, *small, many, "hydra/launcher=basic")
    line = "agent.batch_size=32 must be at most agent.replay.capacity=4"
    assert code == 2 and "5 jobs: 5 mistake" in err and err.count(line) == 2 and f"{line}, as would 4 more" in err
    assert err.startswith("composing the settings of 5 jobs before the first begins\n5 runs, 1 at a time")
    code, _, err = rl_lab(capsys, "train", "-m", *TABLE, "agent.gama=1,2", "hydra.sweep.dir=other")
    assert (code, err) == (2, "rl-lab: no setting 'agent.gama'; did you mean agent.gamma?\n")
    assert not list(Path("other").rglob("*"))


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["agent.gamma=0.9,2"], "agent.gamma=2 must be between 0 and 1 (the run of agent.gamma=2)"),
        (["seed=0,1.5"], "seed=1.5 must be a whole number (the run of seed=1.5)"),
        (["device=cpu,mps"], "device=mps, but torch sees no Apple GPU here; use device=cpu or device=auto (the run of device=mps)"),
        (["loop=train,sb3", "agent.gamma=0.9,0.8,2"], "(the run of loop=train agent.gamma=2)"),
        (["agent=q_learning,sarsa", "precision=fp32,bf16"], "leave it out (the run of agent=q_learning precision=bf16)"),
        (["agent=q_learning,ppo", "agent.clip=0.1"], "no setting 'agent.clip'; it is a setting of agent=ppo (the run of agent=q_learning)"),
        (["agent=q_learning,dqn", "agent.gama=0.9"], "did you mean agent.gamma? (the run of agent=q_learning)"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_settings_of_one_job_is_found_before_any_begins(here, capsys, typed, line):
    anywhere = [setting for setting in TABLE if setting != "device=cpu"]
    code, _, err = rl_lab(capsys, "train", "-m", *anywhere, *typed, "hydra/launcher=basic")
    assert code == 2 and f"{line}; none was started\n" in err and err.count("\n") == 1
    assert not list(here.rglob("*"))


def test_a_mistake_of_two_choices_together_is_found_before_any_begins(here, capsys):
    """The last of four jobs: each of its choices is right beside another."""
    both = "experiment=ppo_cartpole,ppo_mountain_car", "env=cartpole,four_rooms"
    code, _, err = rl_lab(capsys, "train", "-m", *both, *QUIET, "hydra/launcher=basic")
    assert code == 2 and "sets env.normalise_obs, which env=four_rooms does not have" in err
    assert err.endswith("(the run of experiment=ppo_mountain_car env=four_rooms); none was started\n")
    assert not list(here.rglob("*"))


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["env=gym", "env.id=CartPole-v1,CartPol-v1"], "no Gymnasium environment 'CartPol-v1'; did you mean CartPole-v1? (the run of env.id=CartPol-v1)"),
        (["env=atari", "env.game=pong,pnog"], "no Atari game 'pnog'; did you mean pong? (the run of env.game=pnog)"),
        (["env=four_rooms,book", "+env.mdp.ends=[G],[Q]"], "Q has no reward; give it one in env.mdp.rewards"),
    ],
)  # fmt: skip
def test_a_world_that_cannot_be_built_is_found_before_any_begins(here, capsys, typed, line):
    code, _, err = rl_lab(capsys, "train", "-m", *typed, "agent=dqn", *QUIET, "hydra/launcher=basic")
    assert code == 2 and line in err and err.endswith("; none was started\n"), err
    assert not list(here.rglob("*"))


def test_jobs_of_several_agents_share_a_setting_that_the_default_agent_lacks(here, capsys):
    """Hydra composes the default one first, DQN, which has no rollout."""
    shared = ["agent.rollout_length=4", "loop.total_steps=64", "loop.eval_every=null", "hydra/launcher=basic"]
    code, _, err = rl_lab(capsys, "train", "-m", "env=four_rooms", "agent=a2c,ppo", *QUIET, *shared)
    assert code == 0 and states() == ["finished"] * 2, err
    assert all("agent.rollout_length=4" in job.overrides for job in the_study().jobs())
    assert all("rollout_length: 4" in path.read_text() for path in here.glob("runs/*_four_rooms/*/config.yaml"))


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["seed=a,1", "hydra/launcher=basic"], "seed=a must be a whole number"),
        (["seed=0,1", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0 must be at least 1, or -1 for as many"),
    ],
)
def test_a_study_that_is_refused_leaves_nothing_behind(here, capsys, typed, line):
    code, _, err = rl_lab(capsys, "train", "-m", *TABLE, *typed)
    assert code == 2 and err.splitlines()[-1].startswith(f"rl-lab: {line}")
    assert not list(here.rglob("*"))


def test_a_seed_that_is_none_is_one_line_where_each_job_is_composed_by_itself(here, capsys):
    code, _, err = rl_lab(capsys, "train", "-m", *TABLE, "seed=0,a")
    assert code == 2 and "seed=a must be a whole number (the run of seed=a)" in err


@pytest.mark.slow
def test_two_studies_of_one_moment_have_folders_of_their_own(here):
    command = ["train", "-m", *TABLE, "seed=0,1", "hydra/launcher=basic"]
    both = [started(*command) for _ in range(2)]
    assert [p.communicate()[0] or p.returncode for p in both] == [0, 0]
    assert len(list(Path("runs/q_learning_russell_norvig").glob("*/summary.json"))) == 4


@pytest.mark.slow
def test_interrupted_every_job_saves_and_no_further_one_begins(here, capsys):
    """Ctrl-C in a terminal goes to every process."""
    process = started(
        "train",
        "-m",
        *TABLE,
        "loop.total_steps=40_000",
        "loop.eval_every=20_000",
        "checkpoint.every=1000",
        "seed=0,1,2",
        "hydra.launcher.n_jobs=2",
    )
    wait_until(lambda: states()[:2] == ["running", "running"] and all(map(has_begun, (0, 1))), process)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopping: every job saves first" in err and "study resume" in err
    assert states() == ["interrupted", "interrupted", "waiting"] and under_way(0) and under_way(1)
    code, _, err = rl_lab(capsys, "study", "resume", str(the_study().folder), "hydra.launcher.n_jobs=2")
    assert (code, states()) == (0, ["finished"] * 3), err


@pytest.mark.slow
def test_ctrl_c_is_heard_by_the_launcher_alone_even_while_its_processes_import(here):
    process = started("train", "-m", *TABLE, "seed=0,1", "hydra.launcher.n_jobs=2")
    workers = ["pgrep", "-P", str(process.pid), "-f", "LokyProcess"]
    wait_until(lambda: subprocess.run(workers, stdout=subprocess.DEVNULL).returncode == 0, process)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopping: every job saves first" in err and "Traceback" not in err, err
    assert "finished" not in states()


def test_once_a_study_stops_a_launcher_finds_no_further_job_to_compose(study):
    jobs = iter(line := launcher.InLine(study, [["seed=0"], ["seed=1"], ["seed=2"]]))
    assert next(jobs) == ["seed=0"]
    study.stop()
    assert (list(jobs), len(line)) == ([], 3)


def has_begun(number: int) -> bool:
    return bool(list(Path("runs").glob(f"*/*-{number}_seed*/summary.json")))


@pytest.mark.slow
def test_a_worker_that_is_killed_does_not_take_the_rest_of_the_study_with_it(here):
    process = started(
        "train", "-m", *TABLE, *LONG, "loop.total_steps=20_000,20_001,20_002,400", "hydra.launcher.n_jobs=2"
    )
    wait_until(lambda: under_way(0), process)
    os.kill(the_study().job(0).process[1], signal.SIGKILL)
    err = process.communicate(timeout=180)[1]
    assert process.returncode == 0 and states() == ["finished"] * 4, err
    assert "killed, and taken up again: loop.total_steps=20_000\n" in err
    assert "resumed at step" in the_study().log(0).read_text()


FATAL = """
import os, signal, sys
from rl_lab.agents.random import Random

class Mine(Random):
    def __init__(self, spec, device, seed):
        super().__init__(spec, device, seed)
        if "seed=1" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_is_left_and_those_beside_it_are_not(here):
    Path("fatal.py").write_text(FATAL)
    process = started("train", "-m", "agent=random", "agent._target_=fatal.Mine", *TABLE[1:], "seed=0,1,2",
                      "hydra.launcher.n_jobs=2")  # fmt: skip
    err = process.communicate(timeout=180)[1]
    assert process.returncode == 1 and states() == ["finished", "interrupted", "finished"], err
    assert err.count("killed, and taken up again: seed=1\n") == launcher.TAKEN_UP


def test_one_process_at_a_time_launches_the_jobs_of_a_study(study, capsys):
    with Study(study.folder).launching():
        assert study.is_launched
        code, _, err = rl_lab(capsys, "study", "resume", str(study.folder), "hydra/launcher=basic")
    assert code == 2 and "are launched by another process; wait until it ends" in err and not study.is_launched


def test_two_jobs_in_one_folder_the_one_that_is_refused_takes_nothing_away(here, capsys):
    same = ["hydra.sweep.subdir=same", "hydra.launcher.n_jobs=2"]
    assert rl_lab(capsys, "train", "-m", *TABLE, "loop.total_steps=3_000", "seed=0,1", *same)[0] == 2
    assert sorted(states()) == ["finished", "mistake"] and rows(Path("runs/same"))


# -- the files


@pytest.fixture
def study(here) -> Study:
    study = Study.begin(
        Path("runs"), "mine", "rl-lab", ["-m", "seed=0,1", "hydra/launcher=ray", "hydra.sweep.dir=x"], "abc"
    )
    study.add([["env=book", "seed=0"], ["env=book", "seed=1"]], 0)
    return study


def test_states_are_told_by_the_files_alone(study):
    assert states() == ["waiting", "waiting"] and study.label(1) == "seed=1"
    with study.holding(0) as held:
        assert held
        study.note(0, state="running", folder="../x")
        assert states() == ["running", "waiting"]
        with study.holding(0) as again:
            assert not again
    assert states() == ["interrupted", "waiting"]
    study.note(0, state="waiting")
    assert study.job(0).folder == "../x" and study.job(0).state == "waiting"


def test_a_study_that_goes_on_comes_to_the_same_jobs(study):
    assert study.add([["env=book", "seed=0"]], 0) == [0] and len(study.jobs()) == 2
    assert study.add([["env=book", "seed=2"]], 2) == [2]
    with pytest.raises(
        UserError, match="job 0 .* was env=book seed=0 and would now be env=book seed=3; start a new study"
    ):
        study.add([["env=book", "seed=3"]], 0)


def test_a_study_from_a_stranger_runs_no_code(study, capsys):
    (study.folder / "seal.json").unlink()
    study = Study(study.folder)
    assert study.replayed() == ["-m", "seed=0,1", "hydra/launcher=ray"]
    for argument in ("+hydra.callbacks.x.y=1", "hydra.searchpath=[x]", "--config-dir", "hydra.launcher.setup=[rm]"):
        study.about["arguments"] = [argument]
        assert study.replayed() == []
    bad = ["tracker=none", "agent.network._target_=os.system"]
    evil = Study.begin(Path("runs"), "evil", "rl-lab", ["-m", *bad], None)
    (evil.folder / "seal.json").unlink()
    code, _, err = rl_lab(capsys, "study", "resume", str(evil.folder), "hydra/launcher=basic")
    assert (
        code == 2
        and "agent.network._target_=os.system is refused: a run folder may call only what rl_lab/parts.py lists" in err
    )


@pytest.mark.parametrize("after", [0, 1, 2])  # writes: seal.json, study.yaml
def test_a_kill_between_what_is_asked_and_whose_it_is_makes_nobody_a_stranger(here, monkeypatch, after):
    study, write, left = Study.begin(Path("runs"), "mine", "rl-lab", ["-m", "seed=0,1"], "abc"), files.write, after

    def killed(path: Path, text: str) -> Path:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return write(path, text)

    for jobs in [["seed=0"]], [["seed=0"], ["seed=1"]]:  # a second kill finds what the first one left
        monkeypatch.setattr(files, "write", killed)
        left = after
        with contextlib.suppress(KeyboardInterrupt):
            study.add(jobs, 0)
        monkeypatch.setattr(files, "write", write)
        study = Study(study.folder)
        assert study.ours
    (study.folder / "study.yaml").write_text((study.folder / "study.yaml").read_text().replace("mine", "theirs"))
    assert not Study(study.folder).ours


def test_mistakes_about_studies(study, here, capsys):
    folder = str(study.folder)
    assert rl_lab(capsys, "study", "resume", folder, "seed=3") == (
        2,
        "",
        "rl-lab: seed=3 would make it another study; a resumed study takes hydra.* settings alone\n",
    )
    assert rl_lab(capsys, "study", "resume")[2].startswith(
        "rl-lab: rl-lab study resume resumes one study: name its folder"
    )
    (here / "empty").mkdir()
    assert rl_lab(capsys, "study", "empty")[2] == "rl-lab: empty is not the folder of a study: it has no study.yaml\n"
    assert (
        rl_lab(capsys, "compare", folder)[2]
        == f"rl-lab: {folder} has no run with rows in metrics.jsonl yet; wait for them or leave it out\n"
    )
    (study.folder / "study.yaml").write_text("jobs: [")
    assert "study.yaml is damaged: " in rl_lab(capsys, "study", folder)[2]


@pytest.mark.parametrize("choice", EXTRAS)
def test_a_missing_plugin_is_named_by_its_extra(here, capsys, choice):
    plugin = {"ray": "hydra_ray_launcher", "slurm": "hydra_submitit_launcher", "optuna": "hydra_optuna_sweeper"}
    if importlib.util.find_spec(f"hydra_plugins.{plugin[EXTRAS[choice]]}"):
        pytest.skip("it is installed")
    group = "hydra/sweeper" if choice == "optuna" else "hydra/launcher"
    line = f"rl-lab: {group}={choice} needs a plugin of Hydra; pip install 'rl-lab[{EXTRAS[choice]}]'\n"
    assert rl_lab(capsys, "train", "-m", f"{group}={choice}", "seed=0,1") == (2, "", line)


def test_what_a_search_goes_by():
    assert objective({"episode/return": 1.0, "eval/return": 2.0, "q/loss": 3.0}) == ("eval/return", 2.0)
    assert objective({"episode/return": 1.0, "q/loss": 3.0}) == ("episode/return", 1.0)
    assert objective({"eval/nll_nats[binary]": 18.0, "x": 0.0}) == ("eval/nll_nats[binary]", 18.0)
    assert objective({"q/loss": 3.0}) is None


def test_as_many_jobs_at_once_as_there_are_cores_for_their_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(threads, "QUOTA", Path("nowhere"))
    assert [composition.at_once(count, "cpu") for count in (1, 2, 5, 24, "auto")] == [12, 6, 2, 1, 12]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/proc/driver/nvidia/gpus")
    assert [composition.at_once(count, "auto") for count in (1, 4)] == [4, 3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert composition.at_once(1, "auto") == 12


# -- the launchers that are extras


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "choice"),
    [
        ("ray", ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]),
        ("submitit", ["hydra/launcher=submitit_local"]),
    ],
)
def test_other_launchers(here, plugin, choice):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    process = started("train", "-m", *TABLE, "env.mdp.slip=sideways,up", *choice)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and states() == ["finished", "mistake"], err


@pytest.mark.slow
def test_a_search_is_told_what_each_run_came_to_and_goes_on_by_the_same_suggestions(here, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["study=optuna_dqn_cartpole", "tracker=none", "device=cpu", "loop.total_steps=400", "loop.eval_episodes=1"]
    search += ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "hydra/launcher=basic"]
    assert rl_lab(capsys, "train", *search)[0] == 0
    study = the_study()
    values = [job.value[1] for job in study.jobs()]
    assert f"best_value: {max(values)}" in (study.folder / "optimization_results.yaml").read_text()
    study.note(3, state="running")  # killed between the run's end and the note of it
    before = times(study.folder / "jobs")
    assert rl_lab(capsys, "study", "resume", str(study.folder))[0] == 0
    changed = {name for name, at in times(study.folder / "jobs").items() if before.get(name) != at}
    assert changed == {"3.json"} and [job.value[1] for job in study.jobs()] == values
