"""The run folder, its rows, and W&B holding the same ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.core import checkpoint
from rl_lab.core.bookkeeping import Every, Means
from rl_lab.core.errors import NotFinite, UserError
from rl_lab.core.launching import cli, rehearsal
from rl_lab.core.learner import Learner, descend
from rl_lab.core.randomness import seeded
from rl_lab.core.rows import AT_ONCE
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Unit, conform


def open_run(folder: Path, **arguments) -> Run:
    return Run(
        folder, 0, "cpu", names={"name": "x", "agent": "dqn", "seed": 0}, config={"agent": {"gamma": 0.9}}, **arguments
    )


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_hold_step_seconds_and_values(tmp_path):
    with open_run(tmp_path) as run:
        run.begin(10)
        run.log({"a/x": torch.tensor(1.5), "a/y": 2}, 5)
    (row,) = rows(tmp_path)
    assert row.pop("seconds") >= 0 and row == {"step": 5, "a/x": 1.5, "a/y": 2.0}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["state"] == "finished" and summary["final"] == {"a/x": 1.5, "a/y": 2.0} and summary["agent"] == "dqn"
    assert summary["versions"]["torch"] == torch.__version__


def test_a_row_of_nothing_is_no_row(tmp_path):
    with open_run(tmp_path) as run:
        run.begin(10)
        run.log({}, 5)
        run.log({"a/x": 1.0}, 6)
    assert [row["step"] for row in rows(tmp_path)] == [6]


def test_a_finished_run_without_its_checkpoint_keeps_its_rows(tmp_path):
    with open_run(tmp_path) as run:
        run.begin(10)
        run.log({"x": 1.0}, 10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"has finished, and its checkpoint.pt is not there"), open_run(tmp_path) as run:
        run.restore({})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_resumed_without_a_checkpoint_it_says_that_it_starts_anew(tmp_path, capsys):
    line = "no checkpoint was written before the run ended: it starts anew, at step 0"
    for again in (False, True):
        with pytest.raises(KeyboardInterrupt), open_run(tmp_path) as run:
            assert run.restore({}) == 0
            assert (line in capsys.readouterr().err) == again
            run.begin(10)
            run.log({"x": 1.0}, 1)
            raise KeyboardInterrupt
    assert [row["step"] for row in rows(tmp_path)] == [1]


def test_rows_are_thinned_only_beyond_a_thousand_at_once_and_evaluations_never(tmp_path):
    with open_run(tmp_path) as run:
        run.begin(10)
        for step in range(AT_ONCE + 500):
            run.log({"x": 0.0}, step)
        run.log({"eval/return": 1.0}, 9_999, keep=True)
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps[:AT_ONCE] == list(range(AT_ONCE))
    assert AT_ONCE + 1 <= len(steps) < AT_ONCE + 100 and steps[-1] == 9_999


def test_saving_right_after_rows_were_cut_off_remembers_where_the_file_ends_now(tmp_path):
    with open_run(tmp_path) as run:
        run.begin(10)
        run.log({"x": 1.0}, 1)
        run.save(1, {})
        run.log({"x": 2.0}, 2)  # lost: the run is killed before its next checkpoint
    for _ in range(2):
        with open_run(tmp_path) as run:
            assert run.restore({}) == 1
            run.begin(10)
            run.save(1, {})
    assert [row["step"] for row in rows(tmp_path)] == [1]


def test_a_folder_is_one_runs_alone_until_it_closes(tmp_path):
    for _ in range(2):
        with open_run(tmp_path) as run:
            run.begin(10)
            with pytest.raises(UserError, match="another process; wait until it ends"):
                open_run(tmp_path).__enter__()
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path):
        raise KeyboardInterrupt  # before it began
    with open_run(tmp_path):
        pass


def test_a_failed_run_is_marked_so(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path) as run:
        run.begin(1)
        raise ZeroDivisionError("ours")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["state"], summary["error"]) == ("failed", "ours")


def test_a_row_that_is_not_finite_names_metric_and_step(tmp_path):
    with pytest.raises(NotFinite, match="a/loss is nan at step 1,234"), open_run(tmp_path) as run:
        run.begin(1)
        run.log({"a/loss": torch.tensor(float("nan"))}, 1_234)


def test_streams_differ_by_name_and_seed(tmp_path):
    run = open_run(tmp_path)
    other = Run(tmp_path, 1, "cpu", names={"name": "x"}, config={})
    assert len({run.stream("env"), run.stream("agent"), other.stream("env")}) == 3
    assert run.stream("env") == open_run(tmp_path).stream("env")


def test_offline_wandb_holds_the_same_rows(tmp_path, monkeypatch):
    """Read back with W&B's own inspector."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = stated("tracker/wandb", dir=str(tmp_path))
    with open_run(tmp_path / "run", tracker=tracker) as run:
        run.begin(10)
        for step in range(0, 50, 5):
            run.log({"agent/loss": step / 7}, step)
        run.log({"eval/return": 3.0}, 50, keep=True)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    records = [
        json.loads(line)
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ]
    opened = next(record["run"] for record in records if record["type"] == "run")
    config = opened["config"]["update"]
    assert (config["agent"], config["seed"], config["settings"]) == ("dqn", 0, {"agent": {"gamma": 0.9}})
    assert (opened["run_group"], opened["job_type"]) == ("x", "train")
    tracked = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [{k: v for k, v in row.items() if not k.startswith("_")} for row in tracked] == rows(tmp_path / "run")


