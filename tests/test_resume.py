"""A run that is killed goes on as if nothing had happened; one that is asked to stop says how to go on."""

import contextlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from stopping import equal

import rl_lab
from rl_lab.__main__ import COMMANDS
from rl_lab.core import checkpoint, reading
from rl_lab.core.launching import cli
from rl_lab.loops import judging
from rl_lab.loops.seeds import training as seeds
from rl_lab.parts import PARTS

COMMAND = [sys.executable, "-m", "rl_lab", "train"]
DQN = ["experiment=dqn_four_rooms", "tracker=none", "device=cpu", "loop.total_steps=60_000", "loop.eval_every=10_000",
       "loop.eval_episodes=32", "env.num_envs=32", "checkpoint.every=0.1"]  # fmt: skip
A2C = ["experiment=a2c_four_rooms", "tracker=none", "device=cpu", "loop.total_steps=200_000", "loop.eval_every=50_000",
       "loop.eval_episodes=32", "checkpoint.every=0.1"]  # fmt: skip
SMALL = ["tracker=none", "device=cpu", "loop.total_steps=60_000", "loop.eval_every=15_000", "loop.eval_episodes=32",
         "checkpoint.every=0.1"]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    """Everything but the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def run(*arguments: str, cwd: Path) -> tuple[int, str]:
    """In this process, to its end: the exit code and what it said."""
    with contextlib.chdir(cwd), contextlib.redirect_stderr(io.StringIO()) as said:
        return cli.main("rl-lab", "rl", COMMANDS, ["train", *arguments]), said.getvalue()


def cut_off(*arguments: str, cwd: Path, after: float, by: int = signal.SIGKILL) -> tuple[int, str]:
    """In a process of its own, which gets the signal so many seconds after it began to train."""
    process = subprocess.Popen([*COMMAND, *arguments], cwd=cwd, stderr=subprocess.PIPE, text=True)
    folder = cwd / next(a for a in arguments if "dir=" in a or a.startswith("run=")).partition("=")[2]
    deadline = time.monotonic() + 60
    while not (folder / "summary.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(after)
    process.send_signal(by)
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


TINY = ["env=russell_norvig", "tracker=none", "device=cpu", "loop.total_steps=640", "loop.eval_every=320",
        "loop.eval_episodes=64"]  # fmt: skip
DRAWS = ["agent=dqn", "agent.eval_epsilon=0.3", "agent.learning_starts=100"]  # in evaluations, by the stream it acts by
SEEDS = ["agent=q_learning", "loop=seeds", "loop.seeds=2"]


@pytest.mark.parametrize(("agent", "at"), [(DRAWS, 2), (DRAWS, 3), (SEEDS, 2)])  # in the middle, and the last
def test_the_first_signal_ends_an_evaluation_and_the_run_goes_on_bit_for_bit(tmp_path, monkeypatch, agent, at):
    home, asked, evaluations = judging if agent is DRAWS else seeds, [], itertools.count(1)

    def played(env, policy, episodes, seed):
        return play(env, stopping(policy) if next(evaluations) == at else policy, episodes, seed)

    def stopping(policy):
        def asking(obs):
            asked.append(obs)
            if len(asked) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return policy(obs)

        return asking

    play = home.play
    assert run(*agent, *TINY, "hydra.run.dir=whole", cwd=tmp_path)[0] == 0
    monkeypatch.setattr(home, "play", played)
    code, said = run(*agent, *TINY, "hydra.run.dir=parts", cwd=tmp_path)
    assert code == 130 and len(asked) == 3 and "resumes it" in said
    code, said = run("run=parts", cwd=tmp_path)
    assert code == 0 and ("only the last evaluation is left to do" in said) == (at == 3)
    for name in ["."] if agent is DRAWS else ["seed0", "seed1"]:
        parts, whole = (tmp_path / folder / name for folder in ("parts", "whole"))
        assert rows(parts) == rows(whole) and len(rows(whole)) > 2
        states = [checkpoint.read(folder / "checkpoint.pt")["agent"] for folder in (parts, whole)]
        assert equal(*states)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """DQN's run, uninterrupted."""
    return uninterrupted(DQN, tmp_path_factory.mktemp("resume"))


def test_killed_and_resumed_equals_uninterrupted(tmp_path, whole):
    check_kills(tmp_path, DQN, 2, seed=0, whole=whole)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["reinforce_frozen_lake", "actor_critic_russell_norvig", "ppo_four_rooms", A2C])
def test_every_agent_goes_on_after_a_kill(tmp_path, experiment):
    experiment = [f"experiment={experiment}", *SMALL] if isinstance(experiment, str) else experiment
    check_kills(tmp_path, experiment, 2, seed=0, whole=uninterrupted(experiment, tmp_path))


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path, whole):
    check_kills(tmp_path, DQN, 10, seed=int(os.environ.get("KILL_SEED", time.time())), whole=whole)


def uninterrupted(experiment: list[str], home: Path) -> Path:
    assert run(*experiment, "hydra.run.dir=whole", cwd=home)[0] == 0
    return home / "whole"


