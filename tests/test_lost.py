"""Nothing is lost: full disks, links, damaged rows, closed terminals, two at once."""

import functools
import hashlib
import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_folders import write_run
from stated import stated
from stopping import equal

from rl_lab.__main__ import COMMANDS
from rl_lab.core import checkpoint, files, locks
from rl_lab.core.comparing.compare import folder as comparison_folder
from rl_lab.core.errors import UserError
from rl_lab.core.folders import plain, read_runs, summary
from rl_lab.core.launching import cli
from rl_lab.core.rows import Mark, whole
from rl_lab.core.run import Run, Stopped
from rl_lab.core.studies.study import Study
from rl_lab.planning import value_iteration

compare = stated("command/rl/compare")

PLAN = ("experiment=value_iteration_russell_norvig", "tracker=none", "device=cpu")
TABLE = ("experiment=dqn_russell_norvig", "tracker=none", "device=cpu", "loop.total_steps=2000", "loop.eval_every=500",
         "loop.eval_episodes=8", "checkpoint.every=0")  # fmt: skip


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


def rows(folder: Path) -> list[dict]:
    """Everything but the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@contextmanager
def room(size: int):
    """A limit on the size of files stands for a full disk: what no longer fits is refused by the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[0][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planned") / "whole"
    assert rl_lab("train", *PLAN, f"hydra.run.dir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learned") / "whole"
    assert rl_lab("train", *TABLE, f"hydra.run.dir={folder}") == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- full disks


def test_the_first_file_that_finds_no_room_leaves_nothing_behind(here, capsys):
    with room(500):
        assert rl_lab("train", *PLAN, "hydra.run.dir=run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"rl-lab: cannot write to {here}/run: File too large; make room, then start it again"
    assert not Path("run").exists()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "size", [1_700, 100_000, *(pytest.param(n, marks=SLOW) for n in (1_000, 3_000, 7_000, 20_000, 60_000))]
)
def test_a_plan_whose_disk_filled_up_is_finished_once_there_is_room(planned, here, capsys, size):
    """At summary.json, metrics.jsonl, in it, values.png, q.png, the film and its gif."""
    with room(size):
        assert rl_lab("train", *PLAN, "hydra.run.dir=run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        line == f"rl-lab: cannot write to {here}/run: File too large; make room, then rl-lab train run=run resumes it"
    )
    assert rl_lab("train", "run=run") == 0
    assert rows(Path("run")) == rows(planned) and names(Path("run")) == names(planned)
    for name in ("plan.npz", "pictures/values.png", "pictures/q.png", "videos/sweeps.gif"):
        assert Path("run", name).read_bytes() == (planned / name).read_bytes(), name


@pytest.mark.parametrize("size", [5_000, *(pytest.param(n, marks=SLOW) for n in (1_800, 20_000, 170_000))])
def test_a_run_whose_disk_filled_up_goes_on_as_if_nothing_had_happened(learned, here, capsys, size):
    """At metrics.jsonl, in it, at the first checkpoint, at a later one."""
    with room(size):
        assert rl_lab("train", *TABLE, "hydra.run.dir=run") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("make room, then rl-lab train run=run resumes it")
    assert rl_lab("train", "run=run") == 0
    assert rows(Path("run")) == rows(learned)
    ours, theirs = (checkpoint.read(folder / "checkpoint.pt") for folder in (Path("run"), learned))
    parts = "online", "target", "optimizer"
    assert all(equal(ours["agent"][part], theirs["agent"][part]) for part in parts)
    assert summary(Path("run"))["final"] == summary(learned)["final"]


def test_a_full_disk_at_a_resume_leaves_the_config_as_it_was(learned, here, capsys):
    shutil.copytree(learned, "run")
    before = {name: Path("run", name).read_bytes() for name in names(Path("run"))}
    with room(500):
        assert rl_lab("train", "run=run", "loop.total_steps=3000") == 2
    assert {name: Path("run", name).read_bytes() for name in names(Path("run"))} == before


# -- plans


@pytest.mark.parametrize("name", ["plan.npz", *(pytest.param(name, marks=SLOW) for name in (
    "pictures/values.png", "videos/sweeps.gif", "summary.json", "checkpoint.pt"))])  # fmt: skip
def test_what_a_finished_plan_has_lost_is_found_again(planned, here, name):
    shutil.copytree(planned, "run")
    Path("run", name).unlink()
    assert rl_lab("train", "run=run") == 0
    assert names(Path("run")) == names(planned) and rows(Path("run")) == rows(planned)
    assert Path("run/plan.npz").read_bytes() == (planned / "plan.npz").read_bytes()


def test_a_planner_stops_at_the_next_sweep_and_is_found_again_bit_for_bit(planned, here, monkeypatch):
    @functools.wraps(value_iteration)
    def stopped(mdp, **settings):
        for sweep, plan in enumerate(value_iteration(mdp, **settings), 1):
            if sweep == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield plan

    with monkeypatch.context() as patch:
        patch.setattr("rl_lab.planning.value_iteration", stopped)
        assert rl_lab("train", *PLAN, "hydra.run.dir=run") == 128 + signal.SIGTERM
    assert (summary(Path("run"))["state"], summary(Path("run"))["step"]) == ("stopped", 5)
    assert rows(Path("run")) == rows(planned)[:4]
    assert rl_lab("train", "run=run") == 0
    assert rows(Path("run")) == rows(planned)
    with np.load("run/plan.npz") as ours, np.load(planned / "plan.npz") as theirs:
        assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_planner_that_makes_its_film_stops_at_once(here, monkeypatch):
    def slow(sweeps, path):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr("rl_lab.looking.plan_pictures.Sweeps.write", slow)
    assert rl_lab("train", *PLAN, "loop.film=true", "hydra.run.dir=run") == 128 + signal.SIGTERM


def test_a_signal_before_the_first_step_leaves_no_empty_folder(tmp_path):
    words = ["-m", "rl_lab", "train", "tracker=none", "loop.total_steps=1_000_000", "hydra.run.dir=made/run"]
    with subprocess.Popen([sys.executable, *words], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        until((tmp_path / "made/run").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "made").exists() or (tmp_path / "made/run/config.yaml").exists()


# -- links

STRAY = ["summary.new", "checkpoint.new", "videos/sweeps.new", *(f".new.{name}" for name in (
    "summary.json", "checkpoint.pt", "config.yaml", "metrics.jsonl", "plan.npz", "evaluation.json"))]  # fmt: skip
LINKS = ["metrics.jsonl", "pictures/", "recordings/", *(pytest.param(name, marks=SLOW) for name in (
    "summary.json", "checkpoint.pt", "config.yaml", "pictures/values.png", "videos/sweeps.mp4", "videos/sweeps.gif",
    "evaluation.json", "videos/"))]  # fmt: skip


@pytest.mark.parametrize("hard", [False, pytest.param(True, marks=SLOW)], ids=["symbolic", "hard"])
def test_nothing_is_written_through_links_of_names_that_are_made_on_the_way(planned, here, hard):
    shutil.copytree(planned, "run")
    Path("run/plan.npz").unlink()
    (here / "mine").write_text("mine")
    for name in STRAY:
        place = Path("run", name)
        place.hardlink_to(here / "mine") if hard else place.symlink_to(here / "mine")
    assert rl_lab("train", "run=run") == 0 == rl_lab("evaluate", "run=run", "episodes=2", "device=cpu")
    assert (here / "mine").read_text() == "mine"


@pytest.mark.parametrize("hard", [False, pytest.param(True, marks=SLOW)], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(planned, here, capsys, name, hard):
    shutil.copytree(planned, "run")
    Path("run/plan.npz").unlink()
    place, mine = Path("run", name), here / "mine"
    if name.endswith("/"):
        mine.mkdir()
        shutil.rmtree(place, ignore_errors=True)
        place.symlink_to(mine)
    else:
        mine.write_bytes(before := place.read_bytes() if place.exists() else b"mine")
        place.unlink(missing_ok=True)
        place.hardlink_to(mine) if hard else place.symlink_to(mine)
    command = {"recordings/": "record", "evaluation.json": "evaluate"}.get(name, "train")
    code = rl_lab(command, "run=run", *["episodes=2", "device=cpu"] * (command != "train"))
    assert code == 2 or (code == 0 and name != "metrics.jsonl")
    assert not list(mine.iterdir()) if name.endswith("/") else mine.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["config.yaml", "plan.npz", "pictures/values.png", "pictures/x/y.png", "../out", "a/../../out"]
)
def test_a_run_names_no_place_that_is_a_link_or_outside(tmp_path, name):
    (tmp_path / "run").mkdir()
    first = tmp_path / "run" / Path(name).parts[0]
    if first.name != "..":
        first.symlink_to(tmp_path / "mine")
    with pytest.raises(UserError):
        files.inside(tmp_path / "run", name)


def test_a_seed_of_many_is_not_written_through_a_link(here, capsys):
    many = ("experiment=dqn_russell_norvig", "loop=seeds", "loop.seeds=2", *TABLE[1:])
    assert rl_lab("train", *many, "hydra.run.dir=run") == 0
    (here / "mine").mkdir()
    shutil.rmtree("run/seed1")
    Path("run/seed1").symlink_to(here / "mine")
    assert rl_lab("train", "run=run", "loop.total_steps=2500") == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("run/seed1 is not a folder of its own; delete it, then try again")
    )
    assert not list((here / "mine").iterdir())


def test_a_study_writes_no_log_through_a_link(tmp_path):
    study = Study.begin(tmp_path, "x", "rl-lab", [], None)
    study.add([["a=1"]], 0)
    (tmp_path / "mine").write_text("mine")
    (study.folder / "jobs/0.log").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link or no file at all"), study.holding(0):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


# -- rows that are not as they were written

ROWS = [json.dumps({"step": 10 * i, "seconds": i / 3, "x": i / 7}).encode() + b"\n" for i in range(1, 11)]
DATA, AFTER = b"".join(ROWS), b'{"step": 110, "seconds": 9.0, "x": 1.0}\n'
DAMAGE = {  # what became of them: how many stay, and what is said
    "as written": (DATA, 10, ""),
    "a later row": (DATA + AFTER, 10, ""),
    "a later row cut by a kill": (DATA + AFTER[:9], 10, ""),
    "CRLF": ((DATA + AFTER).replace(b"\n", b"\r\n"), 10, ""),
    "without its last byte": (DATA[:-1], 10, ""),
    "emptied": (b"", 0, "rows 1 to 10 are lost"),
    "cut after a row": (b"".join(ROWS[:9]), 9, "row 10 is lost"),
    "cut": (DATA[:-100], 8, "row 9 is damaged; 2 of 10 rows are lost"),
    "zeros in between": (DATA[:100] + bytes(150) + DATA[250:] + AFTER, 7, "row 2 is damaged; 3 of 10 rows are lost"),
    "a digit": (DATA.replace(b"0.2857", b"0.3857"), 10, "a figure in rows 1 to 10 was changed (by their checksum)"),
    "a step": (DATA.replace(b'"step": 40', b'"step": 900'), 9, "row 4 is damaged; 1 of 10 rows is lost"),
    "a line put in": (b"".join([*ROWS[:3], b"hello\n", *ROWS[3:], AFTER]), 10, "row 4 is damaged"),
    "a line taken out": (b"".join([*ROWS[:3], *ROWS[4:], AFTER]), 9, "1 of 10 rows is lost"),
    "a line of brackets": (b"[" * 100_000 + b"\n" + DATA, 10, "row 1 is damaged"),
}
MARK = Mark(len(DATA), 10, 100, hashlib.sha256(DATA).hexdigest())


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_whole_of_damaged_rows_stays(how):
    data, count, words = DAMAGE[how]
    kept, fault = whole(data, MARK)
    assert (kept.count(b"\n"), fault) == (count, words)
    assert all(line in (*ROWS, *data.splitlines(keepends=True)) for line in kept.splitlines(keepends=True))


def test_a_checkpoint_of_before_there_were_digests_still_says_where_its_rows_ended():
    assert whole(DATA + AFTER, Mark(len(DATA))) == (DATA, "")
    assert whole(DATA[:-100], Mark(len(DATA))) == (b"".join(ROWS[:8]), "row 9 is damaged")
    assert whole(b"".join(ROWS[:8]), Mark(len(DATA)))[1] == "it ends after row 8 (step 80), 124 bytes early"


def written(folder: Path, **arguments) -> None:
    """Three rows, a checkpoint after the second."""
    with Run(
        folder, 0, "cpu", names={"name": "x", "seed": 0}, config={}, written="name: x\nseed: 0\n", **arguments
    ) as run:
        run.restore({})
        run.begin(30)
        for step in range(run.step + 10, 31, 10):
            run.log({"eval/return": step / 7}, step)
            if step < 30:
                run.save(step, {})


def test_a_run_says_which_rows_it_has_lost_goes_on_without_them_and_remembers(tmp_path, capsys):
    written(tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    path.write_bytes(b"".join([b"\0" * 20 + b"\n", *path.read_bytes().splitlines(keepends=True)[1:]]))
    written(tmp_path / "run")
    said = capsys.readouterr().err
    assert (
        "run/metrics.jsonl is not as it was written: row 1 is damaged; 1 of 2 rows is lost; the run continues" in said
    )
    assert [row["step"] for row in rows(tmp_path / "run")] == [20, 30]
    written(tmp_path / "run")
    assert "not as it was written" not in capsys.readouterr().err
    notes = []
    read_runs([tmp_path / "run"], notes)
    assert notes == [
        f"{tmp_path / 'run'}/metrics.jsonl is not as it was written: row 1 is damaged; 1 of 2 rows is lost."
    ]


def test_a_run_whose_rows_are_gone_altogether_goes_on(tmp_path, capsys):
    written(tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    written(tmp_path / "run")
    assert "rows 1 to 2 are lost" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path / "run")] == [30]


@pytest.mark.parametrize(("damage", "words"), [
    (lambda data: data[:-5], "row 3 is damaged; 1 of 3 rows is lost"),
    (lambda data: b"".join(data.splitlines(keepends=True)[:2]), "row 3 is lost"),
    (lambda data: data.replace(b"2.857142857142857", b"2.957142857142857"), "a figure in rows 1 to 3 was changed (by their checksum)"),
    (lambda data: data + b'{"step": 40, "seconds": 9.0, "eval/return": 99.0}\n', "lines after row 3, which was the last, are not the run's"),
])  # fmt: skip
def test_a_comparison_marks_the_run_whose_rows_were_changed(tmp_path, damage, words):
    written(tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    notes = []
    (run,) = read_runs([tmp_path], notes)
    assert notes == [f"{tmp_path / 'run'}/metrics.jsonl is not as it was written: {words}."]
    assert run.curves["eval/return"].values.max() < 99


def test_a_run_that_was_killed_is_not_marked_for_its_last_row(tmp_path):
    written(tmp_path / "run")
    about = json.loads((tmp_path / "run/summary.json").read_text())
    (tmp_path / "run/summary.json").write_text(json.dumps(about | {"state": "running"}))
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"step": 40, "seconds": 9.0, "eval/return": 5.0}\n{"step": 50, "sec')
    notes = []
    (run,) = read_runs([tmp_path], notes)
    assert (notes, run.curves["eval/return"].values[-1]) == ([], 5.0)


BAD = {
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nname: x\nseed: 0\n",
    "brackets": "name: " + "[" * 100_000,
    "a list for a seed": "name: x\nseed: [1]\n",
    "a text for a seed": "name: x\nseed: one\n",
    "a text for choices": "name: x\nseed: 0\nchoices: a\n",
    "bytes": "name: \x00\x01",
}


@pytest.mark.parametrize("how", BAD)
def test_a_config_of_other_kinds_leaves_the_others_to_be_compared(tmp_path, capsys, how):
    for name in ("a", "b"):
        write_run(tmp_path / f"runs/{name}", name=name)
    (tmp_path / "runs/a/config.yaml").write_text(BAD[how])
    began = time.monotonic()
    compare([tmp_path / "runs"], out=tmp_path / "out", resamples=20)
    assert time.monotonic() - began < 20 and f"left out: {tmp_path}/runs/a/config.yaml is" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
@pytest.mark.parametrize("how", ["fifo", "link", "huge"])
def test_what_is_no_file_of_a_run_is_neither_read_nor_waited_for(tmp_path, name, how):
    for run in ("a", "b"):
        write_run(tmp_path / f"runs/{run}", name=run)
    path = tmp_path / "runs/a" / name
    path.rename(tmp_path / "kept")
    {"fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(tmp_path / "kept"),
     "huge": lambda: (path.touch(), os.truncate(path, 2**36))}[how]()  # fmt: skip
    notes, began = [], time.monotonic()
    found = read_runs([tmp_path / "runs"], notes)
    assert time.monotonic() - began < 2 and [run.name for run in found] == ["b"]
    assert how == "fifo" and name == "config.yaml" or notes[0].startswith(f"left out: {path} is ")


@pytest.mark.parametrize("text", ["[]", "{", "1", '{"state": 1, "rows": 5, "identity": [], "final": 3}', "[" * 100_000])
def test_a_damaged_summary_is_none(tmp_path, text):
    written(tmp_path / "run")
    (tmp_path / "run/summary.json").write_text(text)
    notes = []
    read_runs([tmp_path], notes)
    written(tmp_path / "run")
    assert summary(tmp_path / "run")["state"] == "finished" and notes == []


@pytest.mark.parametrize(("key", "value"), [("written", 5), ("written", {"bytes": -1}), ("final", [1]), ("step", -5),
                                            ("step", "x"), ("seconds", float("nan"))])  # fmt: skip
def test_a_checkpoint_of_impossible_numbers_is_refused(tmp_path, key, value):
    checkpoint.write(tmp_path / "checkpoint.pt", {"step": 1, "seconds": 1.0, "bytes": 0, key: value})
    with pytest.raises(
        UserError, match="(does not say where the run stood|is impossible); bring back a whole copy, or delete it with"
    ):
        written(tmp_path)


@pytest.mark.parametrize("state", [{"a": [torch.zeros(1) for _ in range(20_001)]}, {"a": [1.5] * 1_000_001}])
def test_what_would_not_be_read_is_not_written(tmp_path, state):
    checkpoint.write(tmp_path / "checkpoint.pt", {"step": 1})
    with pytest.raises(UserError, match="more parts than|longer than any of ours"):
        checkpoint.write(tmp_path / "checkpoint.pt", state)
    assert checkpoint.read(tmp_path / "checkpoint.pt")["step"] == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_yaml_of_a_folder_is_plain_data(tmp_path):
    (tmp_path / "x.yaml").write_text("a: {b: [1, two]}\n")
    assert plain(tmp_path / "x.yaml") == {"a": {"b": [1, "two"]}} == yaml.safe_load("a: {b: [1, two]}")


def test_a_finished_run_that_is_taken_up_and_finished_again_has_the_same_final_figures(learned, here):
    shutil.copytree(learned, "run")
    before = summary(learned)["final"]
    assert len(before) > 5 and rl_lab("train", "run=run") == 0
    assert summary(Path("run"))["final"] == before


def test_so_it_has_of_a_checkpoint_that_does_not_hold_them(learned, here):
    shutil.copytree(learned, "run")
    state = checkpoint.read(Path("run/checkpoint.pt"))
    del state["final"], state["written"]
    checkpoint.write(Path("run/checkpoint.pt"), state)
    assert rl_lab("train", "run=run") == 0
    assert summary(Path("run"))["final"] == summary(learned)["final"] and rows(Path("run")) == rows(learned)


# -- signals

LOOP = """
import sys, time
from pathlib import Path
from rl_lab.core.run import Run, Stopped
try:
    with Run(Path("run"), 0, "cpu", names={"name": "loop", "seed": 0}, config={}, written="name: loop") as run:
        run.begin(1000)
        for step in range(1000):
            run.pause(step, {})
            run.log({"x": 1.0}, step)
            time.sleep(0.02)
except Stopped as stop:
    run.say("stopped")
    sys.exit(128 + stop.number)
"""


def until(there, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_closed_terminal_lets_the_run_save_and_stop(tmp_path):
    """For real: the process leads a session whose terminal goes away."""
    process, master = pty.fork()
    if not process:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", LOOP])
    until(lambda: (tmp_path / "run/metrics.jsonl").exists() and len(rows(tmp_path / "run")) > 10)
    os.close(master)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert summary(tmp_path / "run")["state"] == "stopped"
    assert checkpoint.read(tmp_path / "run/checkpoint.pt")["step"] == len(rows(tmp_path / "run")) > 10


def test_under_nohup_a_closed_terminal_is_nothing(tmp_path):
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with subprocess.Popen(
        [sys.executable, "-c", LOOP], cwd=tmp_path, preexec_fn=ignore, stderr=subprocess.PIPE
    ) as process:
        until(lambda: (tmp_path / "run/metrics.jsonl").exists() and len(rows(tmp_path / "run")) > 10)
        process.send_signal(signal.SIGHUP)
        count = len(rows(tmp_path / "run"))
        until(lambda: len(rows(tmp_path / "run")) > count + 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM),
                                     (signal.SIGUSR1, signal.SIGTERM), (signal.SIGUSR2, signal.SIGTERM)])  # fmt: skip
def test_what_a_launcher_passes_on_is_no_second_call(tmp_path, numbers):
    with pytest.raises(Stopped) as stop, Run(tmp_path, 0, "cpu", names={"name": "x"}, config={}) as run:
        run.begin(10)
        for number in numbers:
            os.kill(os.getpid(), number)
        run.pause(3, {})
    assert stop.value.number == numbers[0] and checkpoint.read(tmp_path / "checkpoint.pt")["step"] == 3


def test_the_same_signal_once_more_does_not_wait(tmp_path):
    with pytest.raises(Stopped), Run(tmp_path, 0, "cpu", names={"name": "x"}, config={}) as run:
        run.begin(10)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it waited")
    assert summary(tmp_path)["state"] == "stopped"


# -- two at once


def opens(place: Path, start, results) -> None:
    start.wait()
    try:
        handle = locks.of_run(place)
        results.put("held")
        time.sleep(0.5)
        locks.let_go(handle)
    except UserError:
        results.put("refused")


def test_of_eight_that_open_a_folder_at_once_one_has_it(tmp_path):
    context = get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=opens, args=(tmp_path / "run", start, results)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == ["held"] + ["refused"] * 7


def test_a_folder_that_went_away_under_its_lock_is_not_held_by_it(tmp_path, monkeypatch):
    """The one before removes its empty folder between the opening and the lock."""
    taken, calls = locks.lock, []

    def late(handle, kind):
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / "run").rmdir()
        return taken(handle, kind)

    monkeypatch.setattr(locks, "lock", late)
    handle = locks.of_run(tmp_path / "run")
    assert len(calls) == 2 and os.path.samestat(os.fstat(handle), os.stat(tmp_path / "run"))
    with pytest.raises(UserError, match="another process"):
        locks.of_run(tmp_path / "run")
    locks.let_go(handle)


