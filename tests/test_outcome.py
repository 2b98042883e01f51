"""The last lines of a run: what came of it, and commands that work."""

import re
from pathlib import Path

import pytest
import torch

from gen_lab.__main__ import COMMANDS as GEN
from rl_lab.__main__ import COMMANDS as RL
from rl_lab.core import outcome
from rl_lab.core.launching import cli
from rl_lab.core.outcome import score
from rl_lab.loops.judging import scores


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, root: str, *arguments: str) -> list[str]:
    """From "finished" on."""
    commands = RL if root == "rl" else GEN
    assert cli.main(f"{root}-lab", root, commands, ["train", "tracker=none", "device=cpu", *arguments]) == 0
    lines = capsys.readouterr().err.splitlines()
    return lines[lines.index(next(line for line in lines if line.startswith("finished: "))) :]


SHORT = ["loop.total_steps=400", "loop.eval_every=null", "loop.eval_episodes=8", "env.num_envs=4"]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["planner=value_iteration", "env=book"], "planner=value_iteration env=book: mine"),
        (
            ["agent=q_learning", "env=toy_text", "env.id=FrozenLake-v1", *SHORT],
            "agent=q_learning env=toy_text env.id=FrozenLake-v1 loop.total_steps=400: mine",
        ),
    ],
)
def test_the_first_line_says_what_runs_and_where(here, capsys, typed, line):
    arguments = ["train", *typed, "tracker=none", "device=cpu", "hydra.run.dir=mine"]
    assert cli.main("rl-lab", "rl", RL, arguments) == 0
    assert capsys.readouterr().err.splitlines()[0] == line


def test_what_is_refused_is_not_announced(here, capsys):
    assert cli.main("rl-lab", "rl", RL, ["train", "experiment=pong", "env.game=pongg", "env.num_threads=auto"]) == 2
    assert capsys.readouterr().err == "rl-lab: no Atari game 'pongg'; did you mean pong?\n"
    assert not list(here.rglob("*"))


def assert_works(line: str) -> None:
    prog, *words = line.removeprefix("next: ").split()
    commands = {"rl-lab": RL, "gen-lab": GEN}[prog]
    assert (
        cli.main(prog, prog.partition("-")[0], commands, [*words, "tracker=none"] if words[0] == "render" else words)
        == 0
    )


def test_of_a_plan(here, capsys):
    lines = said(capsys, "rl", "planner=value_iteration", "env=russell_norvig", "hydra.run.dir=my run")
    assert lines[0] == "finished: my run"
    assert re.fullmatch(
        r"  eval/return 0\.\d+ ± 0\.\d+ \(1,\d{3} episodes\), regret \S+, value of the start 0\.7053", lines[1]
    )
    assert re.fullmatch(r"  \d+ sweeps in \S+ (s|min)", lines[2])
    assert lines[3:5] == ["  pictures/: q.png, values.png", "  videos/: sweeps.gif, sweeps.mp4"]
    assert lines[5:] == ["next: rl-lab evaluate 'run=my run' episodes=100", "      rl-lab render 'run=my run'"]


def test_of_an_agent_whose_commands_work(here, capsys):
    lines = said(capsys, "rl", "agent=q_learning", "env=book", *SHORT)
    assert re.fullmatch(r"  eval/return \S+ ± \S+ \(8 episodes\), regret \S+", lines[1]) and "400 steps in" in lines[2]
    assert len(lines) == 5 and all(len(line) < 80 for line in lines[:3])
    for line in lines[3:]:
        assert_works(line.strip())


@pytest.mark.slow
def test_of_a_model_whose_commands_work(here, capsys):
    lines = said(capsys, "gen", "experiment=independent_digits", "loop.total_steps=6", "loop.eval_every=2")
    assert re.fullmatch(r"  eval/bits_per_dim\[digits\S*\] \S+ ± \S+", lines[1]) and lines[2].startswith(
        "  6 updates in "
    )
    assert lines[3:5] == ["  pictures/: 5, the last is samples_00000006.png", "  videos/: training.gif"]
    for line in lines[5:]:
        assert_works(line.strip())


def test_a_film_is_offered_of_what_can_be_filmed_alone(here, capsys):
    """Taxi's table has no map."""
    lines = said(capsys, "rl", "agent=q_learning", "env=taxi", "loop.eval_episodes=1", "loop.total_steps=40",
                 "loop.eval_every=null", "hydra.run.dir=x")  # fmt: skip
    assert lines[3:] == ["next: rl-lab evaluate run=x episodes=100"]


def test_of_many_seeds(here, capsys):
    tiny = ["loop.total_steps=400", "loop.eval_every=null", "loop.eval_episodes=4", "env.num_envs=4", "seed=3"]
    lines = said(capsys, "rl", "agent=q_learning", "env=book", "loop=seeds", "loop.seeds=2", *tiny, "hydra.run.dir=x")
    assert lines[2].startswith("  400 steps of 2 seeds in ") and "±" not in lines[1]
    assert lines[3:] == ["next: rl-lab compare x", "      rl-lab render run=x/seed3"]


def test_pictures_behind_a_link_are_not_looked_at(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/me.png").touch()
    (tmp_path / "pictures").symlink_to(tmp_path / "mine")
    assert [*outcome.lines(tmp_path, {}, "5 steps in 1 s", (), 0)] == [f"finished: {tmp_path}", "  5 steps in 1 s"]


def test_scores_in_words():
    final = {"eval/return": 0.93125, "eval/return_se": 0.0123, "eval/episodes": 1_024.0, "eval/regret": 0.001}
    assert score(final) == "eval/return 0.9313 ± 0.012 (1,024 episodes), regret 0.001"
    words = score(final | {"plan/start_value": 0.705308})
    assert words == "eval/return 0.9313 ± 0.012 (1,024 episodes), regret 0.001, value of the start 0.7053"
    assert (
        score({"eval/recon_mse[x]": 2.5, "eval/recon_mse_se[x]": 0.5, "vae/loss": 3.0}) == "eval/recon_mse[x] 2.5 ± 0.5"
    )
    both = {"eval/nll_nats[x-validation]": 1.0, "eval/nll_nats[x]": 2.0}
    assert score(both) == "eval/nll_nats[x] 2" and score({"eval/nll_nats[x-validation]": 1.0}).endswith(
        "-validation] 1"
    )
    assert score({"episode/return": 2.0, "eval/episodes": 8}) == "episode/return 2" and score({"dqn/loss": 1.0}) == ""


def test_the_error_of_a_mean_return_and_none_of_a_single_episode():
    returns, lengths = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([2.0, 2.0, 4.0, 4.0])
    found = {name: float(x) for name, x in scores(returns, lengths).items()}
    error = (20 / 3) ** 0.5 / 2
    assert found == {"eval/return": 4.0, "eval/return_se": pytest.approx(error), "eval/length": 3.0, "eval/episodes": 4}
    assert "eval/return_se" not in scores(returns[:1], lengths[:1])