@pytest.mark.parametrize(
    ("lab", "experiment", "settings", "needless"),
    [
        ("rl", "dqn_cartpole", ["loop.total_steps=1_100", "loop.eval_every=null", "loop.eval_episodes=1"], "scipy"),
        pytest.param("gen", "vae_digits", ["loop.total_steps=2", "judge=none"], "matplotlib", marks=pytest.mark.slow),
    ],
)
def test_training_waits_for_no_library_that_it_does_not_use(tmp_path, lab, experiment, settings, needless):
    """To import torch's compiler takes as long as to import torch; it comes with `optimizer.step()`, among others."""
    arguments = ["train", f"experiment={experiment}", *settings, "tracker=none", "device=cpu", "hydra.run.dir=run"]
    code = f"""
import sys
from {lab}_lab.__main__ import main
sys.argv = ["{lab}-lab", *{arguments!r}]
code = main()
sys.exit(code or ", ".join({{"wandb", "torch._dynamo", "{needless}"}} & {{*sys.modules}}) or 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-300:]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any(name.endswith(("loss", "bound_nats")) for row in rows for name in row)  # a step was taken


def test_after_the_last_line_the_emulator_says_nothing(tmp_path):
    """It counts what was not given back when the process ends."""
    tiny = ["env=atari", "agent=random", "tracker=none", "device=cpu", "env.num_envs=1", "env.max_frames=80",
            "loop.total_steps=5", "loop.eval_episodes=1", "hydra.run.dir=run"]  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-m", "rl_lab", "train", *tiny], cwd=tmp_path, capture_output=True, text=True
    )
    assert said.returncode == 0 and said.stderr.splitlines()[-1].strip() == "rl-lab render run=run"


@pytest.mark.slow
def test_multirun_gives_each_job_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train",
        "-m",
        "experiment=value_iteration_four_rooms",
        "tracker=none",
        "seed=0,1",
        "planner.gamma=0.9,0.99",
    ]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    folders = sorted(p.parent for p in tmp_path.glob("runs/value_iteration_four_rooms/*/summary.json"))
    assert len(folders) == 4 and sum(f.name.endswith("_seed1") for f in folders) == 2


def test_settings_are_composed_once_and_a_mode_in_them_makes_jobs_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    composed, load = [], ConfigLoaderImpl._load_configuration_impl
    monkeypatch.setattr(
        ConfigLoaderImpl, "_load_configuration_impl", lambda self, *a, **k: composed.append(a) or load(self, *a, **k)
    )
    plan = ["train", "planner=value_iteration", "env=book", "loop.film=false", "loop.eval_episodes=1", "tracker=none"]
    assert cli.main("rl-lab", "rl", COMMANDS, [*plan, "device=cpu"]) == 0 and len(composed) == 1
    jobs = ["seed=0,1", "hydra.mode=MULTIRUN", "hydra/launcher=basic", "hydra.sweep.dir=jobs"]
    assert (
        cli.main("rl-lab", "rl", COMMANDS, [*plan, *jobs]) == 0
        and len(list(tmp_path.glob("jobs/*/*/summary.json"))) == 2
    )


@pytest.mark.slow
def test_a_failing_job_leaves_the_others_standing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal, "HERE", ("of no launcher",))  # where jobs go elsewhere, devices are not looked for
    arguments = ["train", "-m", "experiment=value_iteration_four_rooms", "tracker=none", "device=mps,cpu"]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 2
    assert len(list(tmp_path.glob("runs/value_iteration_four_rooms/*/summary.json"))) == 1


def test_checkpoints_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.write(path, {"x": torch.ones(3)})

    def fails(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="could not write"):
        checkpoint.write(path, {"x": torch.zeros(3)})
    assert checkpoint.read(path)["x"].tolist() == [1, 1, 1] and [p.name for p in tmp_path.iterdir()] == [
        "checkpoint.pt"
    ]


class Buffer(torch.nn.ParameterDict):
    nbytes = 1_200_000


class Toy(Learner):
    saved = "network", "rng", "count", "replay"
    memory = "replay"

    def __init__(self, seed: int):
        with seeded(seed, torch.device("cpu")):
            self.network = torch.nn.Linear(2, 2)
        self.rng, self.count = torch.Generator().manual_seed(seed), seed
        self.replay = Buffer({"data": torch.zeros(300_000)})


def test_a_large_memory_is_left_out_and_said(tmp_path, capsys):
    with open_run(tmp_path, max_memory_gb=0.001) as run:
        run.begin(1)
        run.save(1, {"agent": Toy(0)})
    state = checkpoint.read(tmp_path / "checkpoint.pt")["agent"]
    assert set(state) == {"network", "rng", "count"}
    assert "left out of the checkpoint" in capsys.readouterr().err
    other = Toy(1)
    other.load_state_dict(state)
    assert other.count == 0 and torch.equal(other.rng.get_state(), Toy(0).rng.get_state())


def test_initialisation_follows_its_own_seed_and_leaves_the_global_stream():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(Toy(3).network.weight, Toy(3).network.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_descend_takes_no_step_that_is_not_finite():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=1.0)
    assert descend(optimizer, (p * torch.tensor([3.0, 4.0])).sum(), max_norm=1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(p.data, torch.tensor([1 - 0.6, 1 - 0.8]))
    assert descend(optimizer, (p * float("nan")).sum()).isnan()
    torch.testing.assert_close(p.data, torch.tensor([1 - 0.6, 1 - 0.8]))


def test_every_is_due_once_a_period():
    every = Every(10)
    assert [step for step in range(0, 45, 3) if every.due(step)] == [0, 12, 21, 30, 42]


@pytest.mark.parametrize(
    ("period", "dues"), [(50, [50, 100, 150]), (20, [30, 40, 60, 80, 100, 120, 140]), (75, [75, 150])]
)
def test_taken_up_with_another_period_it_counts_on_from_when_it_was_due_last(period, dues):
    before, after = Every(50), Every(period)
    assert [step for step in range(0, 30, 10) if before.due(step)] == [0]
    after.load_state_dict(before.state_dict())
    assert [step for step in range(30, 155, 5) if after.due(step)] == dues
    fresh = Every(period)
    fresh.load_state_dict(Every(50).state_dict())
    assert fresh.due(0)


def test_means_are_over_what_came_since():
    means = Means()
    for x in (1.0, 2.0, 6.0):
        means.add({"x": torch.tensor(x)}, 0)
    means.add({"y": 5.0}, 0)
    assert {k: float(v) for k, v in means.pop().items()} == {"x": 3.0, "y": 5.0} and means.pop() == {}


def test_settings_conform_to_annotations():
    assert conform("x", 1e6, Count) == 1_000_000 and isinstance(conform("x", 1e6, Count), int)
    assert conform("x", None, Count | None) is None and conform("x", "inf", float) == float("inf")
    with pytest.raises(UserError, match="x=-0.1 must be between 0 and 1"):
        conform("x", -0.1, Unit)
    with pytest.raises(UserError, match="x=True must be a whole number"):
        conform("x", True, Count)