def check_kills(tmp_path: Path, experiment: list[str], kills: int, seed: int, whole: Path) -> None:
    spent = json.loads((whole / "summary.json").read_text())["seconds"]
    moments = [random.Random(seed + i).uniform(0.1, 0.8) * spent / kills for i in range(kills)]
    died = cut_off(*experiment, "hydra.run.dir=killed", cwd=tmp_path, after=moments[0])[0] == -signal.SIGKILL
    for moment in moments[1:]:
        (tmp_path / "killed/summary.json").unlink(missing_ok=True)
        died += cut_off("run=killed", cwd=tmp_path, after=moment)[0] == -signal.SIGKILL
    assert died == kills, f"{died} of {kills} kills struck; seed {seed}"
    code, said = run("run=killed", cwd=tmp_path)
    assert code == 0, said
    assert rows(tmp_path / "killed") == rows(whole), f"seed {seed}"


def test_sigterm_saves_says_how_to_go_on_and_a_longer_total_is_honoured(tmp_path):
    code, said = cut_off(
        *DQN, "checkpoint.every=1000", "hydra.run.dir=stopped", cwd=tmp_path, after=1.0, by=signal.SIGTERM
    )
    assert code == 128 + signal.SIGTERM
    assert "stopped; rl-lab train run=stopped resumes it" in said
    summary = json.loads((tmp_path / "stopped/summary.json").read_text())
    assert summary["state"] == "stopped" and 0 < summary["step"] < 60_000
    longer = summary["step"] + 3_200
    code, said = run("run=stopped", f"loop.total_steps={longer - 1}", cwd=tmp_path)
    assert code == 0 and f"from here on: loop.total_steps={longer - 1}\nresumed at step {summary['step']:,}" in said
    summary = json.loads((tmp_path / "stopped/summary.json").read_text())
    assert summary["state"] == "finished" and summary["step"] == longer
    assert rows(tmp_path / "stopped")[-1]["step"] == longer


@pytest.mark.slow
def test_a_run_that_still_trains_is_not_taken_up_by_another_process(tmp_path, whole):
    with subprocess.Popen([*COMMAND, *DQN, "hydra.run.dir=held"], cwd=tmp_path, stderr=subprocess.DEVNULL) as first:
        while not (tmp_path / "held/checkpoint.pt").exists() and first.poll() is None:
            time.sleep(0.02)
        code, said = run("run=held", cwd=tmp_path)
        assert first.poll() is None, "the first had ended too soon to be in the way"
        assert first.wait(timeout=300) == 0
    assert code == 2
    assert said.splitlines() == [
        f"rl-lab: {tmp_path / 'held'} is being trained by another process; wait until it ends, or stop it first"
    ]
    assert rows(tmp_path / "held") == rows(whole)


def test_an_environment_that_cannot_be_saved_starts_new_episodes_and_says_so(tmp_path):
    short = ["experiment=a2c_cartpole", "tracker=none", "device=cpu", "loop.total_steps=400", "loop.eval_episodes=2"]
    code, said = run(*short, "hydra.run.dir=poles", cwd=tmp_path)
    assert code == 0, said
    code, said = run("run=poles", "loop.total_steps=800", cwd=tmp_path)
    assert code == 0, said
    assert "this environment's state cannot be saved: its episodes start anew" in said
    assert [r["step"] for r in rows(tmp_path / "poles")][-1] == 800
    assert rl_lab.metrics(tmp_path / "poles")[-1]["env.id"] == "CartPole-v1"  # whatever its YAML is called


def test_a_finished_run_taken_further_equals_one_that_never_ended(tmp_path):
    longer = [*DQN[:3], "loop.total_steps=12_800", "loop.log_every=640", "loop.eval_every=3_200", *DQN[5:]]
    shorter = [a.replace("12_800", "6_400") for a in longer]
    assert run(*longer, "hydra.run.dir=whole", cwd=tmp_path)[0] == 0
    assert run(*shorter, "hydra.run.dir=taken", cwd=tmp_path)[0] == 0
    assert run("run=taken", "loop.total_steps=12_800", cwd=tmp_path)[0] == 0
    assert rows(tmp_path / "taken") == rows(tmp_path / "whole")


def test_a_folder_that_is_older_than_some_settings_goes_on_as_one_that_has_them(tmp_path):
    """Each of them is taken away where it has the value that an older folder means by its silence."""
    longer = ["agent=dqn", "env=windy", "tracker=none", "device=cpu", "loop.total_steps=8_000", "loop.log_every=1_000",
              "loop.eval_every=4_000", "loop.eval_episodes=8"]  # fmt: skip
    shorter = [a.replace("8_000", "4_000") for a in longer]
    assert run(*longer, "hydra.run.dir=whole", cwd=tmp_path)[0] == 0
    assert run(*shorter, "hydra.run.dir=older", cwd=tmp_path)[0] == 0
    before, taken = reading.config(tmp_path / "older", PARTS)[0], []

    def older(node):
        for key, value in list(node.items()) if isinstance(node, dict) else ():
            older(value)
            if PARTS.younger.get(node.get("_target_"), {}).get(key, taken) == value:
                taken.append(key)
                del node[key]

    config = yaml.safe_load((tmp_path / "older/config.yaml").read_text())
    older(config)
    (tmp_path / "older/config.yaml").write_text(yaml.safe_dump(config))
    assert {"noise", "slip", "dueling", "priorities", "delay", "obs"} <= {*taken}
    assert reading.config(tmp_path / "older", PARTS)[0] == before
    assert run("run=older", "loop.total_steps=8_000", cwd=tmp_path)[0] == 0
    assert rows(tmp_path / "older") == rows(tmp_path / "whole")