def test_comparisons_of_one_second_have_folders_of_their_own(here, monkeypatch):
    found = [comparison_folder(None) for _ in range(5)]
    assert len({*found}) == 5 and all(path.is_dir() for path in found)
    assert [files.fresh(here / "x").name for _ in range(3)] == ["x", "x-2", "x-3"]


def test_studies_of_one_moment_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("rl_lab.core.studies.study.time.time", lambda: 1e9)
    found = [Study.begin(tmp_path, "x", "rl-lab", [], None).folder for _ in range(3)]
    assert len({*found}) == 3


# -- where films go


def test_a_film_goes_into_the_folder_that_is_named(planned, here, capsys):
    (here / "films").mkdir()
    short = ("render", f"run={planned}", "episodes=1", "max_steps=2", "gif=false", "tracker=none", "device=cpu")
    assert rl_lab(*short, "out=films/") == 0 == rl_lab(*short, "out=films")
    assert names(here) == {"films/value_iteration_russell_norvig_step38.mp4"}
    capsys.readouterr()
    for out in ("film.avi", "v1.0"):
        assert rl_lab(*short, f"out={out}") == 2
        assert capsys.readouterr().err.startswith(f"rl-lab: out={out} must be a film (.mp4")
    assert rl_lab(*short, "out=/proc/x/film.mp4") == 2
    assert capsys.readouterr().err.startswith("rl-lab: cannot write to /proc/x: ")
    assert names(here) == {"films/value_iteration_russell_norvig_step38.mp4"}
    assert rl_lab(*short, "out=film") == 0 and (here / "film.mp4").exists()
