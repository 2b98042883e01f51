"""The labs from Python: what their docstrings show is run as it stands, and mistakes are one line."""

import doctest
import json
import subprocess
import sys

import pytest

import gen_lab
import rl_lab
from rl_lab.core.errors import UserError

PLAN = "experiment=value_iteration_russell_norvig", "loop.film=false", "tracker=none", "device=cpu"


@pytest.mark.parametrize("lab", [rl_lab, gen_lab])
def test_what_the_docstrings_show(lab, tmp_path, monkeypatch):
    """All in one session, in the order of the file: each function goes on with the folder that `train` left."""
    monkeypatch.chdir(tmp_path)
    if lab is rl_lab:
        pytest.importorskip("pandas")
    found = [test for test in doctest.DocTestFinder(exclude_empty=True).find(lab) if test.examples]
    found.sort(key=lambda test: test.lineno)
    assert len(found) >= 4 and {test.name.rpartition(".")[2] for test in found} >= {"train", "load", "evaluate"}
    session, runner = {lab.__name__: lab}, doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in found:
        test.globs = session
        runner.run(test, clear_globs=False)
    assert runner.summarize().failed == 0


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return rl_lab.train(*PLAN, f"hydra.run.dir={tmp_path_factory.mktemp('python')}/run").absolute()


def test_importing_the_labs_imports_no_torch():
    words = "import sys, rl_lab, gen_lab; print(sorted({'torch', 'hydra', 'pandas', 'wandb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", words], capture_output=True, text=True).stdout == "[]\n"


def test_a_run_is_resumed_by_its_folder_and_says_what_was_typed(tmp_path):
    before, few = list(sys.argv), ["env=cliff_walking", "agent=q_learning", "loop.eval_episodes=1", "tracker=none"]
    folder = rl_lab.train(*few, "loop.total_steps=200", f"hydra.run.dir={tmp_path}/run")
    assert rl_lab.train(f"run={folder}", "loop.total_steps=400") == folder and sys.argv == before
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["step"] >= 400 and summary["command"] == f"rl-lab train run={folder} loop.total_steps=400"


def test_metrics_are_the_rows_of_the_file(planned):
    rows: dict[int, dict] = {}  # of one step there may be several
    for row in map(json.loads, (planned / "metrics.jsonl").read_text().splitlines()):
        rows.setdefault(row["step"], {}).update(row)
    records = rl_lab.metrics(planned, settings=["env.time_limit", "env.obs"])
    head = {"run", "name", "seed", "experiment", "planner", "env", "env.time_limit", "env.obs"}
    assert [{k: v for k, v in record.items() if k not in head} for record in records] == [*rows.values()]
    assert {(r["planner"], r["env"], r["env.time_limit"], r["env.obs"]) for r in records} == {
        ("value_iteration", "russell_norvig", 200, "one_hot")
    }


def test_a_frame_without_pandas_names_the_extra(planned, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"rl-lab\[pandas\]"):
        rl_lab.frame(planned)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda run: rl_lab.train("agent=dqnn"), "no choice 'dqnn' for agent; did you mean agent=dqn?"),
        (lambda run: rl_lab.train("-m", "seed=0,1"), "-m is for the command line, rl-lab train; from Python each call is one run"),
        (lambda run: rl_lab.train("study=gridworlds"), "study=gridworlds is for the command line"),
        (lambda run: rl_lab.train("hydra.mode=MULTIRUN", "seed=0,1"), "hydra.mode=MULTIRUN is for the command line"),
        (lambda run: rl_lab.load(f"{run}s"), "no run folder"),
        (lambda run: rl_lab.load(f"{run}/*"), "this takes one run"),
        (lambda run: rl_lab.load(run, num_envs=0), "num_envs=0"),
        (lambda run: rl_lab.load(run, "env.sise=3"), "no setting 'env.sise'"),
        (lambda run: rl_lab.evaluate(run, episodes=0), "episodes=0"),
        (lambda run: rl_lab.metrics(run, settings=["env.time"]), "no setting 'env.time'; did you mean env.time_limit?"),
        (lambda run: gen_lab.load(run), "is not a run of gen-lab train"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(planned, mistake, words):
    with pytest.raises(UserError) as error:
        mistake(planned)
    assert words in str(error.value) and "\n" not in str(error.value)
