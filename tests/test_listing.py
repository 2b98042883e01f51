"""What there is: `rl-lab envs` and its like, from the YAMLs, the code behind them and the figures that were kept."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gen_lab.__main__ import COMMANDS as GEN
from rl_lab.__main__ import COMMANDS as RL
from rl_lab.core import conf_dir
from rl_lab.core.launching import cli, listing, reproducing
from rl_lab.core.launching.composition import compose, groups, names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LISTED = [("rl", "envs"), ("rl", "agents"), ("rl", "experiments"), ("gen", "models"), ("gen", "experiments")]  # fmt: skip


def listed(capsys, root: str, *arguments: str) -> str:
    assert cli.main(f"{root}-lab", root, RL if root == "rl" else GEN, list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("root", "name"), LISTED)
def test_every_name_has_a_line(capsys, root, name):
    group = listing.LISTS[name]
    text = listed(capsys, root, name)
    names = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
    if group == "experiment":
        names = {name for name, _ in listing.experiments(root)}
    for choice in names:
        assert re.search(rf"^\s*{choice}[: ] +\S.{{12,}}", text, re.MULTILINE), choice
    assert group in groups(root) and len(names) > 8


def test_each_lab_has_its_own_studies(capsys):
    ours = {root: names(root, "study") for root in ("rl", "gen")}
    assert ours["gen"] == ["cifar10", "digits", "fashion", "mnist"]
    assert ours["rl"] == ["atari", "classic_control", "collect", "gridworlds", "optuna_dqn_cartpole"]
    for root, name, other in (
        ("gen", "gridworlds", "rl"),
        ("gen", "optuna_dqn_cartpole", "rl"),
        ("rl", "digits", "gen"),
    ):
        commands = RL if root == "rl" else GEN
        assert cli.main(f"{root}-lab", root, commands, ["train", f"study={name}"]) == 2
        line = f"{root}-lab: study={name} is for {other}-lab: {other}-lab train study={name}\n"
        assert capsys.readouterr().err == line
        assert cli.main(f"{root}-lab", root, commands, ["train", "study=zz"]) == 2
        line = f"{root}-lab: no choice 'zz' for study; choose from {', '.join(ours[root])}\n"
        assert capsys.readouterr().err == line
        assert f"\n  study       {', '.join(ours[root])}\n" in listed(capsys, root, "train", "--help")


@pytest.mark.parametrize("group", ["env", "agent", "model", "data"])
def test_every_name_stands_under_the_file_behind_it(group):
    for (source, about), members in listing.families(group).items():
        ours = (ROOT / source).is_file() and about.endswith((".", ")"))
        assert ours or (source.startswith("stable_baselines3.") and not about), source
        assert members


def test_sources_and_papers_are_read_from_the_code():
    assert listing.code("rl_lab.agents.dqn.DQN") == (
        "rl_lab/agents/dqn.py",
        "Deep Q-Network (Mnih et al., 2015), and the variants that joined it in Rainbow (Hessel et al., 2018), each a setting.",
    )
    assert listing.code("gen_lab.data.mnist")[0] == "gen_lab/data/idx.py"
    found = {choice.name: source for (source, _), of in listing.families("env").items() for choice in of}
    assert (found["windy"], found["taxi"]) == ("rl_lab/envs/tabular/gridworld.py", "rl_lab/envs/tabular/tables.py")
    found = {choice.name: source for (source, _), of in listing.families("model").items() for choice in of}
    assert found["pixelcnn"] == "gen_lab/models/pixelcnn.py"


def test_the_opening_of_a_yaml_is_a_sentence():
    assert listing.opening("# @package _global_\n# A line.\n# Another.\nx: 1\n") == "A line."
    assert listing.opening("# A line that\n# goes on.\nx: 1\n") == "A line that goes on."
    assert listing.opening("x: 1\n# Not this.\n") == ""


@pytest.mark.parametrize("root", ["rl", "gen"])
def test_what_was_kept_is_of_an_experiment_and_of_a_file(root):
    kept = listing.kept(root)
    names = [line.experiment for line in kept]
    assert names == sorted(set(names)) and set(names) <= {name for name, _ in listing.experiments(root)}
    for line in kept:
        text = re.sub(r"[,≤ ]", "", (ROOT / line.source).read_text())
        figures = re.findall(r"[\d.]*\d", line.score.partition("(")[0].replace(",", ""))
        figures += line.figures.split()
        assert figures and all(re.sub(r"^0\.", ".", figure) in text for figure in figures), line


def test_words_look_for_lines(capsys):
    text = listed(capsys, "rl", "experiments", "pong", "sticky")
    assert "pong_sticky:" in text and "ppo_pong:" not in text
    assert "(5 of 5 seeds); 148,480 to 525,312 steps, 76 to 273 s (tests/bench/results/pong.md)" in listed(
        capsys, "rl", "experiments", "minutes", "pong"
    )
    assert "(5 of 5 seeds) (tests/bench/results/learning.md)" in listed(capsys, "rl", "experiments", "a2c_russell")
    assert listed(capsys, "rl", "envs", "slips").count("\n  ") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["agents", "dqnn"], "rl-lab: no line of rl-lab agents has dqnn; rl-lab agents lists them all\n"),
        (["envs", "env=maze"], "rl-lab: env=maze is not a word to look for; rl-lab envs takes words, such as rl-lab envs maze\n"),
        (["models"], "rl-lab: no command 'models'"),
    ],
)  # fmt: skip
def test_mistakes(capsys, arguments, words):
    assert cli.main("rl-lab", "rl", RL, arguments) == 2
    assert capsys.readouterr().err.startswith(words)


def rows(group: str) -> list[str]:
    """README's table of a group: the names of each family, and what it is."""
    found = ["| |", "|---|---|"]
    found[0] = f"| `{group}=` | |"
    for (source, about), members in listing.families(group).items():
        found.append(f"| {' '.join(f'`{choice.name}`' for choice in members)} | {about or source} |")
    return found


