"""The ten minutes of a GPU, rehearsed; and the bench's figures, read from what was printed."""

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GPU = ROOT / "tests/bench/gpu.py"
LACKING = ["scipy", "numba", "wandb", "stable_baselines3", "matplotlib", "PIL", "av", "sklearn", "joblib", "pandas"]
sys.path.insert(0, str(ROOT / "tests/bench"))


def rehearsed(tmp_path: Path, *parts: str, lacking: list[str] | None = None) -> dict[str, list[str]]:
    """What the file then holds, by part: the names of its rows."""
    out, only = tmp_path / "rows.csv", ["--only", *parts] if parts else []
    prepare = "".join(f"sys.modules[{name!r}] = None; " for name in lacking or [])
    code = f"import runpy, sys; {prepare}sys.argv = {[str(GPU), '--rehearse', '--out', str(out), *only]}; runpy.run_path({str(GPU)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    rows: dict[str, list[str]] = {}
    for part, name, *_ in csv.reader(out.read_text().splitlines()):
        rows.setdefault(part, []).append(name)
    return rows


def test_a_part_is_rehearsed_on_a_machine_with_little_more_than_torch(tmp_path):
    rows = rehearsed(tmp_path, "worlds", "plans", "million_states", lacking=LACKING)
    assert [*rows] == ["worlds", "plans", "million_states"] and all(names[-1] == "took" for names in rows.values())


@pytest.mark.slow
def test_every_part_is_rehearsed(tmp_path):
    import gpu

    assert [*rehearsed(tmp_path)] == [*gpu.PARTS]


def test_a_part_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    import gpu

    def broken(device, seconds, note, small):
        note("half", 1.0, "s")
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "of", lambda part: broken if part == "grid" else lambda *_: None)
    assert gpu.rehearse(["grid", "plans"], tmp_path / "rows.csv", 0.0) == 1
    rows = [row[:3] for row in csv.reader((tmp_path / "rows.csv").read_text().splitlines())]
    assert rows[:2] == [["grid", "half", "1"], ["grid", "failed", "RuntimeError: no such kernel"]]
    assert [row[:2] for row in rows[2:]] == [["grid", "took"], ["plans", "took"]]


def test_without_a_gpu_it_says_so_in_a_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run([sys.executable, str(GPU)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("torch sees no GPU here; --rehearse") and not done.stdout


PRINTED = {
    "gridworld": ("ours, 16,384 envs                    79.16             1428.18                7.59", ("ours, 16,384 envs", 79.16)),
    "collect": ("options, 1,024 envs, planes                               3.21", ("options, 1,024 envs, planes", 3.21)),
    "vpn": ("    3     64        67.1        10.9   ", ("3 64", 67.1)),
    "images": ("ours                                    12.30 ms      10,406   1.50 x", ("ours", 12.3)),
    "replay": ("ours, 100,000                            1,234         567", ("ours, 100,000", 1234)),
    "seeds": (f"{'agent=a2c':<80}{'3,000':>12}{'60,000':>12}{'20.0':>8}", ("agent=a2c", 60_000)),
    "atari": ("ours a2c 64                  1,848            2.10     0.90", ("ours a2c 64", 1848)),
    "planning": ("  value iteration, synchronous (torch)          1.2345 s     1.00 x", ("value iteration, synchronous (torch)", 1.2345)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_the_figures_of_a_benchmark_are_read_from_what_it_prints(name):
    import all as bench

    line, figure = PRINTED[name]
    assert bench.figures(bench.BENCHES[name], f"x86_64, one thread, torch 2.13.0\n{line}\n") == [figure]


def test_the_history_is_each_figure_beside_its_first(tmp_path):
    import history

    path = tmp_path / "history.csv"
    path.write_text("date,revision,machine,benchmark,figure,value,unit\n"
                    "2026-01-01,a,m,vpn,3 64,50,decisions/s\n2026-02-01,b,m,vpn,3 64,100,decisions/s\n"
                    "2026-01-01,a,m,images,ours,10,ms\n2026-02-01,b,m,images,ours,5,ms\n")  # fmt: skip
    for points in history.histories(path)["m"].values():
        assert points == [("2026-01-01 a", 1.0), ("2026-02-01 b", 2.0)]


@pytest.mark.parametrize("loop", [["train"], ["seeds", "loop.seeds=2"]])
def test_the_bench_of_seeds_runs_alone_and_many_at_once(loop):
    bench = runpy.run_path(str(ROOT / "tests/bench/seeds.py"))
    assert 0 < bench["seconds"]("agent=a2c", loop[0], 400, 0, *loop[1:]) < 60
