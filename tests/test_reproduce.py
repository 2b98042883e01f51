"""`rl-lab reproduce <row>`: how long it takes, its runs, and the kept figures beside those of now."""

import os
import signal
from pathlib import Path

import pytest

from gen_lab.__main__ import COMMANDS as GEN
from rl_lab.__main__ import COMMANDS as RL
from rl_lab.core import conf_dir
from rl_lab.core.launching import cli, reproducing
from rl_lab.core.launching.composition import compose
from rl_lab.core.launching.listing import Kept
from rl_lab.core.run import Run
from rl_lab.core.studies.study import Study

ROW = Kept("value_iteration_russell_norvig", "", "", "x.md", "plan/start_value", "4 5", "0.71 0.71", "1.5 30")


@pytest.mark.parametrize(("root", "commands"), [pytest.param("rl", RL, marks=pytest.mark.slow), ("gen", GEN)])
def test_every_row_is_listed_and_can_be_run(root, commands, capsys):
    assert cli.main(f"{root}-lab", root, commands, ["reproduce"]) == 0
    text = capsys.readouterr().out
    assert len(reproducing.rows(root)) > 8
    for name, row in reproducing.rows(root).items():
        assert f"{name}: " in text and f"{row.metric} {row.figures}; " in text
        assert (
            len(row.figures.split()) == len(row.seeds.split()) == (len(reproducing.took(row)) or len(row.seeds.split()))
        )
        assert (conf_dir() / f"experiment/{name}.yaml").is_file()
        if row.settings:
            compose(conf_dir(), root, [f"experiment={name}", "seed=0", *row.settings.split()])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a2c_cartpol"], "rl-lab: no row 'a2c_cartpol'; did you mean a2c_cartpole?; rl-lab reproduce lists them all\n"),
        (["pong", "env.sticky=0.25"], "rl-lab: env.sticky=0.25 would make it another claim; rl-lab reproduce takes hydra.*, "
         "device=, tracker= and where data lie; with other settings: rl-lab train experiment=pong env.sticky=0.25\n"),
        (["pong", "cartpol"], "rl-lab: reproduce one row at a time: rl-lab reproduce pong, then rl-lab reproduce "
         "cartpol\n"),
        (["acrobot"], "rl-lab: no row 'acrobot'; did you mean a2c_acrobot or dqn_acrobot or ppo_acrobot?; rl-lab reproduce lists them all\n"),
        (["pong", "device=gpu"], "rl-lab: device=gpu is not a choice; choose from auto, cpu, cuda, xpu, mps\n"),
        (["pong", "tracker=x"], "rl-lab: no choice 'x' for tracker; choose from csv, none, tensorboard, wandb\n"),
        (["pong", "hydra.run.dir=x"], "rl-lab: hydra.run.dir=x would be ignored: the place of several runs is "
         "hydra.sweep.dir=...\n"),
    ],
)  # fmt: skip
def test_mistakes(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main("rl-lab", "rl", RL, ["reproduce", *arguments]) == 2
    assert capsys.readouterr().err.endswith(words)
    assert not [*tmp_path.iterdir()], "no study of what could not begin"


@pytest.mark.parametrize(
    ("figures", "words", "code"),
    [
        ("0.71 0.71", "the same figures, as far as they were kept", 0),
        ("0.70 0.72", "the intervals meet", 0),
        ("0.80 0.81", "the intervals do not meet: what was kept is not what comes out now", 1),
    ],
)
def test_a_row_is_run_again_and_held_against_what_was_kept(figures, words, code, tmp_path, monkeypatch, capsys):
    """The value of the start is .7053 with any seed (Russell and Norvig, 3rd edition, figure 17.3)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproducing, "kept", lambda root: [ROW._replace(figures=figures)])
    there = ["hydra.sweep.dir=there"] * (figures == ROW.figures)
    assert cli.main("rl-lab", "rl", RL, ["reproduce", ROW.experiment, "device=cpu", *there]) == code
    said = capsys.readouterr()
    assert f"{ROW.experiment}: 2 runs, seeds 4 5; about 32 s where it was measured (x.md)\n" in said.err
    lines = said.out.splitlines()
    assert lines[-1] == words
    assert [line.split()[:3] for line in lines[-4:-2]] == [
        [seed, x, "0.71"] for seed, x in zip("45", figures.split(), strict=True)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["there" if there else "runs"]
    assert len([*tmp_path.glob(f"*/{ROW.experiment}/*/metrics.jsonl")]) == 2


@pytest.mark.slow
def test_a_row_that_was_stopped_goes_on_by_the_same_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kept = ROW._replace(settings="hydra.launcher.n_jobs=1")  # which another launcher does not have
    monkeypatch.setattr(reproducing, "kept", lambda root: [kept])
    command = ["reproduce", ROW.experiment, "device=cpu", "hydra/launcher=basic"]
    begin = Run.begin

    def stopping(*given, **named):
        begin(*given, **named)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Run, "begin", stopping)
    assert cli.main("rl-lab", "rl", RL, command) == 130
    assert f"the same command, rl-lab reproduce {ROW.experiment}, goes on and then compares" in capsys.readouterr().err
    monkeypatch.setattr(Run, "begin", begin)
    (folder,) = tmp_path.glob(f"runs/studies/{ROW.experiment}/*")
    arguments = Study(folder).about["arguments"]
    with Study(folder).launching():
        assert reproducing.stopped(Path("runs"), ROW.experiment, arguments) is None
    assert cli.main("rl-lab", "rl", RL, command) == 0
    said = capsys.readouterr()
    assert "was stopped, and goes on" in said.err and "the same figures, as far as they were kept" in said.out
    assert len([*tmp_path.glob(f"runs/studies/{ROW.experiment}/*")]) == 1
    assert cli.main("rl-lab", "rl", RL, command) == 0, "a study that came to its end is not taken up"
    assert len([*tmp_path.glob(f"runs/studies/{ROW.experiment}/*")]) == 2


def test_one_seed_has_no_interval_and_a_missing_run_no_figure(capsys):
    row = ROW._replace(seeds="4", figures="17.80", seconds="")
    assert reproducing.announced(row) == "1 run, seed 4; how long they took was not kept (x.md)"
    assert reproducing.compared(row, "gen-lab", 0, [(17.8449, 3.0)]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "     4      17.80      17.84        -      3.0",
        "kept 17.8, now 17.84",
        "one seed has no interval: whether these agree is for you to judge",
    ]
    assert reproducing.compared(row, "gen-lab", 0, [None]) == 1
    assert "not every run finished" in capsys.readouterr().out


def test_a_figure_is_found_on_whatever_data_it_was_measured():
    final = {"eval/nll_nats_se[mnist]": 0.1, "eval/nll_nats[mnist]": 85.0, "eval/return": 3.0}
    assert reproducing.figure("eval/nll_nats", final) == 85.0 and reproducing.figure("eval/return", final) == 3.0
    assert reproducing.figure("eval/regret", final) is None