@pytest.mark.parametrize("group", re.findall(r"^<!-- the table of (\w+) -->$", README, re.MULTILINE) or [None])
def test_readme_has_the_same_words(group):
    """Between such a comment and the blank line after it stands what `python tests/test_listing.py <group>` prints."""
    if group:
        table = README.partition(f"<!-- the table of {group} -->\n")[2].partition("\n\n")[0]
        assert table.splitlines() == rows(group)


def test_help_of_train_has_the_comments_of_the_files_that_were_chosen(capsys):
    text = listed(capsys, "rl", "train", "--help", "experiment=dqn_cartpole", "agent/priorities=proportional")
    said = dict(re.findall(r"^ *(\w+):.*?  # (.*)$", text, re.MULTILINE))
    assert said["agent"].startswith("dqn_mlp: Ours, tuned on CartPole")
    assert said["double"] == "van Hasselt et al. (2016)"  # of dqn.yaml, on which dqn_mlp rests
    assert said["total_steps"] == "one step is one action in one environment"  # of loop/base/training.yaml
    assert said["replay_ratio"] == "a batch for each step of all copies"  # of the experiment, not of the agent
    assert said["every"] == "seconds"  # of rl.yaml
    without = re.sub(r"  +#.*", "", text.partition("settings as they stand")[2].partition("\n\n")[2])
    composed = compose(conf_dir(), "rl", ["experiment=dqn_cartpole", "agent/priorities=proportional"])
    assert OmegaConf.create(without) == composed


@pytest.mark.parametrize("flag", ["--config-dir={}", "-cd {}"])
def test_help_of_train_knows_the_yaml_files_of_ones_own(capsys, tmp_path, flag):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/mine.yaml").write_text("# An agent of mine.\ndefaults: [dqn, _self_]\ngamma: 0.5   # near\n")
    text = listed(capsys, "rl", "train", *flag.format(tmp_path).split(), "agent=mine", "--help")
    assert re.search(r"^agent: +# mine: An agent of mine\.$", text, re.MULTILINE)
    assert re.search(r"^  gamma: 0\.5 +# near$", text, re.MULTILINE)
    assert re.search(r"^  double: false +# van Hasselt et al\. \(2016\)$", text, re.MULTILINE)
    assert "vpn_replay, mine\n" in text


@pytest.mark.parametrize(("words", "line"), [(["-m", "experiment=dqn_cartpole"], "leave out -m, and give one value of each"),
                                             (["--config-dir=/nope"], "--config-dir=/nope is not a folder"),
                                             (["run=runs/x"], "--help shows those of a new run")])  # fmt: skip
def test_what_help_does_not_take_is_said(capsys, words, line):
    assert cli.main("rl-lab", "rl", RL, ["train", "--help", *words]) == 2
    assert line in capsys.readouterr().err


def test_help_leaves_drawings_as_they_are(capsys):
    text = listed(capsys, "rl", "train", "--help", "env=windy")
    without = text.partition("settings as they stand")[2].partition("\n\n")[2]
    drawn = OmegaConf.to_container(OmegaConf.create(without), resolve=False)["env"]["mdp"]["map"]
    assert drawn.splitlines()[3] == "S......G.." and "  # probability that a step slips" in text


@pytest.mark.parametrize("group", ["agent", "model", "data"])
def test_what_readme_names_is_there(group):
    table = README.partition(f"| `{group}=` | |\n")[2].partition("\n\n")[0]
    named = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row.split("|")[1]))
    }
    assert len(named) > 8 and named <= {path.stem for path in (conf_dir() / group).glob("*.yaml")}


def test_the_version(capsys):
    assert re.fullmatch(r"rl-lab \d+\.\d+\.\d+( \(\w+\S*\))?\n", listed(capsys, "rl", "--version"))
    assert listed(capsys, "gen", "--version").startswith("gen-lab ")
    assert listed(capsys, "rl", "train", "--version") == listed(capsys, "rl", "--version")


def test_listing_imports_neither_hydra_nor_torch():
    code = "import sys; from rl_lab.__main__ import COMMANDS; from rl_lab.core.launching import cli; " \
           "cli.main('rl-lab', 'rl', COMMANDS, ['agents']); sys.exit(' '.join({'torch', 'hydra'} & set(sys.modules)))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


RESULTS = ROOT / "tests/bench/results/README.md"


def results(root: str) -> list[str]:
    return ["| row | | score, interquartile mean [95 %] | by seed | seeds | spent | beside it | how it was measured |",
            "|---|---|---|---|---|---|---|---|", *reproducing.table(root)]  # fmt: skip


@pytest.mark.parametrize("root", ["rl", "gen"])
def test_the_table_of_results_is_that_of_the_kept_figures(root):
    """Between such a comment and the blank line after it stands what `python tests/test_listing.py results <root>` prints."""
    table = RESULTS.read_text().partition(f"<!-- the results of {root}-lab -->\n")[2].partition("\n\n")[0]
    assert table.splitlines() == results(root)


if __name__ == "__main__":
    print("\n".join(results(sys.argv[2]) if sys.argv[1] == "results" else rows(sys.argv[1])))
